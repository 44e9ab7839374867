"""Counts of the objects of a data set. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from segdistill.objects import Objects

SMALL, LARGE = 32**2, 96**2
"""Pixels from which an object is medium and large, as in COCO's evaluation."""


@dataclass
class Census:
    """Objects of ``images``. Crowds are counted separately and excluded from all other counts."""

    images: int = 0
    per_image: Counter[int] = field(default_factory=Counter)  # number of objects -> images
    classes: Counter[int] = field(default_factory=Counter)  # class -> objects
    crowds: int = 0
    small: int = 0
    medium: int = 0
    large: int = 0
    one_pixel: int = 0
    pixelless: int = 0
    overlapping: int = 0  # images in which objects overlap

    def add(self, objects: Objects) -> None:
        """Count the objects of one more image."""
        single = ~objects.crowd
        areas = objects.areas() if objects.boxes is None or objects.ids.any() else objects.box_areas()
        areas = areas[single]
        self.images += 1
        self.per_image[len(areas)] += 1
        self.classes.update(objects.classes[single].tolist())
        self.crowds += int(objects.crowd.sum())
        self.small += int((areas < SMALL).sum())
        self.large += int((areas >= LARGE).sum())
        self.medium += int(((areas >= SMALL) & (areas < LARGE)).sum())
        self.one_pixel += int((areas == 1).sum())
        self.pixelless += int((areas == 0).sum())
        countable = np.concatenate([[False], single])
        self.overlapping += len(objects.ids) > 1 and bool((countable[objects.ids].sum(axis=0) > 1).any())

    def join(self, other: Census) -> None:
        """Count what ``other`` has counted."""
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if isinstance(value, Counter):
                mine.update(value)
            else:
                setattr(self, name, mine + value)

    @property
    def objects(self) -> int:
        """Objects of all images."""
        return sum(number * images for number, images in self.per_image.items())

    @property
    def most(self) -> int:
        """Largest number of objects of an image."""
        return max(self.per_image, default=0)
