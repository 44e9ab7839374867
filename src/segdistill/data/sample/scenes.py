"""Content of samples: images of the world, with classes mapped to similar ones of each data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill import world
from segdistill.data.catalog import IGNORE, RGB, DatasetRecord, Encoding
from segdistill.data.catalog.things import ADE_THINGS
from segdistill.world import Rendered

Member = tuple[str, bytes]
"""A file of a sample: its path below the data set's folder, with slashes, and its contents."""


@dataclass(frozen=True)
class Scenes:
    """The images of one sample: ``images`` per split, ``size`` (height, width), drawn anew by ``seed``.

    The lowest sixteenth of every label is ignored, like the bonnet of a recording car, so that the data set's value for
    ignored pixels occurs.
    """

    images: int
    size: tuple[int, int]
    seed: int = 0
    varied: bool = False  # sizes vary as in the official set, including odd ones

    def of(self, domain: str, split: str) -> Iterator[tuple[int, Rendered]]:
        """(number, image) of a split: train, val or test."""
        for index in range(self.images):
            yield index, self.one(domain, split, index)

    def one(self, domain: str, split: str, index: int) -> Rendered:
        """Image ``index`` of a split."""
        height, width = self.size
        if self.varied:
            height, width = height + index % 3 + 1, width + 3 * (index % 5) + 1
        scene = world.render(domain, split, index, size=(height, width), seed=self.seed)
        label, instance = scene.label.copy(), scene.instance.copy()
        label[-(height // 16) :], instance[-(height // 16) :] = IGNORE, 0
        return replace(scene, label=label, instance=instance)


def objects(scene: Rendered) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """(class, number in its class, mask) of each object of a scene, by class."""
    for train_id in world.THINGS:
        inside = scene.label == train_id
        for number, instance in enumerate(np.unique(scene.instance[inside])):
            yield train_id, number, inside & (scene.instance == instance)


def edges(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a mask: its first and last columns and rows."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


class Codec:
    """Converts world labels (H, W) to a data set's. If a class has several values, image k uses the k-th."""

    def __init__(self, likeness: str, record: DatasetRecord, encoding: Encoding | None) -> None:
        self.names, self.colors = record.classes, np.array(record.colors, np.uint8).reshape(-1, 3)
        self._class = class_map(likeness, record.classes)
        self._ids = _members(encoding.ids) if encoding else {}
        self._shades: dict[int, list[RGB]] = _members(encoding.colors) if encoding else {}

    @property
    def palette(self) -> NDArray[np.uint8]:
        """(stored ids, 3): the colour of each id's class, black if ignored."""
        stored = {value: index for index, values in self._ids.items() for value in values if index != IGNORE}
        colors = np.zeros((max(max(values) for values in self._ids.values() if values != [IGNORE]) + 1, 3), np.uint8)
        for value, index in stored.items():
            colors[value] = self.colors[index]
        return colors

    def classes(self, label: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The data set's classes 0, 1, ...; 255 is ignored."""
        return self._class[label]

    def ids(self, label: NDArray[np.uint8], turn: int = 0) -> NDArray[np.uint8]:
        """The numbers stored in the data set's files."""
        table = np.zeros(256, np.uint8)
        for index, values in self._ids.items():
            table[index] = values[turn % len(values)]
        return table[self.classes(label)]

    def colored(self, label: NDArray[np.uint8], turn: int = 0) -> NDArray[np.uint8]:
        """(H, W, 3): the colours stored in the data set's files."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.colors)] = self.colors
        for index, shades in self._shades.items():
            table[index] = shades[turn % len(shades)]
        return table[self.classes(label)]


def _members(table: Mapping[Any, int]) -> dict[int, list[Any]]:
    """Class -> its stored values; 255 is used for "ignored" only without another value."""
    out: dict[int, list[Any]] = {}
    for value, index in table.items():
        out.setdefault(index, []).append(value)
    if len(out.get(IGNORE, ())) > 1 and IGNORE in out[IGNORE]:
        out[IGNORE].remove(IGNORE)
    return out


_AERIAL = {
    "road": "impervious surface", "sidewalk": "impervious surface", "building": "building", "wall": "building",
    "terrain": "low vegetation", "vegetation": "tree", "car": "car", "truck": "car", "bus": "car", "train": "car",
    "motorcycle": "car", "bicycle": "clutter", "fence": "clutter", "pole": "clutter", "traffic light": "clutter",
    "traffic sign": "clutter", "person": "clutter", "rider": "clutter", "sky": "clutter",
}  # fmt: skip
# World class -> the most similar class of the data set; missing classes are ignored. Sets with the 19 Cityscapes
# classes need no entry. For aerial and surgical images the tables only ensure that every class occurs.
LIKENESS: dict[str, Mapping[str, str]] = {
    "potsdam": _AERIAL,
    "vaihingen": _AERIAL,
    "endovis18": {  # it has no ignored pixels
        "ignored": "background tissue",
        "sky": "background tissue", "building": "kidney parenchyma", "vegetation": "covered kidney",
        "terrain": "small intestine", "road": "instrument shaft", "sidewalk": "instrument wrist",
        "car": "instrument clasper", "truck": "instrument clasper", "bus": "instrument clasper",
        "train": "instrument clasper", "pole": "thread", "fence": "clamps", "traffic light": "suturing needle",
        "traffic sign": "suturing needle", "person": "suction instrument", "rider": "suction instrument",
        "motorcycle": "ultrasound probe", "bicycle": "ultrasound probe", "wall": "clamps",
    },
    "voc2012": dict.fromkeys(world.CLASSES, "background") | {
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
        "pole": "pole", "traffic light": "sign symbol", "traffic sign": "sign symbol", "vegetation": "tree",
        "sky": "sky", "person": "pedestrian", "rider": "bicyclist", "bicycle": "bicyclist", "car": "car",
        "truck": "car", "bus": "car",
    },
}  # fmt: skip


LIKENESS["ade20k_instances"] = {own: to for own, to in LIKENESS["ade20k"].items() if to in ADE_THINGS}


def class_map(name: str, names: tuple[str, ...]) -> NDArray[np.uint8]:
    """(256,) world trainId -> class of data set ``name``, whose class names are ``names``; 255 if there is none."""
    likeness = LIKENESS.get(name, {own: own for own in world.CLASSES if own in names})
    lookup = np.full(256, IGNORE, np.uint8)
    for train_id, own in enumerate(world.CLASSES):
        if own in likeness:
            lookup[train_id] = names.index(likeness[own])
    if "ignored" in likeness:
        lookup[IGNORE] = names.index(likeness["ignored"])
    return lookup
