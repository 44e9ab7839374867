"""LabelMe's and YOLO's files: `segdistill init` makes COCO files of them, and the objects cover the right pixels."""

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
from segdistill.data.catalog import IGNORE
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.own import own_place
from segdistill.starter import start

SIZE = (40, 60)
WORLD = {"teacher": "world_teacher", "student": "world_student"}
SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]


def save(path: Path, size: tuple[int, int] = SIZE, exif: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = Image.Exif()
    tags[0x0112] = exif
    color = tuple(crc32("/".join(path.parts[-4:]).encode()).to_bytes(4, "big")[:3])  # every image has pixels of its own
    Image.new("RGB", size[::-1], color).save(path, exif=tags)


def shape(label: str, points: list, kind: str = "polygon", **more) -> dict:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def labelme(path: Path, shapes: list, size: tuple = SIZE, image: str | None = None) -> None:
    content = {"version": "5.5.0", "shapes": shapes, "imagePath": image or f"{path.stem}.png", "imageData": None,
               "imageHeight": size[0], "imageWidth": size[1]}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def opened(folder: Path, split: str = "train", name: str = "dataset.yaml"):
    return FilesSource(sets={"own": folder / name}).open(DataSelection(domains=("own",), split=split))


def named(folder: Path, name: str = "dataset.yaml") -> tuple[str, ...]:
    return own_place("own", folder / name).record.classes


def begin(folder: Path, **settings):
    return start(folder, folder.parent / "recipe.yaml", **WORLD, **settings)


def labels(folder: Path, split: str = "train", name: str = "dataset.yaml") -> list[np.ndarray]:
    return [sample.label for sample in opened(folder, split, name)]


def area(top: int, bottom: int, left: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    found = np.zeros(size, bool)
    found[top:bottom, left:right] = True
    return found


def test_labelme_shapes_cover_their_pixels(tmp_path):
    mask = BytesIO()
    Image.fromarray(np.eye(4, dtype=bool)).save(mask, "PNG")
    inside = base64.b64encode(mask.getvalue()).decode()
    for number in (0, 1):
        save(tmp_path / f"own/{number}.png")
        labelme(tmp_path / f"own/{number}.json", [
            shape("cat", SQUARE), shape("dog", [[50, 30], [40, 25]], "rectangle"),
            shape("cat", [[30, 30], [33, 33]], "mask", mask=inside),
            shape("__ignore__", [[0, 0], [5, 0], [5, 5], [0, 5]]),
            shape("_background_", [[0, 30], [5, 30], [5, 35], [0, 35]]),
        ], image="C:\\photos\\" + f"{number}.png")  # fmt: skip
    assert begin(tmp_path / "own").sets[0].counts == {"train": 1, "val": 1}
    expected = np.zeros(SIZE, np.uint8)
    expected[area(10, 20, 10, 20)] = 1
    expected[area(25, 30, 40, 50)] = 2
    expected[range(30, 34), range(30, 34)] = 1
    expected[:5, :5] = IGNORE
    assert named(tmp_path / "own") == ("background", "cat", "dog")
    for split in ("train", "val"):
        assert (labels(tmp_path / "own", split)[0] == expected).all()


def test_a_circle_has_its_area_and_a_group_is_one_object(tmp_path):
    for number in (0, 1):
        save(tmp_path / f"own/{number}.png")
        labelme(tmp_path / f"own/{number}.json", [
            shape("wheel", [[30, 20], [30, 30]], "circle"), shape("bus", SQUARE, group_id=3),
            shape("bus", [[44, 2], [50, 2], [50, 8], [44, 8]], group_id=3),
            shape("bus", [[44, 12], [50, 12], [50, 18]]),
        ])  # fmt: skip
    begin(tmp_path / "own")
    described = tmp_path / "own/dataset.yaml"
    settings = yaml.safe_load(described.read_text()) | {"objects": True}
    del settings["background"]
    described.write_text(yaml.safe_dump(settings))
    objects = opened(tmp_path / "own")[0].objects
    areas = objects.areas().tolist()
    assert objects.classes.tolist() == [1, 0, 0]
    assert areas[0] == pytest.approx(np.pi * 100, rel=0.03)
    assert areas[1] == 136


def test_a_group_may_have_masks_and_polygons(tmp_path):
    drawn = BytesIO()
    Image.fromarray(np.ones((4, 4), bool)).save(drawn, "PNG")
    part = {"mask": base64.b64encode(drawn.getvalue()).decode(), "group_id": 1}
    for number in (0, 1):
        save(tmp_path / f"own/{number}.png")
        labelme(tmp_path / f"own/{number}.json", [
            shape("bus", [[30, 30], [34, 34]], "mask", **part), shape("bus", SQUARE, group_id=1),
            shape("bus", [[40, 30], [44, 34]], "mask", **part), shape("bus", [[50, 30], [54, 34]], "mask", **part | {
                "group_id": None}),
        ])  # fmt: skip
    start(tmp_path / "own", tmp_path / "recipe.yaml", task="instance", **WORLD)
    objects = opened(tmp_path / "own")[0].objects
    expected = area(10, 20, 10, 20) | area(30, 34, 30, 34) | area(30, 34, 40, 44)
    assert (objects.ids[0] == np.where(expected, 1, np.where(area(30, 34, 50, 54), 2, 0))).all()


def test_annotations_are_of_the_upright_image(tmp_path):
    """As LabelMe and YOLO show it: an image of 40 x 60 pixels with a quarter turn is 60 x 40."""
    for number, suffix in enumerate(("jpg", "tif")):
        save(tmp_path / f"lm/{number}.{suffix}", exif=6)
        labelme(tmp_path / f"lm/{number}.json", [shape("cat", SQUARE)], (60, 40), f"{number}.{suffix}")
        save(tmp_path / f"yolo/images/{number}.jpg", exif=8)
        (tmp_path / "yolo/labels").mkdir(exist_ok=True)
        (tmp_path / f"yolo/labels/{number}.txt").write_text("0 0.25 0.5 0.5 0.5 0.5 1 0.25 1\n")
    for name, expected in (("lm", area(10, 20, 10, 20, (60, 40))), ("yolo", area(30, 60, 10, 20, (60, 40)))):
        begin(tmp_path / name, force=True)
        found = labels(tmp_path / name) + labels(tmp_path / name, "val")
        assert len(found) == 2
        assert all((label == expected).all() for label in found)


@pytest.mark.parametrize("names", [["person", "bike"], {0: "person", 1: "bike"}, "classes.txt", None])
def test_yolo_splits_and_names_are_kept(names, tmp_path):
    for number in range(6):
        split = "train" if number < 4 else "valid"
        save(tmp_path / f"own/{split}/images/{number}.jpg")
        path = tmp_path / f"own/{split}/labels/{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("1 0.5 0.5 1 0.5 1 1 0.5 1\n\n0 0 0 0.5 0 0.5 0.5 0 0.5\n" if number else "")
    if names == "classes.txt":
        (tmp_path / "own/classes.txt").write_text("person\nbike\n")
    elif names:
        (tmp_path / "own/data.yaml").write_text(yaml.safe_dump({"train": "train/images", "names": names}))
    assert begin(tmp_path / "own").sets[0].counts == {"train": 4, "val": 2}
    assert named(tmp_path / "own")[1:] == (("person", "bike") if names else ("class_0", "class_1"))
    expected = np.zeros(SIZE, np.uint8)
    expected[area(20, 40, 30, 60)], expected[area(0, 20, 0, 30)] = 2, 1
    assert (labels(tmp_path / "own")[0] == 0).all()  # an empty file: an image without objects
    assert (labels(tmp_path / "own")[1] == expected).all()


def test_labelme_files_may_be_in_a_folder_of_their_own(tmp_path):
    """Two images have the same name; the file says which one is meant."""
    for number in range(3):
        save(tmp_path / f"own/images/{number}.png")
        labelme(tmp_path / f"own/json/{number}.json", [shape("cat", SQUARE)], image=f"../images/{number}.png")
    save(tmp_path / "own/other/0.png", (50, 50))
    started = begin(tmp_path / "own")
    assert [(each.name, each.counts) for each in started.sets] == [
        ("own", {"train": 2, "val": 1}),
        ("other", {"train": 1}),
    ]
    assert all((label == area(10, 20, 10, 20)).all() for label in labels(tmp_path / "own", name="dataset-own.yaml"))


def test_texts_beside_the_images_are_read_and_captions_are_not(tmp_path):
    for number in range(3):
        save(tmp_path / f"own/{number}.jpg")
        (tmp_path / f"own/{number}.txt").write_text("0 0 0 1 0 1 1\n" if number < 2 else "a street at night\n")
    assert begin(tmp_path / "own").sets[0].counts == {"train": 1, "val": 1}


def test_folders_are_domains_with_the_same_classes_and_others_are_unlabelled(tmp_path):
    for domain, count, label in (("street", 4, "bike"), ("fog", 2, "ant")):
        for number in range(count):
            save(tmp_path / f"own/{domain}/{number}.png")
            labelme(tmp_path / f"own/{domain}/{number}.json", [shape(label, SQUARE)])
    save(tmp_path / "own/extra/7.png")
    started = begin(tmp_path / "own")
    assert started.roles == {"street": "source", "fog": "unseen", "extra": "unlabelled"}
    for name, number in (("street", 2), ("fog", 1)):
        found = opened(tmp_path / "own", "val", f"dataset-{name}.yaml")
        assert named(tmp_path / "own", f"dataset-{name}.yaml") == ("background", "ant", "bike")
        assert set(np.unique(found[0].label)) == {0, number}


@pytest.mark.parametrize("form", ["maps", "labelme", "coco"])
def test_a_set_without_labels_holds_no_labelled_image(tmp_path, form):
    """Its folder stands beside that of labelled ones, in the same parent."""
    root, shown = tmp_path / "own", "images" if form == "maps" else "photos"
    for number, split in enumerate(("train", "train", "val")):
        save(root / f"street/{shown}/{split}/{number}.png")
        if form == "labelme":
            labelme(root / f"street/{shown}/{split}/{number}.json", [shape("cat", SQUARE)])
        elif form == "maps":
            (root / f"street/labels/{split}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.eye(*SIZE, dtype=np.uint8)).save(root / f"street/labels/{split}/{number}.png")
    if form == "coco":
        for split, number in (("train", 0), ("val", 2)):
            content = {
                "images": [{"id": 1, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]}],
                "categories": [{"id": 1, "name": "cat"}],
                "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
            }
            (root / f"{split}.json").write_text(json.dumps(content))
    save(root / "street/more/7.png")
    save(root / "street/more/deep/8.png")
    started = begin(root)
    extra = next(each for each in started.sets if not each.labelled)
    assert (extra.name, extra.settings["images"], extra.counts) == ("street_more", "street/more", {"train": 2})
    assert sum(not each.labelled for each in started.sets) == 1


def test_changed_labels_are_read_again_with_force(tmp_path):
    for number in (0, 1):
        save(tmp_path / f"own/{number}.png")
        labelme(tmp_path / f"own/{number}.json", [shape("cat", SQUARE)])
    begin(tmp_path / "own")
    labelme(tmp_path / "own/0.json", [shape("dog", SQUARE)])
    with pytest.raises(UserError, match="exists; give --force"):
        begin(tmp_path / "own")
    begin(tmp_path / "own", force=True)
    assert named(tmp_path / "own") == ("background", "cat", "dog")


WRONG = [
    (
        shape("cat", [[1, 1], [5, 5]], "line"),
        "shape 1 is of type 'line', which covers no pixels; allowed",
    ),
    (shape("cat", [[1, 1], [5, 5]]), "shape 1 has 2 points; a polygon needs three"),
    (shape("cat", [[1, 1]], "circle"), "shape 1 has 1 points; a circle needs two"),
    (shape("cat", [[1, 1], [5, float("nan")], [5, 5]]), "shape 1 has a point that is not finite"),
    (shape("cat", [[1, 1], [5, float("inf")]], "circle"), "shape 1 has a point that is not finite"),
    (shape(" ", SQUARE), "shape 1 has no label"),
    (shape("cat", [["a", 1]]), "shape 1 has no label, or points that are not a list of x and y"),
    (shape("cat", [[1, 1], [5, 5]], "mask", mask="***"), "shape 1 has a mask that is not a PNG"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_a_wrong_shape_is_one_line(wrong, message, tmp_path):
    save(tmp_path / "own/0.png")
    labelme(tmp_path / "own/0.json", [wrong])
    with pytest.raises(UserError, match=message):
        begin(tmp_path / "own")
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["0.json", "0.png"]


def test_a_labelme_file_of_another_image_is_one_line(tmp_path):
    save(tmp_path / "own/0.png")
    labelme(tmp_path / "own/0.json", [shape("cat", SQUARE)], (50, 60))
    with pytest.raises(UserError, match=r"is for an image of 50 x 60 pixels \(height x width\), 0.png has 40 x 60"):
        begin(tmp_path / "own")
    labelme(tmp_path / "own/1.json", [shape("cat", SQUARE)])
    (tmp_path / "own/0.json").unlink()
    with pytest.raises(UserError, match=r"1\.json: its image '1.png' is not in .*own; put it there"):
        begin(tmp_path / "own")
    labelme(tmp_path / "own/1.json", [], image="0.png")
    with pytest.raises(UserError, match="none of its 1 annotation files contains a labelled object"):
        begin(tmp_path / "own")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 1 is a box, which does not say which pixels are the object"),
        ("0 10 10 30 10 30 30", "line 1: its numbers are shares of width and height, from 0 to 1"),
        ("0 0.1 0.1 0.2", "line 1 has 3 numbers after its class"),
        ("2 0 0 1 0 1 1", "line 1: class 2 has no name; there are 2 in names"),
        ("0.5 0 0 1 0 1 1", "line 1: expected the number of a class"),
    ],
)
def test_a_wrong_yolo_line_is_one_line(line, message, tmp_path):
    save(tmp_path / "own/images/0.jpg")
    (tmp_path / "own/labels").mkdir()
    (tmp_path / "own/labels/0.txt").write_text(line)
    (tmp_path / "own/data.yaml").write_text("names: [a, b]")
    with pytest.raises(UserError, match=message):
        begin(tmp_path / "own")
