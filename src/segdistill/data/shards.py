"""Tar shards in the form of WebDataset as a store of images: read by sample, in any order, never as a stream.

A sample is the members of one shard whose names are equal up to the first dot of the file name: ``0001.jpg`` is its
image, ``0001.label.png`` (or, with ``label_suffix: .seg``, ``0001.seg.png``; beside a JPEG or WebP image also
``0001.png``) its label; other members, such as ``0001.json``, are left unread. The place of every member is found by
walking through the headers of a tar once and kept in the cache folder, so that a sample is one read at a known place.
The order of samples is that of their names, whatever the shard: steps read the same images as from a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from segdistill.config import UserError
from segdistill.data.archives import LARGEST, BadSample, Store, Tar, is_text
from segdistill.data.dataset import Split
from segdistill.data.rendered import cache_folder
from segdistill.files import MARK, is_whole, write_bytes

IMAGES = ("jpg", "jpeg", "png", "webp")
LABELS = "shard-labels"
"""Folder of the labels among the store's names."""
FORMAT = 1

Place = tuple[Path, int, int]
"""A member: its shard, and the offset and length of its content in bytes."""


class ShardStore(Store):
    """The shards of each split, offered as ``SPLIT/KEY.jpg`` and ``shard-labels/SPLIT/KEY.png``."""

    def __init__(self, where: Path, splits: Mapping[Split, str], suffix: str) -> None:
        """``splits``: split -> folder of shards or pattern of their names; ``suffix`` of labels, such as ``.label``."""
        super().__init__(where)
        self._splits: dict[str, str] = {**splits}
        self._label = f"{suffix}.png".removeprefix(".")
        self._found: dict[str, dict[str, Place]] = {}

    def names(self, under: str = "") -> list[str]:
        """The images of the split ``under``, or the labels of ``shard-labels/SPLIT``."""
        split = under.removeprefix(f"{LABELS}/")
        return sorted(name for name in self._places(split) if name.startswith(f"{under}/"))

    def read(self, name: str) -> bytes:
        """One read at the member's place."""
        shard, offset, size = self._place(name)
        if size > LARGEST:
            raise BadSample(f"{name} in {shard}: has {size:,} bytes; at most {LARGEST:,} are read")
        try:
            with shard.open("rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise BadSample(f"cannot read {name} in {shard}: {error.strerror}") from None
        if len(content) != size:
            raise BadSample(f"cannot read {name} in {shard}: the archive ends too early; copy it again")
        return content

    def size(self, name: str) -> int:
        """From the shard's index."""
        return self._place(name)[2]

    def _place(self, name: str) -> Place:
        return self._places(name.removeprefix(f"{LABELS}/").partition("/")[0])[name]

    def shards(self, split: str) -> list[Path]:
        """The tar files of ``split``, by name."""
        pattern = self._splits.get(split, "")
        if not pattern:
            return []
        given = pattern if "*" in pattern or pattern.endswith(".tar") else f"{pattern}/*.tar"
        found = sorted(path for path in self.where.glob(given) if not path.name.startswith("."))
        if packed := [path for path in found if path.suffix != ".tar"]:
            raise UserError(f"{packed[0]} is not a .tar; images in compressed archives cannot be read one by one")
        return found

    def damaged(self, split: str) -> list[str]:
        """Shards whose digest differs; only those written by `segdistill data shard` have one."""
        changed = [path for path in self.shards(split) if _sealed(path) and not is_whole(path)]
        return [f"{path} has changed since it was written (its digest differs)" for path in changed]

    def _places(self, split: str) -> dict[str, Place]:
        if split not in self._found:
            self._found[split] = self._listed(split)
        return self._found[split]

    def _listed(self, split: str) -> dict[str, Place]:
        """Name -> place of the images and labels of ``split``; a :class:`UserError` for unusable samples."""
        found: dict[str, Place] = {}
        homes: dict[str, Path] = {}
        for shard in self.shards(split):
            for key, members in _samples(shard, members_of(shard)).items():
                if not is_text(key):
                    raise UserError(f"{shard}: the name {key!r} is not UTF-8 or has control characters")
                if key in homes:
                    raise UserError(f"{homes[key]} and {shard} both have the sample '{key}'; keep one of them")
                homes[key] = shard
                image, label = self._roles(shard, key, members)
                found[f"{split}/{key}.{image}"] = (shard, *members[image])
                if label is not None:
                    found[f"{LABELS}/{split}/{key}.png"] = (shard, *members[label])
        return found

    def _roles(self, shard: Path, key: str, members: Mapping[str, Any]) -> tuple[str, str | None]:
        """The extensions of the sample's image and label."""
        label = self._label if self._label in members else None
        images = [name for name in IMAGES if name in members and name != label]
        if len(images) == 2 and images[-1] == "png" and label is None:
            label = images.pop()
        elif len(images) == 2 and "png" in images and "webp" in images and label is None:
            images, label = ["webp"], "png"
        if len(images) != 1:
            many = " and ".join(images) or "no image"
            raise UserError(
                f"{shard}: sample '{key}' has {many} among {', '.join(sorted(members))}; expected one of "
                f"{', '.join(IMAGES)}, and {self._label} for its label"
            )
        return images[0], label


class _Members(Tar):
    """The members of a tar in their order, repeated names included."""

    def _entries(self) -> Iterator[tuple[str, tuple[int, int]]]:
        self.members: list[tuple[str, int, int]] = []
        for name, place in super()._entries():
            if not any(part.startswith(".") for part in PurePosixPath(name).parts):
                self.members.append((name, *place))
            yield name, place


def members_of(shard: Path) -> list[tuple[str, int, int]]:
    """Name, offset and length of every member; from the cache if the file has not changed since."""
    status = shard.stat()
    known = json.dumps([FORMAT, str(shard.resolve()), status.st_size, status.st_mtime_ns])
    path = cache_folder() / "shards" / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"
    try:
        return [(name, offset, size) for name, offset, size in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        pass  # not there, or damaged: it is made again
    found = _Members(shard).members
    write_bytes(path, json.dumps(found).encode())
    return found


def _samples(shard: Path, members: Sequence[tuple[str, int, int]]) -> dict[str, dict[str, tuple[int, int]]]:
    """Key -> extension in lower case -> place of the member."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, offset, size in members:
        path = PurePosixPath(name)
        stem, _, extension = path.name.partition(".")
        sample = found.setdefault(str(path.with_name(stem)), {})
        if extension.lower() in sample:
            raise UserError(f"{shard} has the member {name} twice; write the shard again with different keys")
        sample[extension.lower()] = (offset, size)
    return found


def _sealed(path: Path) -> bool:
    """Whether the file ends with a digest."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 200))
        return MARK in file.read()
