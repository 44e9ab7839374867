"""Pascal VOC's annotations: read as they were written, and one line for each fault."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segdistill import world
from segdistill.config import UserError
from segdistill.data.archives import BadSample
from segdistill.data.catalog import DATASETS
from segdistill.data.check import check
from segdistill.data.dataset import DataSelection
from segdistill.data.decode import turn, turn_boxes
from segdistill.data.files import FilesSource
from segdistill.data.index import place
from segdistill.data.object_labels import reader_of
from segdistill.data.sample import write_sample
from segdistill.objects import Objects

ENCODING = DATASETS["voc2007_boxes"].layouts[0].encoding
NAMED = "a.xml"


def xml(*objects, size="<size><width>50</width><height>40</height></size>"):
    return f"<annotation>{size}{''.join(objects)}</annotation>".encode()


def thing(name="dog", box=(1, 1, 10, 20), more=""):
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    return (
        f"<object><name>{name}</name>{more}<bndbox>{''.join(f'<{c}>{v}</{c}>' for c, v in corners)}</bndbox></object>"
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc")
    for name in ("voc2007_boxes", "voc2012_boxes"):
        write_sample(name, folder, images=3, size=(64, 128))
    return folder


def test_boxes_are_those_of_the_rendered_objects(root):
    dataset = FilesSource(root=root).open(DataSelection(domains=("voc2007_boxes",)))
    assert dataset.objects
    for index, sample in enumerate(dataset):
        height, width = sample.image.shape[:2]
        scene = world.render("clear", "train", index, size=(height, width))
        scene.label[-(height // 16) :], scene.instance[-(height // 16) :] = 255, 0
        wanted = []
        for kind in world.THINGS:
            for number in np.unique(scene.instance[scene.label == kind]):
                rows, columns = np.nonzero((scene.label == kind) & (scene.instance == number))
                wanted.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert sample.objects is not None
        assert sample.objects.boxed().tolist() == wanted
        assert sample.objects.crowd.any() or index
        assert (sample.label == 255).all()


def test_the_check_counts_boxes(root):
    for name in ("voc2007_boxes", "voc2012_boxes"):
        outcome = check(place(name, root, {}))
        assert outcome.ok
        assert not outcome.absent
        assert all(split.census.objects and not split.census.pixelless for split in outcome.splits)
        assert [split.images for split in outcome.splits] == [3] * len(outcome.splits)
    assert {split.split for split in check(place("voc2007_boxes", root, {})).splits} == {"train", "test"}


def test_numbers_count_from_one_and_difficult_objects_are_crowds():
    parts = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    objects = reader_of(ENCODING).boxes(
        xml(thing("person", (1, 2, 1, 40), parts), thing("tvmonitor", (5.5, 6, 60, 7), "<difficult>1</difficult>")),
        NAMED,
    )
    assert objects.boxed().tolist() == [[0, 1, 1, 40], [4.5, 5, 60, 7]]
    assert [DATASETS["voc2007_boxes"].classes[kind] for kind in objects.classes] == ["person", "tvmonitor"]
    assert objects.crowd.tolist() == [False, True]
    assert objects.size == (40, 50)


def test_an_annotation_without_objects_is_an_image_with_nothing_in_it():
    assert reader_of(ENCODING).boxes(xml(), NAMED).boxed().shape == (0, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<annotation><object>", "is not readable XML"),
        (b"", "is not readable XML"),
        (b"\xff\xfe\x00", "is not readable XML"),
        (b"<html/>", "its root is 'html', not 'annotation'"),
        (xml(size=""), "'size/height' is ''; expected a number of pixels"),
        (xml(size="<size><width>0</width><height>4</height></size>"), "an image of 4 x 0 pixels"),
        (xml(thing("dgo")), "object 1: unknown class 'dgo': did you mean 'dog'.*allowed: aeroplane"),
        (
            xml(thing(), thing(box=(51, 1, 60, 9))),
            r"object 2: its box \(51, 1, 60, 9\) is outside of the image of 40 x 50",
        ),
        (xml(thing(box=(9, 5, 8, 9))), "object 1: its box .* has no area"),
        (xml(thing(box=(1, 1, "nan", 9))), "'bndbox/xmax' is 'nan'; expected a number"),
        (xml("<object><name>dog</name></object>"), "'bndbox/xmin' is ''"),
        (xml(thing(more="<difficult>2</difficult>")), "'difficult' is '2'; expected 0 or 1"),
    ],
)
def test_faults_are_one_line_that_names_the_file(content, message):
    with pytest.raises(BadSample, match=message) as error:
        reader_of(ENCODING).boxes(content, NAMED)
    assert str(error.value).startswith(NAMED)
    assert "\n" not in str(error.value)


def test_a_size_that_is_not_the_images_is_a_fault(tmp_path):
    folder, _ = write_sample("voc2012_boxes", tmp_path, images=1, size=(32, 64))
    image = next((folder / "JPEGImages").iterdir())
    Image.new("RGB", (20, 10)).save(image)
    [split] = check(place("voc2012_boxes", tmp_path, {})).splits
    assert "have different sizes" in split.faults[0]


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_other_tasks_refuse_boxes(root, task):
    from segdistill.recipe import Recipe
    from segdistill.runs.check import check as look

    head = {"instance": "mask2former", "semantic": "semfpn"}[task]
    recipe = Recipe.model_validate(
        {"name": "x", "task": task, "data": {"source": "files", "root": str(root), "size": [32, 64]},
         "student": {"encoder": {"name": "world_student"}, "head": {"type": head}},
         "stages": [{"type": "task", "name": "task", "data": {"domains": ["voc2007_boxes"]}, "steps": 1}]}
    )  # fmt: skip
    with pytest.raises(UserError, match="'voc2007_boxes' has boxes and no masks; set task: detection"):
        look(recipe)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_like_their_image(orientation):
    image = np.zeros((10, 16), np.uint8)
    image[2:5, 3:11] = 1
    boxes = turn_boxes(np.array([[3.0, 2, 11, 5]]), (10, 16), orientation)
    rows, columns = np.nonzero(turn(image, orientation))
    assert boxes.tolist() == [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]]


def test_coco_boxes_are_the_annotated_ones(tmp_path):
    import json

    folder, _ = write_sample("coco_instances", tmp_path, images=1, size=(32, 64))
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [1.5, 2.25, 10, 4]
    del content["annotations"][1]["bbox"]
    path.write_text(json.dumps(content))
    [sample] = FilesSource(root=tmp_path).open(DataSelection(domains=("coco_instances",)))
    boxes = sample.objects.boxed()
    assert boxes[0].tolist() == [1.5, 2.25, 11.5, 6.25]
    bare = Objects(sample.objects.ids, sample.objects.classes, sample.objects.crowd)
    assert np.array_equal(boxes[1:], bare.boxed()[1:])
    content["annotations"][0]["bbox"] = [1, 2, 3]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="expected four numbers: left, top, width, height"):
        FilesSource(root=tmp_path).open(DataSelection(domains=("coco_instances",)))
