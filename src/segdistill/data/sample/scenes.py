"""What samples show: images of the world, their classes turned into those of each data set by likeness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segdistill.data import world
from segdistill.data.world import Rendered


@dataclass(frozen=True)
class Scenes:
    """The images of one sample: ``images`` per split, ``size`` (height, width), drawn anew by ``seed``."""

    images: int
    size: tuple[int, int]
    seed: int = 0
    varied: bool = field(default=False)  # sizes differ from image to image, as in the official set; odd ones among them

    def of(self, domain: str, split: str) -> Iterator[tuple[int, Rendered]]:
        """(number, image) of a split: train, val or test."""
        for index in range(self.images):
            yield index, self.one(domain, split, index)

    def one(self, domain: str, split: str, index: int) -> Rendered:
        """Image ``index`` of a split."""
        height, width = self.size
        if self.varied:
            height, width = height + index % 3 + 1, width + 3 * (index % 5) + 1
        return world.render(domain, split, index, size=(height, width), seed=self.seed)


# World class -> the class of the data set that is most like it; what is left out becomes 255. Sets that have the 19
# Cityscapes classes need no entry. Street scenes stand in for what aerial and surgical images show: there a table only
# sees to it that every class is written.
LIKENESS: dict[str, Mapping[str, str]] = {
    "potsdam": {
        "road": "impervious_surface", "sidewalk": "impervious_surface", "building": "building", "wall": "building",
        "terrain": "low_vegetation", "vegetation": "tree", "car": "car", "truck": "car", "bus": "car", "train": "car",
        "motorcycle": "car", "bicycle": "clutter", "fence": "clutter", "pole": "clutter", "traffic light": "clutter",
        "traffic sign": "clutter", "person": "clutter", "rider": "clutter", "sky": "clutter",
    },
    "endovis18": {
        "sky": "background-tissue", "building": "kidney-parenchyma", "vegetation": "covered-kidney",
        "terrain": "small-intestine", "road": "instrument-shaft", "sidewalk": "instrument-wrist",
        "car": "instrument-clasper", "truck": "instrument-clasper", "bus": "instrument-clasper",
        "train": "instrument-clasper", "pole": "thread", "fence": "clamps", "traffic light": "suturing-needle",
        "traffic sign": "suturing-needle", "person": "suction-instrument", "rider": "suction-instrument",
        "motorcycle": "ultrasound-probe", "bicycle": "ultrasound-probe", "wall": "clamps",
    },
    "voc2012": {name: "background" for name in world.CLASSES} | {
        "person": "person", "rider": "person", "car": "car", "truck": "car", "bus": "bus", "train": "train",
        "motorcycle": "motorbike", "bicycle": "bicycle", "vegetation": "pottedplant",
    },
    "ade20k": {
        "road": "road", "sidewalk": "sidewalk", "building": "building", "wall": "wall", "fence": "fence",
        "pole": "pole", "traffic light": "traffic light", "traffic sign": "signboard", "vegetation": "tree",
        "terrain": "grass", "sky": "sky", "person": "person", "rider": "person", "car": "car", "truck": "truck",
        "bus": "bus", "motorcycle": "minibike", "bicycle": "bicycle",
    },
    "camvid": {
        "road": "road", "sidewalk": "pavement", "building": "building", "wall": "building", "fence": "fence",
        "pole": "pole", "traffic light": "sign", "traffic sign": "sign", "vegetation": "tree", "sky": "sky",
        "person": "pedestrian", "rider": "bicyclist", "bicycle": "bicyclist", "car": "car", "truck": "car",
        "bus": "car",
    },
}  # fmt: skip


def class_map(name: str, names: Sequence[str]) -> NDArray[np.uint8]:
    """(256,) world trainId -> class of data set ``name``, whose class names are ``names``; 255 stays 255."""
    likeness = LIKENESS.get(name, {own: own for own in world.CLASSES})
    lookup = np.full(256, world.IGNORE, np.uint8)
    for train_id, own in enumerate(world.CLASSES):
        if own in likeness:
            lookup[train_id] = names.index(likeness[own])
    return lookup
