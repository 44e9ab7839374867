"""Finds images that are scored and trained on: the same file under whatever name, or a copy of it. Imports no torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from segdistill.data.archives import ImageFile
from segdistill.recipe import Reading, Recipe


def overlaps(recipe: Recipe, readings: Sequence[Reading]) -> list[tuple[str, bool]]:
    """A line for each domain with images that are scored and trained on, and whether it is unseen."""
    trained = [each for each in readings if each.where != "evaluate"]
    scored = Scored(_files(each for each in readings if each.where == "evaluate" and trained))
    unseen = () if recipe.evaluate is None else recipe.evaluate.unseen
    found: dict[str, str] = {}
    for each in trained:
        same: dict[str, ImageFile] = {}
        for file in each.source.files(each.selection):
            same |= dict.fromkeys(scored.same(file), file)
        both = Counter(domain for path in same for domain in scored.domains[path])
        for domain, count in both.items():
            total = scored.counts[domain]
            images = f"{'all' if count == total else f'{count} of the'} {total} images of '{domain}'"
            copies = [(path, file.path) for path, file in same.items()
                      if path != file.path and domain in scored.domains[path]]  # fmt: skip
            such = f" (copies, such as {copies[0][1]} of {copies[0][0]})" if copies else ""
            found.setdefault(domain, f"evaluate: {images} are also read by {each.where}{such}; ")
    return [
        (line + ("remove them from one of the two, or the domain from 'unseen'" if domain in unseen
                 else "its score says nothing about new images"), domain in unseen)
        for domain, line in found.items()
    ]  # fmt: skip


class Scored:
    """The files that are scored: ``domains`` of each path (an image may be in several), ``counts`` of each domain."""

    def __init__(self, files: Iterable[ImageFile]) -> None:
        self.domains: dict[str, list[str]] = defaultdict(list)
        self._files: dict[str, ImageFile] = {}
        for file in files:
            self.domains[file.path].append(file.domain)
            self._files[file.path] = file
        self.counts = Counter(domain for domains in self.domains.values() for domain in domains)
        self._sizes: dict[int | None, list[str]] = defaultdict(list)
        for path, file in self._files.items():
            self._sizes[file.size].append(path)
        self._digests: dict[tuple[str, bool], bytes | None] = {}

    def same(self, file: ImageFile) -> list[str]:
        """Paths of scored files that ``file`` is, or that have the same content."""
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


def _files(readings: Iterable[Reading]) -> Iterator[ImageFile]:
    for each in readings:
        yield from each.source.files(each.selection)
