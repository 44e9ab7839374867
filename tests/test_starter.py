"""`segdistill init`: folders as people have them become descriptions that read the right labels, and a recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import yaml
from PIL import Image

from odd_files import grey_png, grey_tiff
from segdistill.config import UserError
from segdistill.data.dataset import DataSelection
from segdistill.data.detect import detect
from segdistill.data.files import FilesSource
from segdistill.encoders import build_encoder
from segdistill.encoders.inherit import check_pair
from segdistill.recipe import load
from segdistill.runs.check import check
from segdistill.starter import start

SIZE = (64, 96)
WORLD = {"teacher": "world_teacher", "student": "world_student"}
COLORS = np.array([[0, 0, 0], [10, 200, 30], [250, 5, 70]], np.uint8)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (*SIZE, 3)).astype(np.uint8)


def classes(number: int) -> np.ndarray:
    """Three classes in columns that move with the number."""
    return ((np.indices(SIZE)[1] + 7 * number) * 3 // SIZE[1] % 3).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write(root: Path, image: str, label: str, numbers, values=lambda label: label) -> None:
    for number in numbers:  # every file has pixels of its own
        save(root / image.format(number), picture(crc32(f"{root.name} {image.format(number)}".encode())))
        save(root / label.format(number), values(classes(number)))


LAYOUTS = {
    "folders": ("images/{}.png", "labels/{}.png"),
    "below": ("images/city/{}.jpg", "masks/city/{}.png"),
    "suffix": ("{}.png", "{}_mask.png"),
    "both": ("photos/{}.png", "gt/{}_label.png"),
    "nested": ("deep/er/img/{}.png", "deep/er/annotations/{}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_are_found_and_every_fifth_image_is_held_out(layout, tmp_path):
    root = tmp_path / "street"
    write(root, *LAYOUTS[layout], range(10))
    started = start(root, tmp_path / "recipe.yaml", **WORLD)
    [found] = started.sets
    assert found.labelled
    assert found.counts == {"train": 8, "val": 2}
    recipe = load(started.recipe)
    seen = {}
    for split in ("train", "val"):
        data = recipe.data.open(DataSelection(domains=(found.name,), split=split))
        for sample in (data[i] for i in range(len(data))):
            number = int("".join(c for c in Path(sample.name).stem if c.isdigit()))
            seen[number] = sample
    assert sorted(seen) == list(range(10))
    assert all(np.array_equal(sample.label, classes(number)) for number, sample in seen.items())


@pytest.mark.parametrize(
    ("folder", "name"), [("2024", "images_2024"), ("no", "images_no"), ("1e5", "images_1e5"), ("Null", "images_null")]
)
def test_a_folder_whose_name_is_no_text_in_yaml_gets_one_that_is(folder, name, tmp_path):
    write(tmp_path / folder, "images/{}.png", "labels/{}.png", range(5))
    started = start(tmp_path / folder, tmp_path / "recipe.yaml", **WORLD)
    assert [found.name for found in started.sets] == [name]
    assert load(started.recipe).data.open(DataSelection(domains=(name,), split="val"))[0].label.shape == SIZE


@pytest.mark.parametrize("layout", [("images/{}/", "labels/{}/"), ("{}/images/", "{}/labels/")])
def test_splits_that_are_there_are_kept(layout, tmp_path):
    for split, numbers in (("train", range(6)), ("val", range(6, 9))):
        image, label = (part.format(split) + "{}.png" for part in layout)
        write(tmp_path / "a", image, label, numbers)
    started = start(tmp_path / "a", tmp_path / "recipe.yaml", **WORLD)
    recipe = load(started.recipe)
    counts = {split: count for each in started.sets for split, count in each.counts.items()}
    assert counts == {"train": 6, "val": 3}
    scored = recipe.evaluate.domains[0] if len(started.sets) == 1 else recipe.evaluate.validation[0]
    assert len(recipe.data.open(recipe.evaluate.selection(recipe.data, scored))) == 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (lambda label: label, [0, 1, 2]),
        (lambda label: np.array([7, 11, 255], np.uint8)[label], [0, 1, 255]),
        (lambda label: np.array([0, 255, 255], np.uint8)[label], [0, 1, 1]),
        (lambda label: COLORS[label], [0, 1, 2]),
    ],
    ids=["numbers", "gaps", "black_and_white", "colours"],
)
def test_numbers_and_colours_of_the_labels_become_classes(values, expected, tmp_path):
    write(tmp_path / "a", "images/{}.png", "labels/{}.png", range(5), values)
    recipe = load(start(tmp_path / "a", tmp_path / "recipe.yaml", **WORLD).recipe)
    sample = recipe.data.open(DataSelection(domains=("a",), split="val"))[0]
    assert np.array_equal(sample.label, np.array(expected, np.uint8)[classes(0)])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_numbers_of_few_bits_are_those_of_the_file(suffix, tmp_path, monkeypatch):
    write(tmp_path / "a", "images/{}.png", "labels/{}.png", range(5))
    for number in range(5):
        (tmp_path / f"a/labels/{number}.png").unlink()
        content = grey_png(classes(number), 2) if suffix == "png" else grey_tiff(classes(number), 4, 0)
        (tmp_path / f"a/labels/{number}.{suffix}").write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's limit does not count
    started = start(tmp_path / "a", tmp_path / "recipe.yaml", **WORLD)
    assert "ids" not in started.sets[0].settings
    sample = load(started.recipe).data.open(DataSelection(domains=("a",), split="val"))[0]
    assert np.array_equal(sample.label, classes(0))


def test_links_to_folders_are_followed(tmp_path):
    write(tmp_path / "far", "images/{}.png", "labels/{}.png", range(5))
    (tmp_path / "a").mkdir()
    for name in ("images", "labels"):
        (tmp_path / "a" / name).symlink_to(tmp_path / "far" / name)
    (tmp_path / "a/gone.json").symlink_to(tmp_path / "nowhere")
    assert start(tmp_path / "a", tmp_path / "recipe.yaml", **WORLD).sets[0].counts == {"train": 4, "val": 1}


@pytest.mark.parametrize(
    ("content", "first"),
    [
        (b"road\nsky\n\ntree\n", "road"),
        (b"\xef\xbb\xbfroad\nsky\ntree", "road"),
        (b"stra\xdfe\nsky\ntree", "stra\ufffde"),
    ],
)
def test_class_names_come_from_classes_txt(content, first, tmp_path):
    write(tmp_path, "images/{}.png", "labels/{}.png", range(5))
    (tmp_path / "classes.txt").write_bytes(content)
    assert detect(tmp_path)[0].settings["classes"] == [first, "sky", "tree"]


def test_domains_get_roles_and_unlabelled_images_are_the_proxy(tmp_path):
    for name, count in (("street", 10), ("fog", 3), ("dusk", 2)):
        write(tmp_path, f"{name}/images/{{}}.png", f"{name}/masks/{{}}.png", range(count))
    for number in range(4):
        save(tmp_path / f"more/{number}.png", picture(number))
    started = start(tmp_path, tmp_path / "r.yaml", validation=["dusk"], **WORLD)
    assert started.roles == {"street": "source", "fog": "unseen", "dusk": "validation", "more": "unlabelled"}
    recipe = load(started.recipe)
    assert recipe.evaluate.unseen == ("fog",)
    assert recipe.evaluate.validation == ("dusk",)
    assert recipe.stages[1].data.domains == ("street",)
    assert recipe.stages[1].proxy.data.domains == ("more", "street")
    scored = [recipe.data.open(recipe.evaluate.selection(recipe.data, name)) for name in recipe.evaluate.domains]
    assert [len(data) for data in scored] == [2, 2, 3]


@pytest.mark.parametrize("name", ["set #2", "a: b", "2007", "no"])
def test_any_name_of_a_folder_fits_into_the_recipe(name, tmp_path):
    write(tmp_path / name, "images/{}.png", "labels/{}.png", range(5))
    recipe = load(start(tmp_path / name, tmp_path / "r.yaml", **WORLD).recipe)
    assert list(recipe.data.sets.values()) == [tmp_path / name / "dataset.yaml"]


def test_unlabelled_images_are_no_copies_of_others(tmp_path):
    for name, count in (("street", 5), ("fog", 3)):
        write(tmp_path, f"{name}/images/{{}}.png", f"{name}/masks/{{}}.png", range(count))
        for number in range(count):
            for folder in ("raw/day one", "again"):
                (tmp_path / folder).mkdir(parents=True, exist_ok=True)
                content = (tmp_path / f"{name}/images/{number}.png").read_bytes()
                (tmp_path / folder / f"{name} {number}.png").write_bytes(content)
    save(tmp_path / "raw/day one/new photo.png", picture(0))
    save(tmp_path / "raw/other.png", picture(1))
    save(tmp_path / "raw/day one/raw/other.png", picture(2))  # the end of its path is the whole path of the one before
    started = start(tmp_path, tmp_path / "r.yaml", **WORLD)
    assert started.roles == {"street": "source", "fog": "unseen", "raw": "unlabelled"}
    assert "raw: unlabelled, train 3 (copies of other images, left out: 8)" in started.lines()
    assert "again: left out, all images are copies of others (8)" in started.lines()
    recipe = load(started.recipe)
    assert check(recipe) == []
    assert list(recipe.data.listing(DataSelection(domains=("raw",)))) == [
        "raw/raw/day one/new photo.png",
        "raw/raw/day one/raw/other.png",
        "raw/raw/other.png",
    ]
    again = start(tmp_path, tmp_path / "r.yaml", force=True, **WORLD)
    assert again.lines() == started.lines()


@pytest.mark.parametrize(
    ("above", "encoding"), [("", "utf-8"), ("photos\\", "utf-8"), ("photos/", "utf-8-sig"), ("", "utf-16")]
)
def test_coco_files_are_known_by_their_content(above, encoding, tmp_path):
    box = [[10, 10, 50, 10, 50, 40, 10, 40]]
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        for number in numbers:
            save(tmp_path / f"photos/{number}.jpg", picture(number))
        entries = [{"id": n, "file_name": f"{above}{n}.jpg", "height": SIZE[0], "width": SIZE[1]} for n in numbers]
        objects = [{"id": n, "image_id": n, "category_id": 3, "segmentation": box} for n in numbers]
        file = {"images": entries, "annotations": objects, "categories": [{"id": 3, "name": "cat"}]}
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(file), encoding=encoding)
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    started = start(tmp_path, tmp_path / "recipe.yaml", **WORLD)
    assert [each.counts for each in started.sets] == [{"train": 4}, {"val": 2}]
    recipe = load(started.recipe)
    sample = recipe.data.open(recipe.evaluate.selection(recipe.data, *recipe.evaluate.validation))[0]
    assert sample.label[20, 20] == 1
    assert sample.label[0, 0] == 0


@pytest.mark.parametrize("student", ["timm:test_convnext.r160_in1k", "timm:test_vit.r160_in1k"])
def test_students_with_and_without_a_cls_token_are_distilled_in_one_stage(student, tmp_path):
    write(tmp_path / "a", "images/{}.png", "labels/{}.png", range(5))
    started = start(tmp_path / "a", tmp_path / "recipe.yaml", teacher="world_teacher", student=student)
    teacher, task = load(started.recipe).stages
    assert (teacher.model, task.model, task.method.type, task.freeze_encoder) == ("teacher", "student", "heir", False)


def test_a_student_without_weights_of_its_own_inherits_its_teachers(tmp_path):
    write(tmp_path / "a", "images/{}.png", "labels/{}.png", range(5))
    started = start(tmp_path / "a", tmp_path / "recipe.yaml", teacher="dinov2_s", student="vit_nano")
    recipe = load(started.recipe)
    assert [stage.kind for stage in recipe.stages] == ["task", "inherit", "task"]
    for number, (teacher, student) in enumerate((("eva02_s", "vit_nano"), ("dinov2_s", "world_resnet"))):  # cannot
        other = start(tmp_path / "a", tmp_path / f"{number}.yaml", teacher=teacher, student=student, force=True)
        assert [stage.kind for stage in load(other.recipe).stages] == ["task", "task"]
    assert recipe.stages[1].data == recipe.stages[2].proxy.data
    assert recipe.stages[1].gives == ("encoder", "head")
    assert recipe.stages[2].optimizer.encoder_lr_scale == 1.0
    assert recipe.student.encoder.weights == "random"
    assert recipe.student.encoder.cell == recipe.teacher.encoder.cell == 16
    check_pair(*(build_encoder(model.bare().encoder, seed=0) for model in (recipe.student, recipe.teacher)))


def spoiled_jpeg(root):
    write(root, "images/{}.png", "labels/{}.png", range(2))
    for number in range(2):
        save(root / f"labels/{number}.jpg", picture(number))
        (root / f"labels/{number}.png").unlink()


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no folder .*give the folder"):
        start(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no images"):
        start(tmp_path / "empty")
    save(tmp_path / "lone/a.png", picture(0))
    with pytest.raises(UserError, match="no recognised labels: put label maps"):
        start(tmp_path / "lone")
    write(tmp_path / "photo", "images/{}.png", "labels/{}.png", range(2), lambda label: picture(1))
    with pytest.raises(UserError, match="more than 64 colours"):
        start(tmp_path / "photo")
    spoiled_jpeg(tmp_path / "jpeg")
    with pytest.raises(UserError, match="label stored as JPEG"):
        start(tmp_path / "jpeg")
    write(tmp_path / "a", "images/{}.png", "labels/{}.png", range(5))
    with pytest.raises(UserError, match=r"no labelled domain 'b': .*found: a"):
        start(tmp_path / "a", tmp_path / "r.yaml", unseen=["b"], **WORLD)
    start(tmp_path / "a", tmp_path / "r.yaml", **WORLD)
    with pytest.raises(UserError, match="exists; give --force"):
        start(tmp_path / "a", tmp_path / "r.yaml", **WORLD)
    start(tmp_path / "a", tmp_path / "r.yaml", force=True, **WORLD)
    assert yaml.safe_load((tmp_path / "a/dataset.yaml").read_text())["images"] == "images"


def test_descriptions_are_what_the_source_reads(tmp_path):
    write(tmp_path / "a", "images/{}.png", "labels/{}.png", range(5))
    start(tmp_path / "a", tmp_path / "r.yaml", **WORLD)
    source = FilesSource(sets={"a": tmp_path / "a/dataset.yaml"})
    assert source.problems(DataSelection(domains=("a",), split="train"), labelled=True) == []


@pytest.mark.parametrize(("covered", "message"), [
    ("fog/images", "all 2 images of 'fog' are also read by stage task, proxy; remove them from one of the two"),
    ("street", "all 1 images of 'street' are also read by stage task, proxy; its score says nothing about new"),
    ("copies", "1 of the 2 images of 'fog' are also read by stage task, proxy (for example, "),
    ("other", None),
])  # fmt: skip
def test_images_that_are_scored_and_trained_on_under_another_name_are_told(covered, message, tmp_path):
    """An error for an unseen domain, a warning for others."""
    root = tmp_path / "own"
    write(root / "street", "images/{}.png", "labels/{}.png", range(5))
    write(root / "fog", "images/{}.png", "labels/{}.png", range(2))
    save(root / "other/images/0.png", picture(0))
    started = start(root, tmp_path / "recipe.yaml", **WORLD)
    (root / "copies").mkdir()
    (root / "copies/x.png").write_bytes((root / "fog/images/1.png").read_bytes())
    description = {"images": covered, "labels": None, "splits": {"train": "."}}
    (tmp_path / "link").symlink_to(root)
    (root / "more.yaml").write_text(yaml.safe_dump(description))
    changes = [f"data.sets.more={tmp_path}/link/more.yaml", "stages.task.proxy.data.domains=[more]"]
    if covered.startswith("fog"):  # the same images are also scored as a domain that is not unseen
        changes += [f"data.sets.again={root}/dataset-fog.yaml", "evaluate.domains=[street, fog, again]",
                    "evaluate.validation=[again]", "evaluate.splits.again=val"]  # fmt: skip
    recipe = load(started.recipe, changes)
    if message and "fog" in message:
        with pytest.raises(UserError, match=re.escape(message)):
            check(recipe)
    else:
        assert [line for line in check(recipe) if "also read by" in line] == (
            [f"evaluate: {message} images"] if message else []
        )
