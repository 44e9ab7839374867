"""Data sets with objects, for instance segmentation (spec 5 of the semi-supervised distillation)."""

from __future__ import annotations

from typing import Any

from segdistill.data.catalog.classes import ADE, CITYSCAPES_IDS, DRIVING, DRIVING_COLORS, MAPILLARY_IDS, SYNTHIA_IDS
from segdistill.data.catalog.driving import CITYSCAPES, MAPILLARY, SYNTHIA
from segdistill.data.catalog.others import ADE20K
from segdistill.data.catalog.record import (
    IGNORE,
    DatasetRecord,
    Encoding,
    Files,
    Layout,
    ObjectNumbers,
    class_colors,
    coco_files,
)

CITYSCAPES_NAMES = {
    name: number
    for number, name in enumerate(
        """unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, road, sidewalk, parking,
        rail track, building, wall, fence, guard rail, bridge, tunnel, pole, polegroup, traffic light, traffic sign,
        vegetation, terrain, sky, person, rider, car, truck, bus, caravan, trailer, train, motorcycle,
        bicycle""".replace("\n       ", "").split(", ")
    )
} | {"license plate": -1}
"""Cityscapes' labels -> ids."""

COUNTED = ("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle")
"""Its labels whose objects are numbered."""

THINGS, THING_COLORS = DRIVING[11:], DRIVING_COLORS[11:]
"""The 8 classes of its instance benchmark."""


def cityscapes_encoding(classes: tuple[str, ...] = THINGS) -> Encoding:
    """InstanceIds: the ids of ``classes``; void are those that its evaluation ignores, the other ids are no objects."""
    things = {CITYSCAPES_NAMES[name]: number for number, name in enumerate(classes)}
    void = {number: IGNORE for number in range(34) if number not in CITYSCAPES_IDS}
    stuff = frozenset(CITYSCAPES_IDS) - set(things)
    return Encoding(ids=void | things, objects=ObjectNumbers(stuff=stuff))


def _cityscapes(kind: str) -> dict[Any, Files]:
    splits: Any = CITYSCAPES.layouts[1].splits
    return {
        split: Files(files.images, files.labels and files.labels.replace("labelIds.png", kind))
        for split, files in splits.items()
    }


CITYSCAPES_INSTANCES = DatasetRecord(
    title="Cityscapes (fine), objects of 8 classes",
    folders=("cityscapes_instances", *CITYSCAPES.folders),
    layouts=(
        Layout("instanceIds", _cityscapes("instanceIds.png"), cityscapes_encoding(), CITYSCAPES.layouts[1].archives),
        Layout("polygons", _cityscapes("polygons.json"), cityscapes_encoding(), CITYSCAPES.layouts[1].archives),
    ),
    classes=THINGS,
    colors=THING_COLORS,
    size=CITYSCAPES.size,
    evaluation="val",
    counts=CITYSCAPES.counts,
    licence=CITYSCAPES.licence,
    source=CITYSCAPES.source,
)

_SYNTHIA_THINGS = {number: to - 11 for number, to in SYNTHIA_IDS.items() if to >= 11}
SYNTHIA_INSTANCES = DatasetRecord(
    title="SYNTHIA-RAND-CITYSCAPES, objects of 8 classes",
    folders=("synthia_instances", *SYNTHIA.folders),
    layouts=tuple(
        Layout(
            layout.title,
            layout.splits,
            Encoding(  # the number is in the second of three 16-bit channels
                ids={0: IGNORE} | _SYNTHIA_THINGS,
                channel=0,
                objects=ObjectNumbers(2848, 1, "zero", frozenset(range(1, 23)) - set(_SYNTHIA_THINGS)),
            ),
        )
        for layout in SYNTHIA.layouts
        if layout.title == "official"
    ),
    classes=THINGS,
    colors=THING_COLORS,
    size=SYNTHIA.size,
    counts=SYNTHIA.counts,
    licence=SYNTHIA.licence,
    source=SYNTHIA.source,
    note=SYNTHIA.note,
)

_MAPILLARY_THINGS = {number: to - 11 for number, to in MAPILLARY_IDS.items() if to >= 11}
MAPILLARY_INSTANCES = DatasetRecord(
    title="Mapillary Vistas v1.2, objects of 8 classes",
    folders=("mapillary_instances", *MAPILLARY.folders),
    layouts=tuple(
        Layout(
            layout.title,
            {
                split: Files(files.images, files.labels and files.labels.replace("labels/", "instances/"))
                for split, files in layout.splits.items()
            },
            Encoding(  # 16 bits: id * 256 + number, for stuff too; ids that are no class of Cityscapes are void
                ids={number: IGNORE for number in range(66) if number not in MAPILLARY_IDS} | _MAPILLARY_THINGS,
                objects=ObjectNumbers(256, crowds="none", stuff=frozenset(MAPILLARY_IDS) - set(_MAPILLARY_THINGS)),
            ),
            layout.archives,
        )
        for layout in MAPILLARY.layouts
        if layout.archives
    ),
    classes=THINGS,
    colors=THING_COLORS,
    size=None,
    evaluation="val",
    counts=MAPILLARY.counts,
    licence=MAPILLARY.licence,
    source=MAPILLARY.source,
)

# Ids of SceneParse150 of the 100 things, in the order of their ids 1 to 100 in annotations_instance.
_ADE_THINGS = (
    8, 9, 11, 13, 15, 16, 19, 20, 21, 23, 24, 25, 28, 31, 32, 33, 34, 36, 37, 38, 39, 40, 42, 43, 44, 45, 46, 48, 50,
    51, 54, 56, 57, 58, 59, 63, 65, 66, 67, 68, 70, 71, 72, 73, 74, 75, 76, 77, 79, 81, 82, 83, 84, 86, 87, 88, 89, 90,
    91, 93, 94, 96, 98, 99, 103, 104, 105, 108, 109, 111, 112, 113, 116, 117, 119, 120, 121, 122, 124, 125, 126, 127,
    128, 130, 131, 133, 134, 135, 136, 137, 138, 139, 140, 143, 144, 145, 147, 148, 149, 150,
)  # fmt: skip
ADE_THINGS = tuple(ADE[number - 1] for number in _ADE_THINGS)
ADE20K_INSTANCES = DatasetRecord(
    title="ADE20K instance segmentation (100 classes)",
    folders=("ade20k_instances", *ADE20K.folders),
    layouts=(
        Layout(
            "official",
            {
                "train": Files("images/training/{stem}.jpg", "annotations_instance/training/{stem}.png"),
                "val": Files("images/validation/{stem}.jpg", "annotations_instance/validation/{stem}.png"),
            },
            Encoding(
                ids={number + 1: number for number in range(len(ADE_THINGS))},
                channel=0,
                objects=ObjectNumbers(256, 1, "zero"),
            ),
            ("ADEChallengeData2016.zip", "annotations_instance.tar"),
        ),
    ),
    classes=ADE_THINGS,
    colors=class_colors(len(ADE_THINGS)),  # for pictures only
    size=None,
    evaluation="val",
    counts=ADE20K.counts,
    licence=ADE20K.licence,
    source="http://sceneparsing.csail.mit.edu/ and annotations_instance.tar of the Places Challenge 2017",
)

COCO = tuple(
    """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
    parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella,
    handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
    broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
    teddy bear, hair drier, toothbrush""".replace("\n   ", "").split(", ")
)
COCO_INSTANCES = DatasetRecord(
    title="COCO 2017 (80 classes)",
    folders=("coco2017", "coco", "COCO"),
    layouts=(
        Layout(
            "official",
            {"train": coco_files("train", "train2017"), "val": coco_files("val", "val2017")},
            Encoding(ids={IGNORE: IGNORE} | {i: i for i in range(len(COCO))}, objects=ObjectNumbers()),
            ("train2017.zip", "val2017.zip", "annotations_trainval2017.zip"),
            annotations={split: f"annotations/instances_{split}2017.json" for split in ("train", "val")},
        ),
    ),
    classes=COCO,
    colors=class_colors(len(COCO)),
    size=None,
    evaluation="val",
    counts={"train": 118287, "val": 5000},
    licence="annotations: CC BY 4.0; the photographs keep their Flickr terms",
    source="https://cocodataset.org/#download (2017 Train, 2017 Val, 2017 Train/Val annotations)",
)
