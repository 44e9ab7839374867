"""Samples of data sets with objects, their check on the command line, and lists of labelled and unlabelled images."""

from __future__ import annotations

import re

import numpy as np
import pytest

from object_files import SIZE, city_image, coco, mask, own, picture, read, rectangle
from segdistill import world
from segdistill.config import UserError, parse
from segdistill.data.catalog.things import ADE_THINGS
from segdistill.data.census import Census
from segdistill.data.check import check
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.fraction import chosen_rows
from segdistill.data.index import place
from segdistill.data.own import named_place, own_place
from segdistill.data.rendered import WorldSource
from segdistill.data.sample import write_sample
from segdistill.data.sample.scenes import LIKENESS
from segdistill.data.split import write_split
from segdistill.objects import Objects

NAMES = [world.CLASSES[number] for number in world.THINGS]
FORMS = {
    ("cityscapes_instances", "instanceIds"): NAMES,
    ("ade20k_instances", "official"): [LIKENESS["ade20k"].get(name) for name in NAMES],
    ("coco_instances", "official"): ["person" if name == "rider" else name for name in NAMES],
    ("coco", "objects"): ["person" if name == "rider" else name for name in NAMES],
    ("custom", "objects"): NAMES,
}


def scene(*, varied, size=(64, 128)):
    """The first image of the split val, whose lowest sixteenth is ignored."""
    height, width = size
    drawn = world.render("clear", "val", 0, size=(height + varied, width + varied))
    label, instance = drawn.label.copy(), drawn.instance.copy()
    label[-(len(label) // 16) :], instance[-(len(label) // 16) :] = 255, 0
    return label, instance


@pytest.mark.parametrize(("name", "layout"), FORMS)
def test_the_objects_of_a_sample_are_those_of_the_world(tmp_path, name, layout):
    folder, _ = write_sample(name, tmp_path, layout=layout, images=1, size=(64, 128))
    is_own = name in ("coco", "custom")
    outcome = check(own_place(name, folder) if is_own else place(name, tmp_path, {}))
    assert outcome.ok
    assert outcome.verdict().endswith("can be used for training")
    data = read(tmp_path, name, **({name: folder} if is_own else {}))
    sample = data[0]
    label, instance = scene(varied="coco" in name or "ade" in name)
    expected = set()
    for train_id, own_name in zip(world.THINGS, FORMS[name, layout], strict=True):
        for number in np.unique(instance[label == train_id]):
            found = (label == train_id) & (instance == number)
            crowd = found.sum() < 12 and name in ("cityscapes_instances", "coco_instances")
            known = own_name in ADE_THINGS and found.sum() >= 12 if "ade" in name else True
            if known and not (crowd and name == "cityscapes_instances"):  # there they are one region per class
                expected.add((own_name, bool(crowd), found.tobytes()))
    objects = sample.objects
    single = [number for number in range(len(objects.classes)) if not (objects.crowd[number] and "city" in name)]
    masks = {number: (objects.ids == number + 1).any(0) for number in single}
    assert {(data.names[objects.classes[n]], bool(objects.crowd[n]), masks[n].tobytes()) for n in single} == expected
    assert len(expected) == len(single) > 2


def test_cityscapes_samples_read_the_same_from_archives_and_as_the_world_does(tmp_path):
    write_sample("cityscapes_instances", tmp_path / "folder", images=1, size=(64, 128))
    write_sample("cityscapes_instances", tmp_path / "packed", images=1, size=(64, 128), zipped=True)
    samples = [read(tmp_path / where, "cityscapes_instances")[0] for where in ("folder", "packed")]
    assert np.array_equal(samples[0].objects.ids, samples[1].objects.ids)
    own_label = (
        WorldSource(size=(64, 128), classes="things8")
        .open(DataSelection(domains=("clear",), split="val", images=1))[0]
        .label
    )
    label = samples[0].label
    kept = label != 255
    assert np.array_equal(label[kept], own_label[kept])
    polygons, _ = write_sample("cityscapes_instances", tmp_path / "p", layout="polygons", images=1, size=(64, 128))
    boxes = read(polygons.parent, "cityscapes_instances")[0].objects
    assert len(boxes.classes) > 2
    assert not (boxes.ids > 0).all()


@pytest.mark.parametrize(("name", "domain"), [("synthia", "game"), ("mapillary", "clear")])
def test_sets_with_class_maps_whose_files_have_objects_too(tmp_path, name, domain):
    write_sample(name, tmp_path, images=1, size=(64, 128))
    data = read(tmp_path, f"{name}_instances", "train")
    varied = name == "mapillary"
    drawn = world.render(domain, "train", 0, size=(64 + varied, 128 + varied))
    inside = np.isin(drawn.label, world.THINGS) & (np.arange(64 + varied) < 60 + varied)[:, None]
    expected = {
        (int(drawn.label[inside & (drawn.instance == number)][0]) - 11, (inside & (drawn.instance == number)).tobytes())
        for number in np.unique(drawn.instance[inside])
    }
    objects = data[0].objects
    found = {(int(kind), (objects.ids == number).any(0).tobytes()) for number, kind in enumerate(objects.classes, 1)}
    assert found == expected
    assert len(found) > 2
    assert not objects.crowd.any()
    assert objects.void[-1].all()
    assert not (objects.void & (drawn.label < 255))[:60].any()


# Check


def test_a_census_counts_sizes_crowds_and_odd_objects():
    masks = [mask(0, 0, 1, 1), mask(0, 0, 32, 31), mask(0, 0, 32, 32), mask(0, 0, 32, 64), mask(0, 0, 0, 0)]
    one, two, both = Census(), Census(), Census()
    one.add(Objects.of_masks(masks, [0, 1, 1, 2, 2], [False, False, False, True, False], SIZE))
    two.add(Objects.of_masks([mask(0, 0, 9, 9), mask(20, 20, 30, 30)], [0, 0], [True, False], SIZE))
    two.add(Objects.of_masks([], [], [], SIZE))
    for census in (one, two):
        both.join(census)
    assert (both.images, both.objects, both.most, both.per_image[0]) == (3, 5, 4, 1)
    assert (both.small, both.medium, both.large) == (4, 1, 0)
    assert (both.one_pixel, both.pixelless, both.crowds, both.overlapping) == (1, 1, 2, 1)
    assert both.classes == {0: 2, 1: 2, 2: 1}


def test_check_prints_the_objects(call, tmp_path):
    rectangles = [rectangle(2, 2, 3, 3), rectangle(4, 4, 20, 50), rectangle(10, 10, 12, 12)]
    annotations = [(1, 3, each, 0) for each in rectangles]
    runs = {"size": list(SIZE), "counts": [0, 5, SIZE[0] * SIZE[1] - 5]}
    coco(tmp_path / "coco", [*annotations, (1, 1, runs, 1)], images=2)
    status, out, err = call("data", "check", "coco_instances", "--root", tmp_path, "--processes", 1)
    assert status == 0, err
    counts = (
        r"objects +3", r"per image +1\.5", r"most in an image +3", r"images without any +1", r"of one pixel +1",
        r"crowds \(not counted above\) +1", r"images with overlaps +1", r"car +\S+ +3", r"person +\S+ +0",
    )  # fmt: skip
    for line in counts:
        assert re.search(rf"^{line} *$", out, re.MULTILINE), (line, out)
    assert "warning: coco_instances, split val: no object of 79 of 80 classes: person, bicycle" in out
    path = own(tmp_path, np.full(SIZE, 1), classes=["apple", "leaf"])
    (split,) = check(own_place("farm", path)).splits
    assert any("no objects in the labels, only crowds" in line for line in split.doubts)


# Labelled and unlabelled images


def names(selection, root, **sets):
    return list(FilesSource(root=root, sets=sets).open(selection).listing())


@pytest.fixture
def cities(tmp_path):
    for number in range(10):
        city_image(tmp_path, "train", f"ulm_00000{number}_000019")
    return tmp_path


@pytest.mark.parametrize("fraction", ["1/10", "1/2", 0.04])
def test_a_fraction_and_its_rest_divide_the_images(cities, fraction):
    values = {"domains": ["cityscapes_instances"], "fraction": fraction}
    part, rest = (names(parse(DataSelection, values | {"rest": each}), cities) for each in (False, True))
    assert sorted(part + rest) == names(DataSelection(domains=("cityscapes_instances",)), cities)
    assert len(part) == max(1, round(10 * (0.1 if fraction == "1/10" else 0.5 if fraction == "1/2" else 0.04)))
    world_source = WorldSource(size=(16, 32))
    values |= {"domains": ["game"], "images": 25}
    parts = [list(world_source.open(parse(DataSelection, values | {"rest": each})).listing()) for each in (False, True)]
    assert len({*parts[0], *parts[1]}) == len(parts[0]) + len(parts[1]) == 25
    one = chosen_rows(DataSelection(domains=("a",), fraction=0.1, rest=True), "a", 2975)
    assert len(one) == 2975 - 298
    assert set(one) > set(chosen_rows(DataSelection(domains=("a",), fraction=0.2, rest=True), "a", 2975))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rest": True}, "rest is what fraction or list leaves out; set one of them"),
        ({"rest": True, "fraction": 1}, "fraction 1 leaves no image for rest"),
        ({"rest": True, "fraction": 0.1, "images": 1}, r"fraction 0\.1 of 1 images leaves none for rest"),
        ({"rest": True, "fraction": 0.97}, r"fraction 0\.97 of 10 images leaves none for rest"),
    ],
)
def test_a_rest_of_nothing_is_one_line(cities, settings, message):
    with pytest.raises(UserError, match=message):
        names(parse(DataSelection, {"domains": ["cityscapes_instances"], **settings}), cities)


FORMS_OF_LISTS = (
    "ulm_00000{}_000019_gtFine_instanceIds.png",  # Guided Distillation's perc_10.txt
    "ulm/ulm_00000{}_000019_leftImg8bit.png",
    "ulm_00000{}_000019_leftImg8bit",
    "ulm_00000{}_000019",
    "leftImg8bit/train/ulm/ulm_00000{}_000019_leftImg8bit.png",
)


@pytest.mark.parametrize("form", FORMS_OF_LISTS)
def test_published_lists_are_read_and_their_rest_is_the_other_images(cities, form):
    path = cities / "perc.txt"
    path.write_text("".join(form.format(number) + "\n" for number in (7, 3)))
    for name in ("cityscapes", "cityscapes_instances"):
        part, rest = (names(DataSelection(domains=(name,), list=path, rest=each), cities) for each in (False, True))
        assert [re.search(r"ulm_00000(\d)", each)[1] for each in part] == ["3", "7"]
        assert sorted(part + rest) == names(DataSelection(domains=(name,)), cities)
    path.write_text("".join(form.format(number) + "\n" for number in range(10)))
    with pytest.raises(UserError, match="names all 10 images and leaves none for rest"):
        names(DataSelection(domains=(name,), list=path, rest=True), cities)


def test_split_writes_two_lists_that_read_as_the_selection_does(call, complaint, cities):
    arguments = ("data", "split", "cityscapes_instances", "--root", cities, "--out", cities / "lists")
    status, out, err = call(*arguments, "--fraction", "1/5", "--seed", 3)
    assert status == 0, err
    assert re.findall(r"(\w+)\.txt: (\d+) image", out) == [("labelled", "2"), ("unlabelled", "8")]
    for part, rest in (("labelled", False), ("unlabelled", True)):
        path = cities / f"lists/cityscapes_instances-train-{part}.txt"
        listed = names(DataSelection(domains=("cityscapes_instances",), list=path), cities)
        selection = DataSelection(domains=("cityscapes_instances",), fraction=0.2, fraction_seed=3, rest=rest)
        assert listed == names(selection, cities)
        assert path.read_text().splitlines() == [line.partition("/")[2] for line in listed]
    before = path.read_text()
    call(*arguments, "--list", cities / "lists/cityscapes_instances-train-labelled.txt")
    assert path.read_text() == before
    assert "either the fraction" in complaint(*arguments)
    assert "fraction" in complaint(*arguments, "--fraction", "x")
    assert "unknown data set 'cityscape'" in complaint(*arguments[:2], "cityscape", *arguments[3:], "--fraction", 0.5)


@pytest.mark.parametrize(
    ("folder", "named"),
    [("farm", "farm"), ("my images: 2", "my_images_2"), ("-.b", "b"), ("...", "own"), ("a" * 99, "a" * 64)],
)
def test_split_of_your_own_images(folder, named, tmp_path):
    """A name that is not valid in recipes becomes one; a folder and its description have the same name."""
    for number in range(4):
        picture(tmp_path / folder / f"images/train/{number}.png")
    description = tmp_path / folder / "dataset.yaml"
    description.write_text("labels: null\nsplits: {train: train}\n")
    counts = dict(write_split(str(tmp_path / folder), tmp_path, fraction=0.25))
    assert {path.name: count for path, count in counts.items()} == {
        f"{named}-train-labelled.txt": 1, f"{named}-train-unlabelled.txt": 3}  # fmt: skip
    assert dict(write_split(str(description), tmp_path, fraction=0.25)) == counts
    assert named_place(str(description)).name == named_place(str(description.parent)).name == named


def test_an_empty_folder_of_unlabelled_images_is_one_line(tmp_path):
    (tmp_path / "more/images/train").mkdir(parents=True)
    (tmp_path / "more/dataset.yaml").write_text("labels: null\nsplits: {train: train}\n")
    source = FilesSource(sets={"more": tmp_path / "more/dataset.yaml"})
    (line,) = source.problems(DataSelection(domains=("more",)), labelled=False)
    assert re.match(r"split 'train': no 'more' .* expected there: images/train/", line)
    assert "\n" not in line
