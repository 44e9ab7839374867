"""Whatever is wrong with a description, an annotation file, an image, a label or an archive: `data check` and opening
end in success or in one line, never in another exception.

SEGDISTILL_EXAMPLES=2000 tries more, and other examples each time.
"""

from __future__ import annotations

import contextlib
import json
import os

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mutations import damaged, spoiled
from odd_files import COCO, HALVES, H, W, encoded, grey_tiff, put
from segdistill.config import UserError
from segdistill.data.archives import Folder, open_store
from segdistill.data.catalog import Encoding
from segdistill.data.check import check
from segdistill.data.coco_file import read_coco
from segdistill.data.dataset import DataSelection
from segdistill.data.decode import read_rgb
from segdistill.data.files import FilesSource
from segdistill.data.labels import LabelReader
from segdistill.data.own import own_place
from tiny_sets import picture, put_together

IDS = Encoding(ids={number: number for number in range(16)} | {255: 255})
LONGER = int(os.environ.get("SEGDISTILL_EXAMPLES", "0"))


def examples(count):
    """The suite's few examples are the same each time; a longer run tries others."""
    return settings(
        max_examples=LONGER or count,
        derandomize=not LONGER,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@pytest.fixture
def farm(tmp_path):
    for split in ("train", "val"):
        put(tmp_path / f"images/{split}/a.png", encoded(picture(1, (H, W))))
        put(tmp_path / f"labels/{split}/a.png", encoded(HALVES))
        put(tmp_path / f"{split}.txt", b"train/a\n")
    for name in "ab":
        put(tmp_path / f"images/{name}.jpg", encoded(picture(1, (H, W)), "JPEG"))
    put(tmp_path / "train.json", json.dumps(COCO).encode())
    return tmp_path


def one_line(error):
    text = str(error)
    assert text
    assert "\n" not in text
    text.encode()  # it can be printed


def try_out(path):
    """Check and open: success or one line, and what the check calls usable can be opened."""
    usable = None
    try:
        outcome = check(own_place("farm", path))
        usable = outcome.ok and any(split.split == "train" for split in outcome.splits)
        for split in outcome.splits:
            for line in (*split.faults, *split.doubts):
                one_line(line)
    except UserError as error:
        one_line(error)
    source = FilesSource(sets={"farm": path})
    selection = DataSelection(domains=("farm",))
    lines = source.problems(selection, labelled=False)
    for line in lines:
        one_line(line)
    if usable:
        assert not lines
    try:
        list(source.open(selection))
        source.doubts(selection, labelled=True)
        source.facts(selection)
        json.dumps(source.facts(selection))
    except UserError as error:
        one_line(error)
        assert not usable


OWN = {
    "title": "farm", "classes": ["a", "b"], "colors": [[1, 2, 3], [4, 5, 6]], "layout": "folders", "images": "images",
    "labels": "labels", "label_suffix": "", "splits": {"train": "train", "val": "val"}, "coloured": False,
    "ids": {0: "a", 1: 1, 7: 255}, "ignore": [255], "resize": [8, 12], "licence": "mine",
}  # fmt: skip
IN_LISTS = OWN | {"splits": {"train": "train.txt"}}
IN_COCO = {"layout": "coco", "annotations": {"train": "train.json"}, "background": "ground", "splits": {"train": "."},
           "images": "images"}  # fmt: skip


@examples(120)
@given(spoiled_values=st.sampled_from([OWN, IN_LISTS, IN_COCO]).flatmap(spoiled))
def test_a_spoiled_description(farm, spoiled_values):
    put(farm / "dataset.yaml", yaml.safe_dump(spoiled_values, allow_unicode=True).encode("utf-8", "surrogatepass"))
    try_out(farm / "dataset.yaml")


@examples(60)
@given(content=st.sampled_from([OWN, IN_COCO]).flatmap(lambda tree: damaged(yaml.safe_dump(tree).encode())))
def test_a_damaged_description(farm, content):
    put(farm / "dataset.yaml", content)
    try_out(farm / "dataset.yaml")


@examples(150)
@given(content=spoiled(COCO, most=3))
def test_a_spoiled_annotation_file(farm, content):
    put(farm / "train.json", json.dumps(content).encode())
    put(farm / "dataset.yaml", yaml.safe_dump(IN_COCO).encode())
    try_out(farm / "dataset.yaml")


@examples(100)
@given(content=damaged(json.dumps(COCO).encode()))
def test_a_damaged_annotation_file(tmp_path, content):
    put(tmp_path / "train.json", content)
    try:
        read_coco(Folder(tmp_path), "train.json")
    except UserError as error:
        one_line(error)


PICTURE = picture(1, (H, W))
IMAGES = {
    "png": encoded(PICTURE),
    "grey": encoded(HALVES),
    "palette": encoded(np.asarray(Image.fromarray(PICTURE).quantize(8))),
    "jpeg": encoded(PICTURE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "webp": encoded(PICTURE, "WEBP", lossless=True),
    "lossy webp": encoded(PICTURE, "WEBP"),
    "bmp": encoded(PICTURE, "BMP"),
    "tiff": encoded(PICTURE, "TIFF"),
    "lzw": encoded(HALVES, "TIFF", compression="tiff_lzw"),
    "low": grey_tiff(HALVES, 4, 0, tag_274=6),
    "wide": encoded(HALVES.astype(np.uint16)),
}


@examples(400)
@given(content=st.sampled_from(sorted(IMAGES)).flatmap(lambda name: damaged(IMAGES[name])))
def test_a_damaged_image_or_label(content):
    for read in (read_rgb, LabelReader(IDS)):
        try:
            assert read(content, "x").dtype == np.uint8
        except UserError as error:
            one_line(error)


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_a_damaged_archive(tmp_path, name):
    files = {}
    for part in ("one/a.png", "b.txt"):
        put(tmp_path / part, part.encode() * 20)
        files[part] = tmp_path / part
    put_together(tmp_path / name, files)
    whole = (tmp_path / name).read_bytes()

    @examples(80)
    @given(content=damaged(whole))
    def attempt(content):
        put(tmp_path / name, content)
        try:
            store = open_store(tmp_path / name)
        except UserError as error:
            one_line(error)
            return
        for member in store.names():
            with contextlib.suppress(UserError):
                store.read(member)

    attempt()
