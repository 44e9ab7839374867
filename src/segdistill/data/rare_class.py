"""Rare-class sampling: Hoyer et al., DAFormer (CVPR 2022, arXiv 2111.14887), section 3.3.

With f_c the share of class c among all labelled pixels of the source:

    P(c) = exp((1 - f_c) / T) / sum_k exp((1 - f_k) / T)

Every sample draws a class c, then one of the images with at least ``min_pixels`` pixels of c, uniformly. Its crop is
drawn anew until it has ``crop_share`` x ``min_pixels`` pixels of c, at most ``tries`` times in all; the last one is
used in any case. Classes without such an image are not drawn. Pixels are counted in the labels at their own size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from segdistill.config import Config, UserError
from segdistill.data.dataset import Dataset, Progress
from segdistill.data.loader import StepBatches, loaded
from segdistill.files import read_signed, write_signed
from segdistill.ops import generator
from segdistill.types import Batch

FILE = "class_pixels.json"
"""In the stage's folder: pixels of every class in every image."""


class RareClassConfig(Config):
    """DAFormer's values, for labels of 1914 x 1052 pixels and crops of 512 x 512."""

    temperature: float = Field(0.01, gt=0, le=1000, description="T; the higher, the more even the classes")
    min_pixels: int = Field(3000, ge=1, le=10**9, description="least pixels of the drawn class in the image")
    crop_share: float = Field(
        0.5, ge=0, le=100, description="least pixels of the class in the crop, as a share of min_pixels (HRDA: 2.0)"
    )
    tries: int = Field(10, ge=1, le=1000, description="crops drawn at most")


class Draws:
    """Class and image of every slot, a function of (seed, slot). ``pixels``: per image and class."""

    def __init__(self, config: RareClassConfig, pixels: Tensor, seed: tuple[int | str, ...]) -> None:
        images = [torch.nonzero(column >= config.min_pixels)[:, 0].tolist() for column in pixels.T]
        self.images = {number: found for number, found in enumerate(images) if found}
        if not self.images:
            raise UserError(
                f"rare_class: no image has {config.min_pixels} pixels of any class, at most {int(pixels.max())}; "
                "lower min_pixels"
            )
        self.classes = list(self.images)
        self.shares = probabilities(pixels.sum(dim=0), config.temperature)[self.classes]
        self.seed = seed

    def at(self, slot: int) -> tuple[int, int]:
        """(class, index of the image)."""
        rng = generator(*self.seed, "rare class", slot)
        number = self.classes[int(torch.multinomial(self.shares, 1, generator=rng).item())]
        among = self.images[number]
        return number, among[int(torch.randint(len(among), (), generator=rng).item())]


def probabilities(pixels: Tensor, temperature: float) -> Tensor:
    """P(c) from the pixels of each class, float64."""
    shares = pixels.double() / pixels.sum().clamp(min=1)
    return ((1 - shares) / temperature).softmax(dim=0)


class RareClassBatches(StepBatches):
    """Batches whose images :class:`Draws` chooses; the same for any number of processes and workers."""

    def __init__(self, config: RareClassConfig, draws: Draws, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.config, self.draws = config, draws

    def indices(self, step: int) -> list[int]:
        """Indices of this process's samples of ``step``."""
        return [self.draws.at(step * self.batch + position)[1] for position in self.positions]

    def drawn(self, index: int, slot: int) -> Batch:
        """A crop of the image with enough pixels of the slot's class."""
        wanted, sample = self.draws.at(slot)[0], self.dataset[index]
        least = self.config.crop_share * self.config.min_pixels
        batch = self.transform(sample)
        for _ in range(self.config.tries - 1):
            if int((batch["label"] == wanted).sum()) >= least:
                break
            batch = self.transform(sample)
        return batch


class _ClassPixels(TorchDataset[Tensor]):
    """Pixels of each class, (K,) int64, of every image of a data set."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Tensor:
        label = self.dataset[index].label
        assert label is not None, "the task stage checks that its domains are labelled"
        return torch.from_numpy(np.bincount(label.reshape(-1), minlength=256)[: len(self.dataset.names)])


def count_pixels(dataset: Dataset, workers: int, progress: Progress) -> list[list[int]]:
    """Pixels of each class in every image; reads all labels once."""
    counts = []
    for row in loaded(_ClassPixels(dataset), range(len(dataset)), workers):
        counts.append(row.tolist())
        progress("counting classes", len(counts), len(dataset))
    return counts


def read_pixels(folder: Path, fingerprint: str) -> Tensor | None:
    """The counts (N, K) in ``folder``; None if there are none, or not those of ``fingerprint``."""
    path = folder / FILE
    found = read_signed(path) if path.is_file() else None
    if found is None or found.get("fingerprint") != fingerprint:
        return None
    return torch.tensor([list(map(int, row.split())) for row in found["pixels"]], dtype=torch.int64)


def write_pixels(folder: Path, fingerprint: str, names: Sequence[str], pixels: Sequence[Sequence[int]]) -> None:
    """Write the counts of the stage with this ``fingerprint``: a line per image, in the order of ``images.txt``."""
    totals = dict(zip(names, map(sum, zip(*pixels, strict=True)), strict=True))
    rows = [" ".join(map(str, row)) for row in pixels]
    write_signed(folder / FILE, {"fingerprint": fingerprint, "totals": totals, "pixels": rows})
