"""Data sets as people have them: what is read and what is refused, by `data check` and before a run alike."""

from __future__ import annotations

import re

import numpy as np
import pytest

from odd_files import HALVES, H, W, coco, encoded, folders, put
from segdistill.config import UserError
from segdistill.data.check import check
from segdistill.data.dataset import DataSelection
from segdistill.data.decode import turn
from segdistill.data.files import FilesSource
from segdistill.data.own import own_place
from tiny_sets import picture


def edit(*path, value):
    """A change of an annotation file: what stands at ``path`` becomes ``value``."""

    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return lambda root: coco(root, change=change)


def jpeg_labels(root):
    return folders(root, encoded(HALVES, "JPEG"), ending="jpg", classes=["a", "b"])


def duplicate_image(root):
    return coco(root, change=lambda content: content["images"].append(content["images"][0] | {"id": 3}))


def same_stem(root):
    path = coco(
        root, change=lambda content: content["images"].append(content["images"][0] | {"id": 3, "file_name": "a.png"})
    )
    put(root / "images/a.png", encoded(picture(1, (H, W))))
    return path


def far(root):
    return coco(root, change=lambda content: content["images"][0].update(height=10**6, width=10**6))


def partly_there(root):
    return coco(root, images=("a",))


REFUSED = {
    "ids_neg": (lambda root: folders(root, encoded(HALVES), classes=["a", "b"], ids={0: "a", 1: "b", -1: 255}),
                "ids: no label file can contain -1; allowed: 0 to 65535"),
    "ignore_large": (lambda root: folders(root, encoded(HALVES), classes=["a", "b"], ignore=[70000]),
                     "ignore: no label file can contain 70000"),
    "ignore0": (lambda root: folders(root, encoded(HALVES), classes=["void", "b"], ignore=[0]),
                "ignore names 0, which is also a class"),
    "ignore0_255": (lambda root: folders(root, encoded(HALVES), classes=["a", "b"], ignore=[0, 255]),
                    "ignore names 0, which is also a class"),
    "ignored_class": (lambda root: folders(root, encoded(HALVES), classes=["a", "b"], ids={5: "a"}, ignore=[5]),
                      "ignore names 5, which is also a class"),
    "number_for_a_colour": (
        lambda root: folders(root, encoded(HALVES), classes=["a"], colors=[[9, 0, 0]], coloured=True, ignore=[0]),
        r"ignore: 0 is not a color; give colors for coloured labels, such as \[\[0, 0, 0\]\]"),
    "colour_for_a_number": (lambda root: folders(root, encoded(HALVES), classes=["a", "b"], ignore=[[0, 0, 0]]),
                            r"ignore: \[0, 0, 0\] is a color, which only coloured labels have"),
    "braces": (lambda root: folders(root, encoded(HALVES), classes=["a", "b"], images="{path}"),
               "images: '{path}' is not a valid path"),
    "dupcat": (edit("categories", 1, "id", value=1), "categories: the id 1 appears twice"),
    "dupid": (edit("images", 1, "id", value=1), "images: the id 1 appears twice"),
    "dupname": (duplicate_image, "images: the name 'a.jpg' appears twice"),
    "dupstem": (same_stem, "images: the name without its suffix 'a' appears twice"),
    "flatpoly": (edit("annotations", 0, "segmentation", value=[1, 1, 5, 1, 5, 5]), "Input should be a valid list"),
    "nan_seg": (edit("annotations", 0, "segmentation", 0, 2, value=float("nan")), "should be a finite number, got nan"),
    "far_corner": (edit("annotations", 0, "segmentation", 0, 2, value=1e300), "should be less than or equal to"),
    "word_in_polygon": (edit("annotations", 0, "segmentation", 0, 2, value="3"), "should be a valid number, got '3'"),
    "name_null": (edit("categories", 0, "name", value=None), "categories.0.name: expected a name.*got None"),
    "name_number": (edit("categories", 1, "name", value=5), "categories.1.name: expected a name.*got 5"),
    "name_empty": (edit("images", 0, "file_name", value=""), "images.0.file_name: expected a name"),
    "strsize": (edit("images", 0, "height", value="8"), "images.0.height: expected a whole number, got '8'"),
    "halfsize": (edit("images", 0, "height", value=8.5), "images.0.height: expected a whole number, got 8.5"),
    "boolid": (edit("images", 0, "id", value=True), "images.0.id: expected a whole number, got True"),
    "huge": (far, "image 'a.jpg' of 1000000 x 1000000 pixels is too large"),
    "crowd_word": (edit("annotations", 0, "iscrowd", value="no"), "annotations.0.iscrowd: expected 0 or 1"),
    "orphan": (edit("annotations", 0, "image_id", value=101), "annotations.0: image 101 is not in the file's list"),
    "stranger": (edit("annotations", 0, "category_id", value=9), "annotations.0: category 9 is not in the file's list"),
    "rle_size": (edit("annotations", 1, "segmentation", "size", value=[W, H]),
                 "run lengths for 12 x 8, the image has 8 x 12"),
    "rle_sum": (edit("annotations", 1, "segmentation", "counts", value=[5]), "run lengths of 5 pixels for 8 x 12"),
    "rle_negative": (edit("annotations", 1, "segmentation", "counts", value=[-1, 97]), "expected a number of pixels"),
    "no_categories": (edit("categories", value=[]), "categories: List should have at least 1 item"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_line_in_the_check_and_before_a_run(tmp_path, name):
    make, message = REFUSED[name]
    path = make(tmp_path / "set")
    with pytest.raises(UserError, match=message) as caught:
        check(own_place("set", path))
    assert "\n" not in str(caught.value)
    (line,) = FilesSource(sets={"set": path}).problems(DataSelection(domains=("set",)), labelled=True)
    assert line == str(caught.value)


FAULTY = {
    "jpeglabel": (jpeg_labels, "faults", r"labels/train/0.jpg: has lossy compression \(JPEG\)"),
    "partial": (partly_there, "missing", "b.jpg"),
    "mixedpaths": (edit("images", 1, "file_name", value="..\\label\\b.jpg"), "missing", r"\.\.\\label\\b.jpg"),
    "exif3": (lambda root: folders(root, encoded(HALVES), image=encoded(picture(1, (H, W)), orientation=3),
                                   classes=["a", "b"]), "faults", "have different EXIF orientations: 1 and 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTY)
def test_what_the_check_calls_a_fault_cannot_be_read_by_a_run(tmp_path, name):
    make, where, message = FAULTY[name]
    path = make(tmp_path / "set")
    outcome = check(own_place("set", path))
    assert not outcome.ok
    assert re.search(message, getattr(outcome.splits[0], where)[0])
    with pytest.raises(UserError):
        FilesSource(sets={"set": path}).open(DataSelection(domains=("set",)))[0]


def colours(root):
    red, green, black = [255, 0, 0], [0, 255, 0], [0, 0, 0]
    label = np.array([red, green, black], np.uint8)[np.arange(H * W).reshape(H, W) % 3]
    return folders(root, encoded(label), classes=["a", "b"], colors=[red, green], coloured=True, ignore=[black])


def turned(root):
    image = encoded(turn(picture(1, (H, W)), 6), orientation=8)  # stored lying, seen standing
    return folders(root, encoded(HALVES), image=image, classes=["a", "b"])


def with_mark(root):
    path = coco(root, encode=lambda text: b"\xef\xbb\xbf" + text.encode())
    put(path, b"\xef\xbb\xbf" + path.read_bytes())
    return path


def listed_with_mark(root):
    path = folders(root, encoded(HALVES), classes=["a", "b"], splits={"train": "train.txt"}, images="images/train",
                   labels="labels/train")  # fmt: skip
    put(root / "train.txt", b"\xef\xbb\xbf0\n1\n")
    return path


def floats(content):
    for image in content["images"]:
        image |= {"height": float(H), "width": float(W), "id": float(image["id"])}
    content["annotations"][0]["iscrowd"] = False


def composed(content):
    content["images"][0]["file_name"] = "bu\N{COMBINING DIAERESIS}.jpg"
    content["images"][1]["file_name"] = "deep\\.\\b.jpg"


def binary(root):
    return folders(root, encoded(HALVES * 255), classes=["a", "b"], ids={0: "a", 255: "b"})


HALF, OBJECTS = [0.5, 0.5], [1 - 14 / (H * W), 8 / (H * W), 6 / (H * W)]
READ = {
    "halves": (lambda root: folders(root, encoded(HALVES), classes=["a", "b"]), HALF),
    "binary255 with ids": (binary, HALF),
    "colour_void": (colours, [1 / 3, 1 / 3]),
    "exif6": (turned, HALF),
    "bom": (with_mark, OBJECTS),
    "bom in a list": (listed_with_mark, HALF),
    "40.0 and False": (lambda root: coco(root, change=floats), OBJECTS),
    "names": (lambda root: coco(root, change=composed, images=("b\N{LATIN SMALL LETTER U WITH DIAERESIS}", "deep/b")),
              OBJECTS),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_is_read_has_the_classes_that_it_shows(tmp_path, name):
    make, shares = READ[name]
    path = make(tmp_path / "set")
    outcome = check(own_place("set", path))
    assert outcome.ok, outcome.splits[0].faults
    split = outcome.splits[0]
    assert split.images == 2
    assert split.pixels / (2 * H * W) == pytest.approx(shares)
    data = FilesSource(sets={"set": path}).open(DataSelection(domains=("set",)))
    counts = sum(np.bincount(sample.label.reshape(-1), minlength=256) for sample in data)
    assert counts[: len(shares)].tolist() == split.pixels.tolist()
