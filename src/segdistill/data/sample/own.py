"""A user's own data, as ``dataset.yaml`` describes it, and as COCO instances."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.data.sample.pixels import jpeg
from segdistill.data.sample.scenes import Codec, Member, Scenes
from segdistill.data.world import CLASSES, THINGS, Rendered

COCO_IDS = {"person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "bus": 6, "train": 7, "truck": 8}  # COCO's own


def coco(scenes: Scenes, _: Codec) -> Iterator[Member]:
    """images/{train,val}2017 and annotations/instances_*.json with run-length masks: exact, where polygons are not."""
    for split in ("train", "val"):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, scene in scenes.of("clear", split):
            number = index + 1
            name = f"{number:012d}.jpg"
            height, width = scene.label.shape
            yield f"images/{split}2017/{name}", jpeg(scene.image)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            annotations += [{"image_id": number, **one} for one in _instances(scene)]
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


def _instances(scene: Rendered) -> Iterator[dict[str, Any]]:
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
