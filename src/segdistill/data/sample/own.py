"""A user's own data, as ``dataset.yaml`` describes it, and as COCO instances."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from segdistill.data.catalog import DATASETS
from segdistill.data.catalog.record import shifted
from segdistill.data.sample.pixels import jpeg, png
from segdistill.data.sample.scenes import Codec, Member, Scenes
from segdistill.world import CLASSES, THINGS, Rendered

COCO_IDS = {"person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "bus": 6, "train": 7, "truck": 8}  # COCO's own


def custom(scenes: Scenes, _: Codec, *, objects: bool = False) -> Iterator[Member]:
    """images and labels in folders per split; in the labels 0 is unlabelled and 1 to 19 are the classes.

    ``objects``: 0 is no object, and the objects of classes 1 to 8 are numbered, 1000 * class + number.
    """
    if objects:
        yield from _objects(scenes)
        return
    record = DATASETS["cityscapes"]
    codec = Codec("custom", record, shifted(len(record.classes)))
    settings = {
        "title": "a sample of the built-in world",
        "classes": list(record.classes),
        "colors": [list(color) for color in record.colors],
        "ids": {number + 1: name for number, name in enumerate(record.classes)},
        "ignore": [0],
    }
    yield "dataset.yaml", _yaml(settings)
    for split in ("train", "val"):
        for index, scene in scenes.of("clear", split):
            yield f"images/{split}/{index:04d}.jpg", jpeg(scene.image)
            yield f"labels/{split}/{index:04d}.png", png(codec.ids(scene.label, index))


def _objects(scenes: Scenes) -> Iterator[Member]:
    names = [CLASSES[train_id] for train_id in THINGS]
    yield "dataset.yaml", _yaml({"title": "objects of the built-in world", "classes": names, "objects": True})
    for split in ("train", "val"):
        for index, scene in scenes.of("clear", split):
            label = np.zeros(scene.label.shape, np.uint16)
            for number, train_id in enumerate(THINGS, start=1):
                inside = scene.label == train_id
                for count, instance in enumerate(np.unique(scene.instance[inside])):
                    label[inside & (scene.instance == instance)] = 1000 * number + count
            yield f"images/{split}/{index:04d}.jpg", jpeg(scene.image)
            yield f"labels/{split}/{index:04d}.png", png(label)


def coco(scenes: Scenes, _: Codec, *, objects: bool = False) -> Iterator[Member]:
    """images/{train,val}2017 and annotations/instances_*.json with run-length masks: exact, where polygons are not.

    Riders count as persons; stuff is ignored. ``dataset.yaml`` describes it to our reader: as class maps, or with
    ``objects``.
    """
    settings = {
        "title": "a sample of the built-in world in COCO's form",
        "layout": "coco",
        "annotations": {split: f"annotations/instances_{split}2017.json" for split in ("train", "val")},
        "splits": {split: f"{split}2017" for split in ("train", "val")},
    } | ({"objects": True} if objects else {})
    yield "dataset.yaml", _yaml(settings)
    for split in ("train", "val"):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, scene in scenes.of("clear", split):
            number = index + 1
            name = f"{number:012d}.jpg"
            height, width = scene.label.shape
            yield f"images/{split}2017/{name}", jpeg(scene.image)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            annotations += [{"image_id": number, **one} for one in instances(scene)]
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
        categories = [{"id": number, "name": name} for name, number in COCO_IDS.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        yield f"annotations/instances_{split}2017.json", (json.dumps(content) + "\n").encode()


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths of a mask: column by column, the first run counts zeros."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *edges, mask.size]).tolist()


def _yaml(settings: dict[str, Any]) -> bytes:
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=120).encode()


def instances(scene: Rendered) -> Iterator[dict[str, Any]]:
    """Annotations of the objects, without ids."""
    for train_id in THINGS:
        name = "person" if CLASSES[train_id] == "rider" else CLASSES[train_id]
        inside = scene.label == train_id
        for instance in np.unique(scene.instance[inside]):
            mask = inside & (scene.instance == instance)
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top = int(columns[0]), int(rows[0])
            box = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
            yield {
                "category_id": COCO_IDS[name],
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
                "area": int(mask.sum()),
                "bbox": box,
                "iscrowd": 0,
            }
