"""The procedural world as a data set: rendered images, cached on disk."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from segdistill import world
from segdistill.config import UserError, nearest
from segdistill.data.dataset import DataSelection, Dataset, DataSource, Progress, Protocol, Sample
from segdistill.data.fraction import chosen_rows
from segdistill.files import is_whole, sweep, write_sealed
from segdistill.objects import Objects

RENDERER = 1
"""Part of the image cache's key: increase it whenever the world's pinned hashes change."""


KINDS = ("images", "labels", "instances")
"""Cached arrays: (N, H, W, 3) and (N, H, W) uint8, (N, H, W) uint16 with 0 = no object."""

_whole: set[tuple[str, int, int, int]] = set()
"""Cache files that this process has verified: path, inode, size and modification time."""


class WorldSource(DataSource):
    """Images of the procedural world, rendered at ``size``."""

    scores: ClassVar[int | None] = 60

    source: Literal["world"] = "world"
    classes: str = Field(
        "cityscapes19", description="label space: cityscapes19, world13, or things8 with the objects of its classes"
    )
    least_pixels: int = Field(
        12, ge=1, le=10**6, description="objects with fewer visible pixels are neither learned nor counted"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="re-draws the scenes of the world")
    redraw: int = Field(
        0, ge=0, lt=2**63, description="re-draws the parameters of the world's domains (0: as published)"
    )

    def faults(self) -> list[str]:
        """An unknown label space, a size that cannot be rendered."""
        lines, sides = [], world.SIDES
        if any(side not in sides for side in self.size):
            shown = " x ".join(map(str, self.size))
            lines.append(f"size: the world is rendered with sides from {sides[0]} to {sides[-1]}, got {shown}")
        if self.classes not in world.LABEL_SPACES:
            allowed = ", ".join(sorted(world.LABEL_SPACES))
            hint = nearest(self.classes, world.LABEL_SPACES)
            lines.append(f"unknown label space '{self.classes}': {hint}allowed: {allowed}")
        return lines

    def open(self, selection: DataSelection, progress: Progress | None = None) -> World:
        """Rendered images, from the cache if they are there."""
        return World(self, selection, progress)

    def look(self, selection: DataSelection) -> tuple[int, tuple[str, ...]]:
        """The requested numbers; nothing is rendered."""
        if problems := [*self.faults(), *self.problems(selection, labelled=False)]:
            raise UserError("; ".join(problems))
        assert selection.images is not None, "problems() asks for it"
        images = sum(len(chosen_rows(selection, name, selection.images)) for name in selection.domains)
        return images, tuple(world.LABEL_SPACES[self.classes].names)

    def listing(self, selection: DataSelection) -> Iterator[str]:
        """``domain/index`` of every image."""
        for name in selection.domains:
            rows = chosen_rows(selection, name, selection.images or 0)
            yield from (f"{name}/{_name(selection, row)}" for row in rows)

    def has_objects(self, domain: str) -> bool:
        """Whether the classes are things."""
        return self.classes in world.LABEL_SPACES and world.LABEL_SPACES[self.classes].objects

    def problems(self, selection: DataSelection, *, labelled: bool, objects: bool = False) -> list[str]:
        """Unknown domains, labels of the proxy, classes without objects, no number of images or too large a one."""
        lines = []
        if objects and not self.has_objects(""):
            allowed = ", ".join(name for name, space in world.LABEL_SPACES.items() if space.objects)
            lines.append(f"the classes '{self.classes}' have no objects; set data.classes to one of: {allowed}")
        for name in selection.domains:
            if name not in world.DOMAINS:
                allowed = ", ".join(sorted(world.DOMAINS))
                lines.append(f"unknown domain '{name}': {nearest(name, world.DOMAINS)}allowed: {allowed}")
            elif labelled and not world.DOMAINS[name].labelled:
                lines.append(f"domain '{name}' has no labels; take it out of 'domains'")
        if selection.images is None:
            lines.append("the world has unlimited images: set 'images', the number per domain")
        elif (last := selection.first + selection.images) > (most := len(world.SPLITS[selection.split])):
            lines.append(
                f"images {selection.first} to {last} of split '{selection.split}' are requested, and the world has "
                f"{most:,}; choose fewer"
            )
        if selection.list is not None:
            lines.append("the world has no image lists; select images by 'first' and 'images'")
        return lines

    def benchmark(self) -> tuple[str, ...]:
        """The training domain, the unseen ones and those for validation."""
        return tuple(name for name, each in world.DOMAINS.items() if each.role in ("source", "unseen", "validation"))

    def validates(self, domain: str) -> bool:
        """From the domain's role."""
        return domain in world.DOMAINS and world.DOMAINS[domain].role == "validation"

    def protocol(self, domain: str) -> Protocol:
        """The world is rendered at ``size``; other images are fitted into it."""
        return Protocol(resize=self.size)

    def licence(self, domain: str) -> str:
        """The licence of the renderer, which is part of the package."""
        return "Apache-2.0"

    def facts(self, *selections: DataSelection) -> dict[str, Any]:
        """The settings and the renderer's version."""
        return super().facts(*selections) | {"renderer": RENDERER}


class World(Dataset):
    """Rendered images of the procedural world, cached on disk.

    The cache has two arrays per (domain, selection) and renderer, three with objects; it can be deleted at any time.
    """

    def __init__(self, source: WorldSource, selection: DataSelection, progress: Progress | None = None) -> None:
        if problems := [*source.faults(), *source.problems(selection, labelled=False)]:
            raise UserError("; ".join(problems))
        space = world.LABEL_SPACES[source.classes]
        self.names, self.colors = tuple(space.names), np.asarray(space.colors, np.uint8)
        self._lookup = np.asarray(space.lookup, np.uint8)
        assert selection.images is not None, "problems() asks for it"
        self._selection, self.weights = selection, selection.weights
        self.objects, self._least = space.objects, source.least_pixels
        kinds = KINDS if space.objects else KINDS[:2]
        self._arrays = [_load_or_render(source, selection, name, kinds, progress) for name in selection.domains]
        rows = [chosen_rows(selection, name, selection.images) for name in selection.domains]
        self._rows = [(which, row) for which, chosen in enumerate(rows) for row in chosen]
        self.sizes = tuple(map(len, rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        which, row = self._rows[index]
        domain = self._selection.domains[which]
        images, labels, *instances = (array[row] for array in self._arrays[which])
        if not world.DOMAINS[domain].labelled:
            return Sample(np.asarray(images), None, domain, _name(self._selection, row))
        label = self._lookup[labels]
        objects = self._objects_of(instances[0], label) if instances else None
        return Sample(np.asarray(images), label, domain, _name(self._selection, row), objects)

    def _objects_of(self, instance: NDArray[np.uint16], label: NDArray[np.uint8]) -> Objects:
        """The things of an image; those with too few visible pixels are crowds, which do not count."""
        objects = Objects.of_map(instance, label)
        return replace(objects, crowd=objects.areas() < self._least)

    def listing(self) -> Iterator[str]:
        """``domain/index`` of every image."""
        return (f"{self._selection.domains[which]}/{_name(self._selection, row)}" for which, row in self._rows)

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: the paths of the images, not their content."""
        return self.__dict__ | {"_arrays": [[array.filename for array in pair] for pair in self._arrays]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_arrays": [_mapped(*paths) for paths in state["_arrays"]]})


def _name(selection: DataSelection, row: int) -> str:
    return f"{selection.first + row:06d}"


def cache_folder() -> Path:
    """``SEGDISTILL_CACHE``, else ``~/.cache/segdistill``."""
    return Path(os.environ.get("SEGDISTILL_CACHE") or Path.home() / ".cache" / "segdistill")


def _load_or_render(
    source: WorldSource, selection: DataSelection, domain: str, kinds: Sequence[str], progress: Progress | None
) -> tuple[np.memmap, ...]:
    """Memory-mapped arrays of one domain, one for each of ``kinds``; rendered first if any is missing."""
    key = (RENDERER, source.size, source.seed, source.redraw, domain, selection.split, selection.first)
    stem = f"{domain}-{selection.split}-{hashlib.sha256(repr((key, selection.images)).encode()).hexdigest()[:16]}"
    paths = [cache_folder() / "world" / f"{stem}.{kind}.npy" for kind in kinds]
    if not all(map(_usable, paths)):
        rendered = _render(source, selection, domain, progress)
        try:
            sweep(paths[0].parent)
            for path, array in zip(paths, rendered, strict=False):
                write_sealed(path, lambda file, array=array: np.save(file, array, allow_pickle=False))
        except OSError as error:
            raise UserError(
                f"cannot write the image cache {paths[0].parent}: {error.strerror}; free space or set SEGDISTILL_CACHE"
            ) from None
    return _mapped(*paths)


def _usable(path: Path) -> bool:
    """Whether a cache file exists and is intact; logs damaged ones. A process verifies a file once."""
    try:
        status = path.stat()
        facts = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        if facts not in _whole and is_whole(path):
            _whole.add(facts)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(
            f"cannot read the image cache {path}: {error.strerror}; set SEGDISTILL_CACHE to a usable folder"
        ) from None
    if facts not in _whole:
        logging.getLogger(__name__).warning("warning: damaged image cache %s: its images are rendered again", path)
    return facts in _whole


def _mapped(*paths: Path) -> tuple[np.memmap, ...]:
    """The arrays of a domain, memory-mapped."""
    try:
        return tuple(np.load(path, mmap_mode="r") for path in paths)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read the image cache {paths[0]}: {error}; run the command again") from None


def _render(
    source: WorldSource, selection: DataSelection, domain: str, progress: Progress | None
) -> tuple[NDArray[Any], ...]:
    """The arrays of :data:`KINDS`."""
    h, w = source.size
    count = selection.images
    assert count is not None, "a world's selection says how many"
    images = np.empty((count, h, w, 3), np.uint8)
    labels, instances = np.empty((count, h, w), np.uint8), np.empty((count, h, w), np.uint16)
    for i in range(count):
        rendered = world.render(
            domain,
            selection.split,
            selection.first + i,
            size=source.size,
            seed=source.seed,
            redraw=source.redraw,
        )
        images[i], labels[i], instances[i] = rendered.image, rendered.label, rendered.instance
        if progress and (i % 20 == 19 or i + 1 == count):
            progress(f"rendering {domain}", i + 1, count)
    return images, labels, instances
