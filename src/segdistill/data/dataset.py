"""Data sets as sequences of samples. A sample's domain is a field, never a piece of its path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from segdistill.config import Config, UserError, choose
from segdistill.data import world
from segdistill.files import write_atomic

Progress = Callable[[str, int, int], None]
"""Called with (what is being made, done, total)."""


RENDERER = 1
"""Part of the image cache's key: raise it whenever the world's pinned hashes change."""


class DataSource(Config):
    """Where a run's images come from and how they look; shared by its stages and its evaluation."""

    source: Literal["world"] = "world"
    size: tuple[int, int] = Field((64, 128), description="height and width in pixels of the rendered images")
    classes: str = Field("cityscapes19", description="label space: cityscapes19 or world13")
    seed: int = Field(0, ge=0, description="re-draws the scenes of the world")
    redraw: int = Field(0, ge=0, description="re-draws the parameters of the world's domains (0: as published)")


class DataSelection(Config):
    """Which images of the source a stage reads."""

    domains: tuple[str, ...] = Field(min_length=1)
    split: Literal["train", "val", "test", "pretrain"] = "train"
    images: int = Field(ge=1, description="number of images per domain")
    first: int = Field(0, ge=0, description="index of the first image of the split")


@dataclass(frozen=True)
class Sample:
    """One image: ``image`` (H, W, 3) uint8 RGB, ``label`` (H, W) uint8 with 255 = ignored, None where unlabelled."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    domain: str
    name: str


class Dataset(Sequence[Sample]):
    """Samples of several domains, one after the other, plus the label space they are written in."""

    names: tuple[str, ...]
    colors: NDArray[np.uint8]


class World(Dataset):
    """Rendered images of the procedural world, from a cache on disk when they were rendered before.

    The cache holds a pair of arrays per (domain, selection) and renderer: deleting it costs only time.
    """

    def __init__(self, source: DataSource, selection: DataSelection, progress: Progress | None = None) -> None:
        space = choose("label space", source.classes, world.LABEL_SPACES)
        self.names, self.colors = tuple(space.names), np.asarray(space.colors, np.uint8)
        self._lookup = np.asarray(space.lookup, np.uint8)
        self._selection = selection
        for name in selection.domains:
            choose("domain", name, world.DOMAINS)
        self._arrays = [_load_or_render(source, selection, name, progress) for name in selection.domains]

    def __len__(self) -> int:
        return self._selection.images * len(self._selection.domains)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        which, row = divmod(index, self._selection.images)
        domain = self._selection.domains[which]
        images, labels = self._arrays[which]
        label = self._lookup[labels[row]] if world.DOMAINS[domain].labelled else None
        return Sample(np.asarray(images[row]), label, domain, f"{self._selection.first + row:06d}")


def open_dataset(source: DataSource, selection: DataSelection, progress: Progress | None = None) -> Dataset:
    """The data set that ``source`` and ``selection`` name."""
    return World(source, selection, progress)


def cache_folder() -> Path:
    """``SEGDISTILL_CACHE``, else ``~/.cache/segdistill``."""
    return Path(os.environ.get("SEGDISTILL_CACHE") or Path.home() / ".cache" / "segdistill")


def _load_or_render(
    source: DataSource, selection: DataSelection, domain: str, progress: Progress | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Memory-mapped (images (N, H, W, 3), labels (N, H, W)) of one domain; rendered first where they are missing."""
    key = (RENDERER, source.size, source.seed, source.redraw, domain, selection.split, selection.first)
    stem = f"{domain}-{selection.split}-{hashlib.sha256(repr((key, selection.images)).encode()).hexdigest()[:16]}"
    paths = [cache_folder() / "world" / f"{stem}.{kind}.npy" for kind in ("images", "labels")]
    if not all(path.exists() for path in paths):
        rendered = _render(source, selection, domain, progress)
        for path, array in zip(paths, rendered, strict=True):
            try:
                write_atomic(path, lambda file, array=array: np.save(file, array))
            except OSError as error:
                raise UserError(
                    f"cannot write the image cache {path}: {error.strerror}; free space or set SEGDISTILL_CACHE"
                ) from None
    try:
        images, labels = (np.load(path, mmap_mode="r") for path in paths)
    except (ValueError, OSError) as error:
        raise UserError(f"damaged image cache {paths[0]}: {error}; delete it and start again") from None
    return images, labels


def _render(
    source: DataSource, selection: DataSelection, domain: str, progress: Progress | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    h, w = source.size
    images = np.empty((selection.images, h, w, 3), np.uint8)
    labels = np.empty((selection.images, h, w), np.uint8)
    for i in range(selection.images):
        rendered = world.render(
            domain,
            selection.split,
            selection.first + i,
            size=source.size,
            seed=source.seed,
            redraw=source.redraw,
        )
        images[i], labels[i] = rendered.image, rendered.label
        if progress and (i % 20 == 19 or i + 1 == selection.images):
            progress(f"rendering {domain}", i + 1, selection.images)
    return images, labels
