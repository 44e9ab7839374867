"""A user's own data, as ``dataset.yaml`` describes it, and as COCO instances."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from segdistill.data.catalog import DATASETS
from segdistill.data.catalog.record import shifted
from segdistill.data.sample.pixels import jpeg, png
from segdistill.data.sample.scenes import Codec, Member, Scenes, edges
from segdistill.data.sample.scenes import objects as objects_of
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
            for train_id, number, mask in objects_of(scene):
                label[mask] = 1000 * (1 + THINGS.index(train_id)) + number
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
        yield from coco_split(scenes, split, "images/", lambda one, ids: {"image_id": ids["image_id"], **one, **ids})


def coco_split(
    scenes: Scenes, split: str, above: str, entry: Callable[[dict[str, Any], dict[str, int]], dict[str, Any]]
) -> Iterator[Member]:
    """The images of a split in the folder ``above``, and its annotation file.

    ``entry`` makes an annotation of an object (:func:`instances`) and its ids, ``image_id`` and ``id``.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, scene in scenes.of("clear", split):
        number = index + 1
        name = f"{number:012d}.jpg"
        height, width = scene.label.shape
        yield f"{above}{split}2017/{name}", jpeg(scene.image)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for one in instances(scene):
            annotations.append(entry(one, {"image_id": number, "id": len(annotations) + 1}))
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
    for train_id, _, mask in objects_of(scene):
        name = "person" if CLASSES[train_id] == "rider" else CLASSES[train_id]
        left, top, right, bottom = edges(mask)
        yield {
            "category_id": COCO_IDS[name],
            "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
            "area": int(mask.sum()),
            "bbox": [left, top, right - left + 1, bottom - top + 1],
            "iscrowd": 0,
        }
