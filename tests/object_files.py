"""Small data sets with objects, written file by file, and the objects that they must give."""

from __future__ import annotations

import json

import numpy as np
import yaml
from PIL import Image

from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource

SIZE = (32, 64)
NOTHING, VOID = -1, -2
"""Meanings of values that are no objects."""


def drawn(codes, size=SIZE, seed=0):
    """A map of values: blocks of 4 pixels, each of one of ``codes``, every code among them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, len(codes), (size[0] // 4, size[1] // 4))
    blocks.flat[: len(codes)] = np.arange(len(codes))
    return np.array(codes)[blocks].repeat(4, 0).repeat(4, 1)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def picture(path, size=SIZE):
    save(path, np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))


def read(root, name, split="val", **sets):
    return FilesSource(root=root, sets=sets).open(DataSelection(domains=(name,), split=split))


def assert_objects(sample, values, meanings):
    """``meanings``: value -> (class, crowd), NOTHING or VOID; one object for each value of an object."""
    objects, size = sample.objects, values.shape
    present = [value for value in sorted(meanings) if (values == value).any() and isinstance(meanings[value], tuple)]
    assert [(int(c), bool(crowd)) for c, crowd in zip(objects.classes, objects.crowd, strict=True)] == [
        meanings[value] for value in present
    ]
    assert len(objects.ids) == 1
    for number, value in enumerate(present, 1):
        assert np.array_equal(objects.ids[0] == number, values == value)
    void = np.isin(values, [value for value, meaning in meanings.items() if meaning == VOID])
    assert np.array_equal(np.zeros(size, bool) if objects.void is None else objects.void, void)
    label = np.full(size, 255)
    for value in present:
        if not meanings[value][1]:
            label[values == value] = meanings[value][0]
    assert np.array_equal(sample.label, label)


def city_file(root, kind, split="val", stem="ulm_0"):
    return root / f"cityscapes/gtFine/{split}/ulm/{stem}_gtFine_{kind}"


def city_image(root, split="val", stem="ulm_0"):
    picture(root / f"cityscapes/leftImg8bit/{split}/ulm/{stem}_leftImg8bit.png")


def polygons(path, entries, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = [{"label": label, "polygon": polygon, **more} for label, polygon, more in entries]
    path.write_text(json.dumps({"imgHeight": size[0], "imgWidth": size[1], "objects": objects}))


def box(top, left, bottom, right):
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def coco(root, annotations, *, size=SIZE, split="val", images=1, categories=None):
    """A small COCO 2017; ``annotations``: (image, category id, segmentation, iscrowd)."""
    entries = [{"id": number, "file_name": f"{number:012d}.jpg", "height": size[0], "width": size[1]}
               for number in range(1, images + 1)]  # fmt: skip
    for entry in entries:
        picture(root / f"{split}2017" / entry["file_name"], size)
    keys = ("image_id", "category_id", "segmentation", "iscrowd")
    objects = [{"id": number, "area": 1, "bbox": [0, 0, 1, 1], **dict(zip(keys, values, strict=True))}
               for number, values in enumerate(annotations)]  # fmt: skip
    path = root / f"annotations/instances_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = categories or {1: "person", 3: "car", 90: "toothbrush"}
    content = {"images": entries, "annotations": objects,
               "categories": [{"id": number, "name": name} for number, name in categories.items()]}  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def rectangle(top, left, bottom, right):
    """A polygon that covers the pixels of [top, bottom) x [left, right)."""
    return [[float(each) for each in (left, top, right, top, right, bottom, left, bottom)]]


def mask(top, left, bottom, right, size=SIZE):
    out = np.zeros(size, bool)
    out[top:bottom, left:right] = True
    return out


def own(root, values, image="a", **settings):
    picture(root / f"images/val/{image}.png", values.shape)
    if settings.get("labels", "") is not None:
        save(root / f"labels/val/{image}.png", values.astype(np.uint16))
    (root / "dataset.yaml").write_text(yaml.safe_dump({"splits": {"val": "val"}, "objects": True, **settings}))
    return root / "dataset.yaml"
