"""Finds copies of image files, whatever their names and wherever they lie. Imports no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from segdistill.data.archives import ImageFile


class Originals:
    """Files whose copies are looked for. Sizes are compared first, then starts, then whole files."""

    def __init__(self, files: Iterable[ImageFile]) -> None:
        self._files = {file.path: file for file in files}
        self._sizes: dict[int | None, list[str]] = defaultdict(list)
        for path, file in self._files.items():
            self._sizes[file.size].append(path)
        self._digests: dict[tuple[str, bool], bytes | None] = {}

    def same(self, file: ImageFile) -> list[str]:
        """Paths of the files that are ``file`` itself or have its content."""
        if not self._files:
            return []
        own = [file.path] if file.path in self._files else []
        others = [path for path in self._sizes.get(file.size, []) if path != file.path]
        for start in (True, False):  # files without compression may all have one size
            digest = self._digest(file, start) if others else None
            others = [path for path in others if digest and self._digest(self._files[path], start) == digest]
        return own + others

    def _digest(self, file: ImageFile, start: bool) -> bytes | None:
        if (file.path, start) not in self._digests:
            self._digests[file.path, start] = file.digest(start=start)
        return self._digests[file.path, start]
