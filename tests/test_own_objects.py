"""The user's own label files with objects: numbering, settings, orientation."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from PIL import Image

from object_files import NOTHING, SIZE, VOID, assert_objects, city_file, city_image, drawn, own, read, save
from segdistill.config import UserError
from segdistill.data.archives import BadSample
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource


@pytest.mark.parametrize(
    ("settings", "meanings"),
    [
        ({}, {0: NOTHING, 255: VOID, 1: (0, True), 1000: (0, False), 1001: (0, False), 2017: (1, False)}),
        ({"divisor": 100}, {0: NOTHING, 2: (1, True), 100: (0, False), 255: (1, False), 299: (1, False)}),
        (
            {"ids": {7: "apple", 9: "leaf", 8: 255}, "stuff": [0, 3], "ignore": [200]},
            {0: NOTHING, 3: NOTHING, 200: VOID, 8: VOID, 7: (0, True), 7001: (0, False), 9003: (1, False), 8001: VOID},
        ),
    ],
)
def test_own_label_files_with_objects(tmp_path, settings, meanings):
    values = drawn(list(meanings))
    path = own(tmp_path, values, classes=["apple", "leaf"], **settings)
    data = read(None, "farm", farm=path)
    assert data.names == ("apple", "leaf")
    assert data.objects
    assert_objects(data[0], values, meanings)
    own(tmp_path, np.full(SIZE, 11), classes=["apple", "leaf"], **settings)
    with pytest.raises(BadSample, match="unknown id 11"):
        read(None, "farm", farm=path)[0]


def test_own_files_in_the_layout_of_cityscapes_have_its_ids(tmp_path):
    values = drawn([7, 0, 24, 24000, 26003, 27001])
    city_image(tmp_path)
    save(city_file(tmp_path, "instanceIds.png"), values.astype(np.uint16))
    path = tmp_path / "cityscapes/dataset.yaml"
    settings = {"layout": "cityscapes", "splits": {"val": "val"}, "objects": True, "classes": ["car", "person"]}
    path.write_text(yaml.safe_dump(settings))
    meanings = {7: NOTHING, 0: VOID, 24: (1, True), 24000: (1, False), 26003: (0, False), 27001: NOTHING}
    assert_objects(read(None, "city", city=path)[0], values, meanings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objects": False, "divisor": 10}, "divisor: only for label files with objects: true"),
        ({"layout": "coco", "annotations": {"val": "x.json"}, "stuff": [1]}, "stuff: only for label files"),
        ({"layout": "coco", "annotations": {"val": "x.json"}, "background": "sky"}, "background is for class maps"),
        ({"coloured": True, "colors": [[1, 1, 1], [2, 2, 2]]}, "coloured labels have no objects"),
        ({"classes": []}, "objects: true needs 'classes' and 'labels'"),
        ({"ids": {66: "apple"}}, r"id 66 \* 1000 exceeds 16 bits; allowed are ids up to 65"),
        ({"ids": {0: "apple", 1: "leaf"}}, r"stuff \[0\]: allowed are numbers that are neither in ids nor ignored"),
        ({"divisor": 1}, "divisor"),
    ],
)
def test_contradictory_settings_of_objects_are_refused(tmp_path, settings, message):
    path = tmp_path / "dataset.yaml"
    path.write_text(yaml.safe_dump({"objects": True, "classes": ["apple", "leaf"], **settings}))
    with pytest.raises(UserError, match=message):
        FilesSource(sets={"farm": path}).open(DataSelection(domains=("farm",)))


def test_fingerprints_depend_on_the_numbering_of_objects(tmp_path):
    path = own(tmp_path, np.zeros(SIZE), classes=["apple", "leaf"])
    selection = DataSelection(domains=("farm",), split="val")

    def facts():
        return FilesSource(sets={"farm": path}).facts(selection)["selections"][0][0]

    one = facts()
    assert one["objects"] == [1000, None, "plain", [0]]
    own(tmp_path, np.zeros(SIZE), classes=["apple", "leaf"], divisor=500)
    assert facts() != one


@pytest.mark.parametrize("orientation", [6, 3])
def test_objects_are_turned_with_their_image(tmp_path, orientation):
    values = drawn([0, 1000, 2001])
    path = own(tmp_path, values, classes=["apple", "leaf"])
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("images/val/a.png", "labels/val/a.png"):
        with Image.open(tmp_path / name) as image:
            image.load()
        image.save(tmp_path / name, exif=exif)
    sample = read(None, "farm", farm=path)[0]
    upright = np.rot90(values, {6: -1, 3: 2}[orientation])
    assert sample.image.shape[:2] == upright.shape
    assert_objects(sample, np.ascontiguousarray(upright), {0: NOTHING, 1000: (0, False), 2001: (1, False)})
