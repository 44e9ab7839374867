"""Data sets with objects: official label files, polygons and COCO, and the faults of each."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from cityscapesscripts.helpers import labels as official
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation import json2instanceImg

from object_files import (
    NOTHING,
    SIZE,
    VOID,
    assert_objects,
    box,
    city_file,
    city_image,
    coco,
    drawn,
    mask,
    picture,
    polygons,
    read,
    rectangle,
    save,
)
from segdistill.config import UserError
from segdistill.data.archives import BadSample
from segdistill.data.catalog.things import CITYSCAPES_NAMES, COUNTED, cityscapes_encoding
from segdistill.data.check import check
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.index import place
from segdistill.data.object_transforms import ObjectAugment, ObjectTransform
from segdistill.data.outlines import painted
from segdistill.data.rendered import WorldSource
from segdistill.data.sample import write_sample
from segdistill.data.sample.own import run_lengths
from tiny_sets import png16

CITY = {7: NOTHING, 23: NOTHING, 0: VOID, 3: VOID, 29: VOID, 30001: VOID, 24: (0, True), 24000: (0, False),
        24001: (0, False), 26003: (2, False), 33: (7, True), 33007: (7, False)}  # fmt: skip


def test_cityscapes_instance_ids_are_objects_groups_stuff_and_void(tmp_path):
    values = drawn(list(CITY))
    city_image(tmp_path)
    save(city_file(tmp_path, "instanceIds.png"), values.astype(np.uint16))
    data = read(tmp_path, "cityscapes_instances")
    assert data.objects
    assert data.names == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    assert_objects(data[0], values, CITY)


def test_cityscapes_polygons_follow_the_official_painting_rules(tmp_path):
    city_image(tmp_path)
    entries = [
        ("road", box(0, 0, 31, 63), {}),
        ("car", box(0, 0, 9, 9), {}),
        ("car", box(5, 5, 14, 14), {}),  # covers a part of the first
        ("cargroup", box(20, 0, 25, 9), {}),
        ("person", box(0, 40, 9, 49), {"deleted": 1}),
        ("license plate", box(6, 6, 7, 7), {}),  # has no id and is not painted
        ("polegroup", box(20, 20, 25, 29), {}),  # a label of its own: void
        ("bicycle", box(28, 60, 28, 60), {}),  # one pixel
    ]
    polygons(city_file(tmp_path, "polygons.json"), entries)
    values = np.full(SIZE, 7)
    for (top, left, bottom, right), value in {
        (0, 0, 9, 9): 26000, (5, 5, 14, 14): 26001, (20, 0, 25, 9): 26, (20, 20, 25, 29): 18, (28, 60, 28, 60): 33000,
    }.items():  # fmt: skip
        values[top : bottom + 1, left : right + 1] = value  # outlines belong to polygons
    meanings = {7: NOTHING, 18: VOID, 26: (2, True), 26000: (2, False), 26001: (2, False), 33000: (7, False)}
    assert_objects(read(tmp_path, "cityscapes_instances")[0], values, meanings)
    save(city_file(tmp_path, "instanceIds.png"), np.full(SIZE, 24005, np.uint16))  # instanceIds come first
    assert read(tmp_path, "cityscapes_instances")[0].objects.classes.tolist() == [0]


def test_polygons_and_ids_are_those_of_the_official_scripts():
    assert {label.name: label.id for label in official.labels} == CITYSCAPES_NAMES
    assert {label.name for label in official.labels if label.hasInstances} == set(COUNTED)
    void = {number for number, to in cityscapes_encoding().ids.items() if to == 255}
    assert {label.id for label in official.labels if label.ignoreInEval and label.id >= 0} == void
    rng = np.random.default_rng(0)
    names = [*CITYSCAPES_NAMES, "cargroup", "persongroup", "bicyclegroup"]
    for _ in range(60):
        height, width = rng.integers((20, 20), (90, 160)).tolist()
        entries = [
            {"label": names[rng.integers(len(names))], "deleted": int(rng.random() < 0.1),
             "polygon": rng.integers(-5, (width + 5, height + 5), (rng.integers(2, 9), 2)).tolist()}
            for _ in range(rng.integers(30))
        ]  # fmt: skip
        text = json.dumps({"imgHeight": height, "imgWidth": width, "objects": entries})
        annotation = Annotation()
        annotation.fromJsonText(text)
        expected = np.asarray(json2instanceImg.createInstanceImage(annotation, "ids"))
        assert np.array_equal(painted(text.encode(), "x"), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected Cityscapes polygons"),
        ('{"imgHeight": 0, "imgWidth": 4, "objects": []}', "must be pixels"),
        ('{"imgHeight": 32, "imgWidth": 64, "objects": [{"label": "car", "polygon": [[0]]}]}', "object 0 has no label"),
        ('{"imgHeight": 32, "imgWidth": 64, "objects": [{"label": "cra", "polygon": [[0, 0], [1, 1]]}]}',
         "object 0 has the unknown label 'cra'"),
        ('{"imgHeight": 16, "imgWidth": 64, "objects": []}', "have different sizes: 16 x 64 and 32 x 64"),
    ],
)  # fmt: skip
def test_damaged_polygons_are_one_line_that_names_the_file(tmp_path, content, message):
    city_image(tmp_path)
    path = city_file(tmp_path, "polygons.json")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(BadSample, match=message) as caught:
        read(tmp_path, "cityscapes_instances")[0]
    assert "ulm_0_gtFine_polygons.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ade20k_has_classes_in_red_and_objects_in_green(tmp_path):
    values = drawn([0, 256 * 1 + 1, 256 * 4 + 2, 256 * 100 + 255, 256 * 4 + 3])
    file = np.stack([values // 256, values % 256, np.zeros_like(values)], -1).astype(np.uint8)
    picture(tmp_path / "ADEChallengeData2016/images/validation/ADE_val_1.jpg")
    save(tmp_path / "ADEChallengeData2016/annotations_instance/validation/ADE_val_1.png", file)
    data = read(tmp_path, "ade20k_instances")
    assert_objects(
        data[0], values, {0: NOTHING, 257: (0, False), 1026: (3, False), 1027: (3, False), 25855: (99, False)}
    )
    assert [data.names[number] for number in (0, 3, 8, 99)] == ["bed", "person", "car", "flag"]
    file[..., 0] = 101
    save(tmp_path / "ADEChallengeData2016/annotations_instance/validation/ADE_val_1.png", file)
    with pytest.raises(BadSample, match=r"ADE_val_1\.png: unknown id 101 .* the table has 0-100$"):
        read(tmp_path, "ade20k_instances")[0]


def test_synthia_objects_are_numbered_in_the_second_channel(tmp_path):
    values = drawn([0, 3, 2848 * 8 + 2, 2848 * 8, 2848 * 10 + 700, 2848 * 3])
    values[values == 3] = 2848 * 3
    file = np.stack([values // 2848, values % 2848, np.zeros_like(values)], -1).astype(np.uint16)
    picture(tmp_path / "SYNTHIA_RAND_CITYSCAPES/RGB/0000000.png")
    path = tmp_path / "SYNTHIA_RAND_CITYSCAPES/GT/LABELS/0000000.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(png16(file))
    meanings = {0: VOID, 2848 * 3: NOTHING, 2848 * 8: (2, True), 2848 * 8 + 2: (2, False), 2848 * 10 + 700: (0, False)}
    assert_objects(read(tmp_path, "synthia_instances", "train")[0], values, meanings)
    file[0, 0, 1] = 2848
    path.write_bytes(png16(file))
    with pytest.raises(BadSample, match="object 2848 or id 10 is too large; allowed: objects below 2848, ids below 23"):
        read(tmp_path, "synthia_instances", "train")[0]


def test_an_id_above_the_table_is_one_line(tmp_path):
    values = drawn([26000, 34007, 40])
    city_image(tmp_path)
    save(city_file(tmp_path, "instanceIds.png"), values.astype(np.uint16))
    with pytest.raises(BadSample, match=r"unknown id 40 \(value 40\), 34 \(value 34007\) at \d+ pixels; .* 0-33$"):
        read(tmp_path, "cityscapes_instances")[0]
    outcome = check(place("cityscapes_instances", tmp_path, {}))
    assert not outcome.ok
    assert len(outcome.splits[0].faults) == 1


BOXES = [(2, 2, 20, 30), (10, 10, 18, 60), (25, 40, 26, 41)]
CROWD = (0, 50, 8, 64)


def coco_example(root):
    runs = {"size": list(SIZE), "counts": run_lengths(mask(*CROWD))}
    annotations = [(1, category, rectangle(*each), 0) for category, each in zip((3, 1, 90), BOXES, strict=True)]
    return coco(root, [*annotations, (1, 1, runs, 1)], images=2)


def assert_coco(sample, classes):
    objects = sample.objects
    assert objects.classes.tolist() == classes
    assert objects.crowd.tolist() == [False, False, False, True]
    for number, each in enumerate((*BOXES, CROWD), 1):
        assert np.array_equal((objects.ids == number).any(0), mask(*each))
    assert len(objects.ids) == 2  # the first two overlap
    assert objects.void is None
    label = np.full(SIZE, 255)
    for each, number in sorted(zip(BOXES, classes, strict=False), key=lambda pair: -mask(*pair[0]).sum()):
        label[mask(*each)] = number
    label[mask(*CROWD) & ~mask(*BOXES[1])] = 255
    where = ~(mask(*CROWD) & mask(*BOXES[1]))
    assert np.array_equal(sample.label[where], label[where])


def test_coco_objects_overlap_crowds_are_crowds_and_images_may_have_none(tmp_path):
    coco_example(tmp_path / "coco")
    data = read(tmp_path, "coco_instances")
    assert (len(data), len(data.names), data.objects) == (2, 80, True)
    assert_coco(data[0], [2, 0, 79, 0])
    empty = data[1]
    assert (len(empty.objects.classes), empty.objects.ids.shape) == (0, (1, *SIZE))
    assert (empty.label == 255).all()
    assert ObjectTransform(ObjectAugment(), SIZE)(empty)["classes"].shape == (0,)


def test_coco_is_read_from_its_archives(call, tmp_path):
    """The three official zips, and one zip of everything below another folder, give what the folder gives."""
    write_sample("coco_instances", tmp_path / "unpacked")
    write_sample("coco_instances", tmp_path / "packed", zipped=True)
    zips = ("annotations_trainval2017.zip", "train2017.zip", "val2017.zip")
    assert tuple(sorted(path.name for path in (tmp_path / "packed/coco2017").glob("*.zip"))) == zips
    shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "unpacked")
    for split in ("train", "val"):
        plain = read(tmp_path / "unpacked", "coco_instances", split=split)
        for data in (
            read(tmp_path / "packed", "coco_instances", split=split),
            read(tmp_path / "all.zip", "coco_instances", split=split),
        ):
            assert len(data) == len(plain) == 2
            for one, other in zip(data, plain, strict=True):
                assert np.array_equal(one.image, other.image)
                assert np.array_equal(one.label, other.label)
                assert np.array_equal(one.objects.ids, other.objects.ids)
                assert one.objects.crowd.tolist() == other.objects.crowd.tolist()
    status, out, err = call("data", "check", "coco_instances", "--root", tmp_path / "packed", "--processes", 1)
    assert status == 0, (out, err)
    (tmp_path / "packed/coco2017/annotations_trainval2017.zip").unlink()
    with pytest.raises(UserError, match=r"annotations/instances_train2017.json \(or train2017.zip, val2017.zip"):
        read(tmp_path / "packed", "coco_instances")


def test_own_coco_with_objects(tmp_path):
    path = coco_example(tmp_path)
    (tmp_path / "dataset.yaml").write_text(
        f"layout: coco\nimages: val2017\nannotations: {{val: {path.relative_to(tmp_path)}}}\nobjects: true\n"
    )
    data = read(None, "mine", mine=tmp_path / "dataset.yaml")
    assert data.names == ("person", "car", "toothbrush")
    assert_coco(data[0], [1, 0, 2, 0])
    source = FilesSource(sets={"mine": tmp_path / "dataset.yaml"})
    assert source.has_objects("mine")
    assert "mine" in source.with_objects()


def test_three_hundred_objects_of_one_image(tmp_path):
    rng = np.random.default_rng(0)
    boxes = [(top, left, top + 3, left + 3) for top, left in rng.integers(0, (29, 61), (300, 2)).tolist()]
    coco(tmp_path / "coco", [(1, 3, rectangle(*each), 0) for each in boxes])
    sample = read(tmp_path, "coco_instances")[0]
    assert len(sample.objects.classes) == 300
    assert sample.objects.areas().tolist() == [9] * 300
    values = (26000 + np.arange(20 * 15)).reshape(15, 20).repeat(2, 0).repeat(3, 1)
    city_image(tmp_path)
    padded = np.pad(values, ((0, 2), (0, 4)), constant_values=7).astype(np.uint16)
    save(city_file(tmp_path, "instanceIds.png"), padded)
    assert read(tmp_path, "cityscapes_instances")[0].objects.areas().tolist() == [6] * 300


def test_missing_annotations_of_coco_are_one_line(tmp_path):
    picture(tmp_path / "coco/val2017/000000000001.jpg")
    (line,) = FilesSource(root=tmp_path).problems(
        DataSelection(domains=("coco_instances",), split="val"), labelled=True, objects=True
    )
    assert "annotations/instances_train2017.json" in line
    coco(tmp_path / "coco", [], categories={1: "persona"})
    with pytest.raises(UserError, match="categories persona are not in 'classes'"):
        read(tmp_path, "coco_instances")


def test_domains_without_objects_are_one_line(tmp_path):
    picture(tmp_path / "imagenet/train/a/a.png")
    source = FilesSource(root=tmp_path)
    (line,) = source.problems(DataSelection(domains=("gtav",)), labelled=True, objects=True)
    assert line.startswith("domain 'gtav' has class maps but no objects; choose one of: cityscapes_instances, ")
    assert "no objects" not in source.problems(DataSelection(domains=("gtav",)), labelled=True)[0]
    (line,) = source.problems(DataSelection(domains=("imagenet",)), labelled=True, objects=True)
    assert line == "domain 'imagenet' has no labels; take it out of 'domains'"
    assert [source.has_objects(name) for name in ("gtav", "cityscapes_instances", "coco_instances")] == [
        False, True, True]  # fmt: skip
    assert WorldSource().object_problems(DataSelection(domains=("clear",), images=1)) != []


def test_an_image_without_annotation_among_others_is_one_line(tmp_path):
    for stem in ("ulm_0", "ulm_1"):
        city_image(tmp_path, stem=stem)
    save(city_file(tmp_path, "instanceIds.png"), np.full(SIZE, 7, np.uint16))
    selection = DataSelection(domains=("cityscapes_instances",), split="val")
    (line,) = FilesSource(root=tmp_path).problems(selection, labelled=True, objects=True)
    assert re.search(r"1 images at .* are missing or lack a label, such as .*ulm_1_leftImg8bit\.png", line)
    polygons(city_file(tmp_path, "polygons.json", stem="ulm_1"), [("car", box(3, 3, 3, 3), {})])
    polygons(city_file(tmp_path, "polygons.json"), [])
    first, second = read(tmp_path, "cityscapes_instances")  # polygons have more labels
    assert len(first.objects.classes) == 0
    assert first.objects.void.all()
    assert second.objects.areas().tolist() == [1]
