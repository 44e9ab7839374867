"""Data sets whose objects are pseudo-labels, and labelled and pseudo-labelled images in one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segdistill.config import UserError, short
from segdistill.data.catalog.record import class_colors
from segdistill.data.dataset import Dataset, Sample
from segdistill.data.pseudo import PseudoLabels, read_pseudo
from segdistill.objects import Objects


def with_classes(dataset: Dataset, names: Callable[[], Sequence[str]]) -> Dataset:
    """``dataset``, with the classes ``names`` and colours for them if it has none because its images have no labels."""
    if not len(dataset.names):
        dataset.names = tuple(names())
        dataset.colors = np.asarray(class_colors(len(dataset.names)), np.uint8).reshape(-1, 3)
    return dataset


class PseudoLabelled(Dataset):
    """The images of ``dataset`` with the objects of the file ``labels``; without a file they have none.

    Pseudo-labels with a lower score than ``score``, or fewer visible pixels than ``least``, are left out. The images'
    own labels are not used.
    """

    objects = True

    def __init__(self, dataset: Dataset, labels: Path | None, *, score: float = 0.0, least: int = 1) -> None:
        self._dataset, self._labels, self._score, self._least = dataset, labels, score, least
        self.names, self.colors = dataset.names, dataset.colors
        self.sizes, self.weights = dataset.sizes, dataset.weights
        self._images = tuple(dataset.listing())
        self._read: PseudoLabels | None = None
        if labels is not None:
            found = self._file()
            missing = [image for image in self._images if image not in found]
            if missing:
                raise UserError(
                    f"{labels} has no pseudo-labels for {len(missing)} of {len(self._images)} images, such as "
                    f"{missing[0]}; predict them, or select fewer images"
                )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        sample = self._dataset[index]
        size = (sample.image.shape[0], sample.image.shape[1])
        objects = Objects(np.zeros((1, *size), np.int32), np.zeros(0, np.int64), np.zeros(0, bool))
        if self._labels is not None:
            objects = self._file().objects(self._images[index], score=self._score, least=self._least)
        if objects.size != size:
            raise UserError(
                f"{self._labels}: the pseudo-labels of '{self._images[index]}' have the size {objects.size}, the image "
                f"has {size} (height, width); predict again"
            )
        return replace(sample, label=None, objects=objects)

    def listing(self) -> Iterator[str]:
        """``domain/name`` of every image."""
        return iter(self._images)

    def _file(self) -> PseudoLabels:
        """The file's content, read once in each process."""
        if self._read is None:
            assert self._labels is not None
            self._read = read_pseudo(self._labels, self.names)
        return self._read

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: without the content of the file."""
        return self.__dict__ | {"_read": None}


class Mixed(Dataset):
    """The images of ``first``, then those of ``second``; domains keep their shares."""

    objects = True

    def __init__(self, first: Dataset, second: Dataset) -> None:
        if tuple(first.names) != tuple(second.names):
            raise UserError(
                f"images with the classes {short(', '.join(first.names))} cannot be mixed with images with the classes "
                f"{short(', '.join(second.names))}: choose domains of one label space"
            )
        self._parts, self.names, self.colors = (first, second), first.names, first.colors
        self.sizes = (*first.sizes, *second.sizes)
        if first.weights or second.weights:
            self.weights = tuple(share for part in self._parts for share in _shares(part))

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        first, second = self._parts
        return first[index] if index < len(first) else second[index - len(first)]

    def listing(self) -> Iterator[str]:
        """``domain/name`` of every image."""
        return itertools.chain.from_iterable(part.listing() for part in self._parts)


def _shares(dataset: Dataset) -> list[float]:
    """Images per epoch of each domain."""
    weights = dataset.weights or dataset.sizes
    return [len(dataset) * weight / sum(weights) for weight in weights]
