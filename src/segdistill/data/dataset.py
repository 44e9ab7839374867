"""Data sets as sequences of samples. A sample's domain is a field, never a piece of its path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from segdistill.config import Config

Progress = Callable[[str, int, int], None]
"""Called with (what is being made, done, total)."""

Split = Literal["train", "val", "test", "pretrain"]


class DataSelection(Config):
    """Which images of the source a stage reads."""

    domains: tuple[str, ...] = Field(min_length=1)
    split: Split = "train"
    images: int | None = Field(None, ge=1, description="number of images per domain; None: all (not of the world)")
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


class DataSource(Config):
    """Where a run's images come from; shared by its stages and its evaluation. Each kind is a subclass."""

    size: tuple[int, int] = Field((64, 128), description="height and width in pixels that networks are trained on")

    def open(self, selection: DataSelection, progress: Progress | None = None) -> Dataset:
        """The images that ``selection`` names, prepared where they must be."""
        raise NotImplementedError

    def problems(self, selection: DataSelection, *, labelled: bool) -> list[str]:
        """One line for each thing that keeps ``selection`` from being read here, with labels where asked for."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What the images depend on: part of a stage's fingerprint."""
        return self.model_dump(mode="json")
