"""Own boxes: `segdistill init --task detection` reads those of YOLO, COCO and Pascal VOC, and a run learns them."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import yaml
from PIL import Image

from segdistill.config import UserError
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.own import own_place
from segdistill.recipe import load
from segdistill.runs.check import check
from segdistill.runs.execute import run
from segdistill.starter import start

NAMES = ("cat", "dog")
WORLD = {"teacher": "world_teacher", "student": "world_student"}
HEAD = "{type: faster_rcnn, width: 8, hidden: 16, anchors: [8, 16, 32, 64, 128], proposals: 20, region_samples: 16, " \
       "box_samples: 16, least_score: 0.0, most: 5}"  # fmt: skip
SHORT = [f"teacher.head={HEAD}", f"student.head={HEAD}", "stages.teacher.steps=1", "stages.task.steps=2",
         "stages.task.batch=2", "stages.task.proxy.batch=2"]  # fmt: skip


def boxes_of(number: int) -> list[tuple[int, list[float]]]:
    """Class and left, top, right, bottom of the objects of an image of 32 x 64 pixels."""
    return [(number % 2, [4.0 + number, 4.0, 30.0, 28.0]), (1, [40.0, 8.0, 60.0, 20.0])]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (
        np.random.default_rng(crc32("/".join(path.parts[-4:]).encode())).integers(0, 255, (32, 64, 3)).astype(np.uint8)
    )
    Image.fromarray(pixels).save(path)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def yolo(root: Path, split: str, numbers: range) -> None:
    """As Ultralytics and Roboflow write it."""
    for number in numbers:
        picture(root / split / f"images/{number}.png")
        lines = [
            f"{kind} {(left + right) / 128} {(top + bottom) / 64} {(right - left) / 64} {(bottom - top) / 32}"
            for kind, (left, top, right, bottom) in boxes_of(number)
        ]
        text(root / split / f"labels/{number}.txt", "\n".join(lines))
    text(root / "data.yaml", yaml.safe_dump({"nc": 2, "names": list(NAMES)}))


def coco(root: Path, split: str, numbers: range) -> None:
    """As Roboflow writes it: the file of a split is in its folder, and there are no outlines."""
    objects = [
        {"id": 10 * number + each, "image_id": number, "category_id": kind, "segmentation": [], "iscrowd": 0,
         "bbox": [left, top, right - left, bottom - top]}
        for number in numbers for each, (kind, (left, top, right, bottom)) in enumerate(boxes_of(number))
    ]  # fmt: skip
    images = [{"id": number, "file_name": f"{number}.png", "height": 32, "width": 64} for number in numbers]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES)]
    content = {"images": images, "annotations": objects, "categories": categories}
    text(root / split / "_annotations.coco.json", json.dumps(content))
    for number in numbers:
        picture(root / split / f"{number}.png")


def xml(objects: list[tuple[str, list[float], int]], name: str, size: tuple[int, int] = (32, 64)) -> str:
    parts = [
        f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox><xmin>{left + 1}</xmin>"
        f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for kind, (left, top, right, bottom), difficult in objects
    ]
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    return f"<annotation><filename>{name}</filename>{sides}{''.join(parts)}</annotation>"


def voc(root: Path, split: str, numbers: range) -> None:
    """As LabelImg and CVAT write it; the names have a point in them."""
    for number in numbers:
        picture(root / f"JPEGImages/im.{number}.png")
        objects = [(NAMES[kind], box, 0) for kind, box in boxes_of(number)]
        text(root / f"Annotations/im.{number}.xml", xml(objects, f"im.{number}.png"))
    text(root / f"ImageSets/Main/{split.replace('valid', 'val')}.txt", "".join(f"im.{n}\n" for n in numbers))
    text(root / "ImageSets/Main/cat_train.txt", "im.0 1\n")


def opened(described: Path, split: str):
    return FilesSource(sets={"own": described}).open(DataSelection(domains=("own",), split=split))


@pytest.mark.parametrize("write", [yolo, coco, voc])
def test_boxes_in_every_form_are_those_that_were_drawn(tmp_path, write):
    write(tmp_path / "own", "train", range(3))
    write(tmp_path / "own", "valid", range(3, 5))
    picture(tmp_path / "own/more/9.png")
    started = start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)
    assert started.roles["more"] == "unlabelled"
    for split, numbers in (("train", range(3)), ("val", range(3, 5))):
        name = "own_val" if write is coco and split == "val" else "own"
        described = tmp_path / f"own/dataset-{name}.yaml"
        assert own_place("own", described).record.classes == NAMES
        samples = list(opened(described, split))
        assert len(samples) == len(numbers)
        for number, sample in zip(numbers, samples, strict=True):
            kinds, boxes = zip(*boxes_of(number), strict=True)
            assert tuple(sample.objects.classes) == kinds
            assert sample.objects.boxed() == pytest.approx(np.asarray(boxes), abs=1e-3)
            assert not sample.objects.ids.any()


def test_the_recipe_learns_boxes_and_the_students_score_is_told(tmp_path):
    yolo(tmp_path / "own/street", "train", range(3))
    yolo(tmp_path / "own/street", "valid", range(3, 5))
    yolo(tmp_path / "own/fog", "test", range(2))
    (tmp_path / "own/street/data.yaml").rename(tmp_path / "own/data.yaml")
    picture(tmp_path / "own/more/9.png")
    started = start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)
    assert started.roles == {"street": "source", "fog": "unseen", "more": "unlabelled"}
    results = run(load(started.recipe, SHORT), tmp_path / "run")
    assert results["primary"] == "ap50"
    assert set(results["models"]["student"]["domains"]) == {"street", "fog"}
    assert results["unseen"] == ["fog"]


def test_a_student_without_weights_inherits_its_encoder(tmp_path):
    yolo(tmp_path / "own", "train", range(2))
    names = {"teacher": "dinov2_s", "student": "vit_nano"}
    recipe = load(start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **names).recipe)
    assert [stage.name for stage in recipe.stages] == ["teacher", "start", "task"]
    assert recipe.stages[1].gives == ("encoder",)
    other = load(start(tmp_path / "own", tmp_path / "other.yaml", task="detection", force=True).recipe)
    assert other.student.encoder.name.startswith("timm:mobilenetv3")


def test_difficult_objects_are_crowds_and_outlines_have_boxes(tmp_path):
    picture(tmp_path / "own/0.png")
    text(tmp_path / "own/0.xml", xml([("cat", [1, 1, 9, 9], 1), ("cat", [2, 2, 8, 8], 0)], "0.png"))
    start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)
    objects = opened(tmp_path / "own/dataset.yaml", "train")[0].objects  # a single image is trained on
    assert objects.crowd.tolist() == [True, False]
    picture(tmp_path / "drawn/0.png")
    shape = {"label": "cat", "points": [[10, 5], [20, 5], [20, 25]], "shape_type": "polygon"}
    inside = BytesIO()
    Image.fromarray(np.eye(4, 5, dtype=bool)).save(inside, "PNG")
    mask = {"label": "cat", "points": [[30, 6], [35, 10]], "shape_type": "mask",
            "mask": base64.b64encode(inside.getvalue()).decode()}  # fmt: skip
    content = {"shapes": [shape, mask], "imagePath": "0.png", "imageHeight": 32, "imageWidth": 64}
    text(tmp_path / "drawn/0.json", json.dumps(content))
    start(tmp_path / "drawn", tmp_path / "other.yaml", task="detection", **WORLD)
    boxes = opened(tmp_path / "drawn/dataset.yaml", "train")[0].objects.boxed().tolist()
    assert sorted(boxes) == [[10, 5, 20, 25], [30, 6, 34, 10]]


def test_domains_with_the_same_file_names_keep_their_own_boxes(tmp_path):
    for domain, count in (("street", 3), ("fog", 1)):
        for number in range(count):
            picture(tmp_path / f"own/{domain}/JPEGImages/{number}.png")
            box = [1.0, 1.0, 9.0, 9.0 + 10 * (domain == "fog")]
            text(tmp_path / f"own/{domain}/Annotations/{number}.xml", xml([("cat", box, 0)], f"{number}.png"))
    start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)
    found = {name: opened(tmp_path / f"own/dataset-{name}.yaml", "val")[0].objects.boxed()[0, 3]
             for name in ("street", "fog")}  # fmt: skip
    assert found == {"street": 9, "fog": 19}


def test_a_list_divides_the_images_of_its_own_domain_alone(tmp_path):
    voc(tmp_path / "own/street", "train", range(3))
    voc(tmp_path / "own/street", "valid", range(3, 5))
    voc(tmp_path / "other", "train", range(4))
    (tmp_path / "other").rename(tmp_path / "own/fog")
    for path in (tmp_path / "own/fog/ImageSets/Main").glob("*"):
        path.unlink()
    started = start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)
    assert {each.name: each.counts for each in started.sets} == {"street": {"train": 3, "val": 2}, "fog": {"val": 4}}


def test_boxes_train_no_other_task(tmp_path):
    coco(tmp_path / "own", "train", range(2))
    started = start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)
    changed = started.recipe.read_text().replace("task: detection\n", "").replace("faster_rcnn", "semfpn")
    started.recipe.write_text(changed)
    with pytest.raises(UserError, match="domain 'own' has boxes and no masks; set task: detection"):
        check(load(started.recipe))
    with pytest.raises(
        UserError, match=r"an object without polygons .* if the file has only boxes, set boxes: true and"
    ):
        start(tmp_path / "own", started.recipe, force=True, **WORLD)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([5, 5, 0, 9], r"its box \(5, 5, 0, 9: left, top, width, height\) has no area"),
        ([70, 5, 9, 9], r"is outside of the image of 32 x 64 \(height x width\)"),
        (None, "an object without polygons or run lengths"),
        ([5, 5, 9], "expected four numbers: left, top, width, height"),
    ],
)
def test_an_impossible_box_of_coco_is_one_line(tmp_path, box, message):
    coco(tmp_path / "own", "train", range(2))
    path = tmp_path / "own/train/_annotations.coco.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = box
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (xml([("cat", [9, 9, 5, 12], 0)], "0.png"), r"object 1: its box \(10, 10, 5, 12\) has no area"),
        (xml([("", [1, 1, 5, 12], 0)], "0.png"), "has an object without a name"),
        (xml([], "0.png", (64, 32)), r"is for an image of 64 x 32 pixels .*, 0.png has 32 x 64"),
        (xml([], "7.png").replace("7.png", "7.jpg"), "its image '7.jpg' is not in"),
        (xml([], "0.png")[:-5], "is not readable XML"),
        (xml([], "0.png"), "none of its 1 annotation files contains a labelled object"),
    ],
)
def test_a_wrong_annotation_of_pascal_voc_is_one_line(tmp_path, content, message):
    picture(tmp_path / "own/0.png")
    text(tmp_path / f"own/{'7' if '7.jpg' in content else '0'}.xml", content)
    with pytest.raises(UserError, match=message):
        start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0 0.2", "line 1 is a box without area: its width is 0, its height 0.2"),
        ("0 0.5 0.5 0.2", "line 1 has 3 numbers after its class; a box has four"),
        ("0 20 20 10 10", "line 1: its numbers are shares of width and height"),
    ],
)
def test_a_wrong_box_of_yolo_is_one_line(tmp_path, line, message):
    picture(tmp_path / "own/images/0.png")
    text(tmp_path / "own/labels/0.txt", line)
    with pytest.raises(UserError, match=message):
        start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)


def test_label_maps_have_no_boxes_and_contradictions_are_refused(tmp_path):
    picture(tmp_path / "own/images/0.png")
    (tmp_path / "own/labels").mkdir()
    Image.fromarray(np.eye(32, 64, dtype=np.uint8)).save(tmp_path / "own/labels/0.png")
    with pytest.raises(UserError, match=r"label maps do not tell .*; task detection needs boxes or outlines"):
        start(tmp_path / "own", tmp_path / "recipe.yaml", task="detection", **WORLD)
    for settings, message in (
        ({"classes": ["cat"], "boxes": True}, "annotations, background and boxes are for layout coco"),
        ({"layout": "coco", "annotations": {"train": "a.json"}, "boxes": True, "objects": True}, "leave out objects"),
    ):
        (tmp_path / "own/dataset.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(UserError, match=message):
            own_place("own", tmp_path / "own/dataset.yaml")
