"""The user's own images by a `dataset.yaml`: folders, lists, Cityscapes' form and COCO; every mistake is one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from segdistill.config import UserError
from segdistill.data.archives import BadSample
from segdistill.data.coco import LONGEST, mask
from segdistill.data.coco_file import Runs
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.own import own_place
from tiny_sets import picture

SIZE = (8, 12)
CLASSES = ["soil", "crop", "weed"]


def describe(folder, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.yaml").write_text(yaml.safe_dump(settings))
    return folder / "dataset.yaml"


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def label(seed, count=3):
    return np.random.default_rng(seed).integers(0, count, SIZE).astype(np.uint8)


def opened(path, split="train", **settings):
    return FilesSource(sets={"farm": path}, **settings).open(DataSelection(domains=("farm",), split=split))


def test_folders_of_images_and_labels(tmp_path):
    path = describe(tmp_path / "farm", classes=CLASSES)
    for split, names in (("train", ("b", "deep/a")), ("val", ("c",))):
        for name in names:
            save(tmp_path / f"farm/images/{split}/{name}.jpg", picture(1, SIZE))
            save(tmp_path / f"farm/labels/{split}/{name}.png", label(ord(name[-1])))
    data = opened(path)
    assert data.names == tuple(CLASSES)
    assert data.colors.shape == (3, 3)
    assert list(data.listing()) == ["farm/images/train/b.jpg", "farm/images/train/deep/a.jpg"]
    assert np.array_equal(data[0].label, label(ord("b")))
    assert len(opened(tmp_path / "farm", "val")) == 1  # the folder will do


def test_numbers_names_suffixes_lists_and_ignored_values(tmp_path):
    path = describe(
        tmp_path, classes=CLASSES, images=".", labels=".", label_suffix="_mask", ids={10: "weed", 20: 0, 30: 255},
        ignore=[0], splits={"train": "train.txt", "val": "val.txt"},
    )  # fmt: skip
    for name in ("a", "b"):
        save(tmp_path / f"{name}.png", picture(1, SIZE))
        save(tmp_path / f"{name}_mask.png", np.tile([0, 10, 20, 30], (8, 3)))
    (tmp_path / "train.txt").write_text("b\n")
    (tmp_path / "val.txt").write_text("a.png\n")
    data = opened(path)
    assert list(data.listing()) == ["farm/b.png"]
    assert data[0].label[0, :4].tolist() == [255, 2, 0, 255]
    assert list(opened(path, "val").listing()) == ["farm/a.png"]


def test_coloured_labels(tmp_path):
    colors = [[10, 0, 0], [0, 10, 0], [0, 0, 10]]
    path = describe(tmp_path, classes=CLASSES, colors=colors, coloured=True)
    save(tmp_path / "images/train/a.png", picture(1, SIZE))
    save(tmp_path / "labels/train/a.png", np.array(colors)[label(3)])
    data = opened(path)
    assert np.array_equal(data[0].label, label(3))
    assert data.colors.tolist() == colors


def test_cityscapes_form(tmp_path):
    path = describe(tmp_path, classes=CLASSES, layout="cityscapes")
    save(tmp_path / "leftImg8bit/train/ulm/x_leftImg8bit.png", picture(1, SIZE))
    save(tmp_path / "gtFine/train/ulm/x_gtFine_labelTrainIds.png", label(4))
    assert np.array_equal(opened(path)[0].label, label(4))


def test_images_without_labels(tmp_path):
    path = describe(tmp_path, labels=None, splits={"train": "."})
    save(tmp_path / "images/a.png", picture(1, SIZE))
    data = opened(path)
    assert (len(data), data.names, data[0].label) == (1, (), None)
    (line,) = FilesSource(sets={"farm": path}).problems(DataSelection(domains=("farm",)), labelled=True)
    assert "domain 'farm' has no labels" in line


def coco(folder, annotations, **settings):
    save(folder / "images/a.jpg", picture(1, SIZE))
    save(folder / "images/stranger.jpg", picture(2, SIZE))
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"image_id": 5, **annotation} for annotation in annotations],
        "categories": [{"id": 9, "name": "weed"}, {"id": 3, "name": "crop"}],
    }
    (folder / "train.json").write_text(json.dumps(content))
    return describe(folder, layout="coco", annotations={"train": "train.json"}, **settings)


def test_coco_objects_are_painted_large_before_small_and_crowds_are_ignored(tmp_path):
    path = coco(
        tmp_path,
        [
            {"category_id": 9, "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]},
            {"category_id": 3, "segmentation": [[0, 0, 6, 0, 6, 6, 0, 6]]},
            {"category_id": 3, "iscrowd": 1, "segmentation": {"size": [8, 12], "counts": [88, 8]}},
        ],
        background="soil",
    )
    data = opened(path)
    assert data.names == ("soil", "crop", "weed")
    assert list(data.listing()) == ["farm/images/a.jpg"]
    wanted = np.zeros(SIZE, np.uint8)
    wanted[:6, :6], wanted[1:3, 1:3], wanted[:, 11] = 1, 2, 255
    assert np.array_equal(data[0].label, wanted)
    plain = coco(tmp_path / "plain", [])
    assert opened(plain)[0].label.tolist() == np.full(SIZE, 255).tolist()
    assert opened(plain).names == ("crop", "weed")


def polygon(corners):
    return [np.asarray(corners, float).ravel().tolist()]


def edges(corners, shape):
    """For every pixel centre (H, W): whether it is inside by the even-odd rule, and its distance to the outline."""
    corners = np.asarray(corners, float)
    following = np.roll(corners, -1, axis=0)
    (y, x), (x1, y1), (x2, y2) = np.mgrid[: shape[0], : shape[1]][..., None] + 0.5, corners.T, following.T
    with np.errstate(divide="ignore", invalid="ignore"):
        crossed = ((y1 <= y) != (y2 <= y)) & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    steps = following - corners
    along = np.clip(((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / np.maximum((steps**2).sum(1), 1e-9), 0, 1)
    distance = np.hypot(x - x1 - along * steps[:, 0], y - y1 - along * steps[:, 1])
    return crossed.sum(-1) % 2 == 1, distance.min(-1)


@pytest.mark.parametrize("seed", range(30))
def test_a_polygon_covers_the_pixels_whose_centres_are_inside_to_a_quarter_of_a_pixel(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(map(int, rng.integers(5, 40, 2)))
    corners = rng.uniform(-5, 45, (int(rng.integers(3, 12)), 2))
    inside, distance = edges(corners, shape)
    clear = distance > 0.3
    assert clear.any()
    assert np.array_equal(mask(polygon(corners), shape, "x")[clear], inside[clear])


def test_polygons_of_whole_pixels_are_exact():
    square = mask(polygon([[1, 2], [4, 2], [4, 5], [1, 5]]), (6, 6), "x")
    assert square.sum() == 9
    assert square[2:5, 1:4].all()
    ring = [0, 0, 6, 0, 6, 6, 0, 6, 0, 0, 2, 2, 2, 4, 4, 4, 4, 2, 2, 2, 0, 0]
    assert mask(polygon(ring), (6, 6), "x").sum() == 32
    assert not mask(polygon(np.random.default_rng(0).uniform(30, 40, (5, 2))), (20, 20), "x").any()


def test_polygons_are_painted_and_joined_as_pycocotools_does():
    """What pycocotools 2.0.11 makes of these two, as its run lengths in text."""
    one = [2.3, 1.7, 13.1, 0.4, 17.9, 9.6, 9.2, 6.1, 4.4, 12.8, -3.5, 7.0]
    two = [10.0, 2.0, 15.0, 2.0, 15.0, 11.0, 10.0, 11.0]
    for polygons, text in (([one], "3751N101O0O01O1N2O1O11O0O1101N2OJ"),
                           ([one, two], "3751N101O0O01O1N2O1O15K0O11O1O3KM")):  # fmt: skip
        wanted = mask(Runs(counts=text, size=(12, 16)), (12, 16), "x")
        assert 80 < wanted.sum() < 150
        assert np.array_equal(mask(polygons, (12, 16), "x"), wanted)


def test_a_polygon_that_reaches_far_beyond_every_image_is_refused():
    corners = [0, 0, 2.0 * LONGEST, 0, 2.0 * LONGEST, 5]
    with pytest.raises(BadSample, match=r"a.jpg: a polygon of 4,194,3\d\d pixels along its outline"):
        mask(polygon(corners), (8, 12), "a.jpg")


def encode(runs):
    """COCO's text of run lengths, restated from its description."""
    text = ""
    for number, run in enumerate(runs):
        value = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            code, value = value & 31, value >> 5
            more = value != (-1 if code & 16 else 0)
            text += chr(48 + (code | 32 * more))
    return text


def test_run_lengths_as_numbers_and_as_text():
    rng = np.random.default_rng(1)
    wanted = rng.random((30, 50)) < 0.3
    wanted[:, 10:30] = True
    flat = wanted.T.reshape(-1)
    turns = np.flatnonzero(np.diff(flat, prepend=~flat[0], append=~flat[-1]))
    runs = [0] * bool(flat[0]) + np.diff(turns).tolist()
    for counts in (runs, encode(runs)):
        assert np.array_equal(mask(Runs(counts=counts, size=(30, 50)), (30, 50), "x"), wanted)
    column = mask(Runs(counts="52203", size=(16, 1)), (16, 1), "x")
    assert np.flatnonzero(column).tolist() == [5, 6, 9, 10]  # five, two, two, two, five pixels


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4]], "a polygon with 4 numbers"),
        ([], "without polygons or run lengths"),
        (None, "without polygons or run lengths"),
        ({"counts": [5], "size": [8, 12]}, "run lengths of 5 pixels for 8 x 12"),
    ],
)
def test_a_coco_object_that_cannot_be_painted_names_its_image(tmp_path, segmentation, message):
    path = coco(tmp_path, [{"category_id": 3, "segmentation": segmentation}])
    with pytest.raises(UserError, match=f"train.json: annotations.0 of 'a.jpg': .*{message}"):
        opened(path)


HOSTILE = ["0", "o" * 100_000, "", "5220", "\x00\xff", *map(encode, ([100, -4], [40, 30, 40, -14], [2**31, 2**31, 96]))]


@pytest.mark.parametrize("counts", HOSTILE)
def test_run_lengths_as_text_that_do_not_add_up_name_their_image(tmp_path, counts):
    path = coco(tmp_path, [{"category_id": 3, "segmentation": {"counts": counts, "size": [8, 12]}}])
    with pytest.raises(BadSample, match=r"a.jpg: run lengths that do not fill 8 x 12"):
        opened(path)[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not valid JSON"),
        ("[]", "no list 'images'; a COCO file has images, annotations, categories"),
        ('{"images": [{}]}', "no list 'annotations'"),
        ('{"images": [{}], "annotations": [], "categories": [{}]}', "6 problems, such as images.0.id: Field required"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"images": [], "images": [], "annotations": []}', "the key 'images' appears twice in one object"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "tree"}]}',
            "tree are not in 'classes'",
        ),
    ],
)
def test_a_coco_file_that_is_none_is_one_line(tmp_path, content, message):
    path = coco(tmp_path, [], classes=CLASSES)
    (tmp_path / "train.json").write_text(content)
    (line,) = FilesSource(sets={"farm": path}).problems(DataSelection(domains=("farm",)), labelled=False)
    assert message in line
    assert "\n" not in line


MISTAKES = [
    ({"classes": ["a", "a"]}, "a class appears twice"),
    ({"classes": ["a"], "colors": [[1, 2, 3], [4, 5, 6]]}, "2 colors for 1 classes"),
    ({"classes": ["a"], "colors": [[1, 2, 300]]}, "three numbers from 0 to 255"),
    ({"classes": ["a"], "coloured": True}, "coloured labels need the 'colors'"),
    ({"classes": ["a", "b"], "coloured": True, "colors": [[1, 2, 3]] * 2}, "cannot tell apart"),
    ({"classes": ["a"], "ids": {3: "b"}}, "ids maps 3 to 'b'; allowed: a class, its number, or 255"),
    ({"classes": ["a"], "ids": {3: 1}}, "ids maps 3 to 1"),
    ({"layout": "coco"}, "layout coco needs 'annotations'"),
    ({"annotations": {"train": "x.json"}}, "are for layout coco"),
    ({"labels": "masks"}, "labels without 'classes'"),
    ({"classes": ["a"], "layout": "coco", "annotations": {"train": "x"}, "background": "b"}, "is none of the classes"),
    ({"clases": ["a"]}, "clases: unknown key; did you mean 'classes'"),
    ({"classes": ["a"], "splits": {"training": "x"}}, "splits"),
    ({"classes": ["a"], "splits": {}}, "splits"),
    ({"classes": ["a"], "layout": "voc"}, "layout"),
]


@pytest.mark.parametrize(("settings", "message"), MISTAKES)
def test_a_mistake_in_the_description_is_one_line(tmp_path, settings, message):
    with pytest.raises(UserError) as caught:
        own_place("farm", describe(tmp_path, **settings))
    assert message in str(caught.value)
    assert "dataset.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_that_is_not_there_or_no_yaml_is_one_line(tmp_path):
    wrong = {"": "it describes your data set", "a: [": "not valid YAML", "- 1": "a description is a mapping"}
    for content, message in wrong.items():
        if content:
            (tmp_path / "dataset.yaml").write_text(content)
        (line,) = FilesSource(sets={"farm": tmp_path / "dataset.yaml"}).problems(
            DataSelection(domains=("farm",)), labelled=False
        )
        assert message in line


def test_missing_images_say_where_they_were_expected(tmp_path):
    path = describe(tmp_path, classes=CLASSES)
    (line,) = FilesSource(sets={"farm": path}).problems(DataSelection(domains=("farm",)), labelled=True)
    assert "images/train/{path}.{ext} + labels/train/{path}.{ext}" in line


def test_an_own_name_hides_one_of_the_catalog_and_is_named_in_errors(tmp_path):
    path = describe(tmp_path, labels=None, splits={"train": "."})
    save(tmp_path / "images/a.png", picture(1, SIZE))
    source = FilesSource(sets={"cityscapes": path, "farm": path})
    assert len(source.open(DataSelection(domains=("cityscapes",)))) == 1
    (line,) = source.problems(DataSelection(domains=("fram",)), labelled=False)
    assert "did you mean 'farm'" in line
