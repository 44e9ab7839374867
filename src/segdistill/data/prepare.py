"""Conversions that some data sets need once: halves, clips and trainId labels, written beside nothing official.

The official files are only read. What is written is a layout that the catalog reads; every file is whole or absent,
and a rerun makes only what is missing or damaged, so an interruption costs nothing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdistill.config import UserError, choose
from segdistill.data import aerial
from segdistill.data.dataset import Progress
from segdistill.files import write_atomic


@dataclass(frozen=True)
class Counts:
    """How many files were made, and how many were there already and whole."""

    made: int = 0
    kept: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.made + other.made, self.kept + other.kept)


def half_image(data: bytes) -> bytes:
    """Half the size (rounded down), bicubic, as JPEG of Pillow's default quality: what the authors evaluate on."""
    image = Image.open(io.BytesIO(data))
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    return _encoded(half, "JPEG")


def half_label(label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) -> (H // 2, W // 2), nearest."""
    image = Image.fromarray(label)
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.Resampling.NEAREST))


def whole(path: Path) -> bool:
    """Whether ``path`` is an image that can be read to its end."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for absent and damaged files
        return False
    return True


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _work_through(
    convert: Callable[[J], Counts], jobs: Iterable[J], total: int, processes: int, progress: Progress | None, what: str
) -> Counts:
    """``convert`` every job in ``processes`` processes; the first failure stops all and is raised.

    At most four jobs per process wait at a time, so that an interruption ends soon.
    """
