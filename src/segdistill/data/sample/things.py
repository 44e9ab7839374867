"""Objects of the world in the forms of data sets for instance segmentation. Each function yields (path, contents).

Objects with fewer than 12 visible pixels are written as crowds, which readers of the world take them for too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from segdistill.data.catalog.classes import CITYSCAPES_IDS
from segdistill.data.catalog.things import CITYSCAPES_NAMES
from segdistill.data.sample.own import coco_split
from segdistill.data.sample.pixels import jpeg, png
from segdistill.data.sample.scenes import Codec, Member, Scenes, edges, objects
from segdistill.world import CLASSES, Rendered

LEAST = 12
"""Fewest pixels of an object that is no crowd."""

OFFICIAL = {train_id: number for number, train_id in CITYSCAPES_IDS.items()}


def numbered(scene: Rendered) -> Iterator[tuple[int, int, NDArray[np.bool_]]]:
    """(class, number in its class, mask) of each object by class; number -1: too small."""
    counts: Counter[int] = Counter()
    for train_id, _, mask in objects(scene):
        small = mask.sum() < LEAST
        yield train_id, -1 if small else counts[train_id], mask
        counts[train_id] += not small


def cityscapes(scenes: Scenes, _: Codec, *, polygons: bool) -> Iterator[Member]:
    """leftImg8bit and gtFine with instanceIds or, with ``polygons``, with the boxes of the objects as polygons; images
    alone for the test split.
    """
    for split, city in (("train", "aachen"), ("val", "frankfurt"), ("test", "berlin")):
        for index, scene in scenes.of("clear", split):
            stem = f"{split}/{city}/{city}_000000_{index + 19:06d}"
            yield f"leftImg8bit/{stem}_leftImg8bit.png", png(scene.image)
            if split == "test":
                continue
            if polygons:
                yield f"gtFine/{stem}_gtFine_polygons.json", _polygons(scene)
            else:
                yield f"gtFine/{stem}_gtFine_instanceIds.png", png(_instance_ids(scene))


def ade20k(scenes: Scenes, codec: Codec) -> Iterator[Member]:
    """images and annotations_instance: red is the class, green the object's number in the image, 0 the rest.

    The format has no crowds: small objects are left out.
    """
    for folder, split in (("training", "train"), ("validation", "val")):
        for index, scene in scenes.of("clear", split):
            stem = f"ADE_{split}_{index + 1:08d}"
            ids, label = codec.ids(scene.label, index), np.zeros((*scene.label.shape, 3), np.uint8)
            masks = (mask for _, number, mask in numbered(scene) if number >= 0 and ids[mask].any())
            for number, mask in zip(range(1, 256), masks, strict=False):
                label[mask, 0], label[mask, 1] = ids[mask], number
            yield f"images/{folder}/{stem}.jpg", jpeg(scene.image)
            yield f"annotations_instance/{folder}/{stem}.png", png(label)


def coco(scenes: Scenes, _: Codec) -> Iterator[Member]:
    """train2017, val2017 and annotations/instances_*.json with the official ids of seven categories; run lengths."""
    for split in ("train", "val"):
        yield from coco_split(scenes, split, "", lambda one, ids: one | {"iscrowd": int(one["area"] < LEAST)} | ids)


def _instance_ids(scene: Rendered) -> NDArray[np.uint16]:
    """Plain ids of stuff, void (0) and crowds; id * 1000 + number of objects."""
    table = np.zeros(256, np.uint16)
    for train_id, number in OFFICIAL.items():
        table[train_id] = number
    out = table[scene.label]
    for train_id, number, mask in numbered(scene):
        if number >= 0:
            out[mask] = OFFICIAL[train_id] * 1000 + number
    return out


def _polygons(scene: Rendered) -> bytes:
    """The whole image as road, and the box of each object, the lowest last."""
    height, width = scene.label.shape
    entries = [("road", 0, 0, height - 1, width - 1)]
    for train_id, number, mask in numbered(scene):
        left, top, right, bottom = edges(mask)
        entries.append((CLASSES[train_id] + "group" * (number < 0), top, left, bottom, right))
    assert all(label.removesuffix("group") in CITYSCAPES_NAMES for label, *_ in entries)
    objects = [
        {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]]}
        for label, top, left, bottom, right in sorted(entries, key=lambda entry: (entry[0] != "road", entry[3]))
    ]
    return (json.dumps({"imgHeight": height, "imgWidth": width, "objects": objects}) + "\n").encode()
