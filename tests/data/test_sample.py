"""Samples of data sets: what the world rendered is what the readers give back, from folders and from archives."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill import world
from segdistill.config import UserError
from segdistill.data.catalog import DATASETS, Encoding
from segdistill.data.check import check
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.index import place
from segdistill.data.labels import LabelReader
from segdistill.data.own import own_place
from segdistill.data.sample import SAMPLES, write_sample
from segdistill.data.sample.driving import MAPILLARY_NAMES
from segdistill.data.sample.own import run_lengths
from segdistill.data.sample.pixels import png, png_indexed, png_rgb16
from segdistill.data.sample.scenes import LIKENESS

SIZE = (32, 64)
FORMS = [  # those with objects: tests/test_instance_samples.py
    (name, layout)
    for name, kind in SAMPLES.items()
    for layout in kind.layouts
    if not kind.record.objects and layout != "objects"
]
PACKED = [(name, layout) for name, layout in FORMS if SAMPLES[name].layouts[layout].archives]
READABLE = [form for form in FORMS if form[1] != "tiles"]  # tiles must be prepared first: test_prepare.py

# Sample -> the domains of a recipe, each with the domain of the world that it shows.
SHOWN = {
    **{name: {name: "game"} for name in ("gtav", "synthia", "urbansyn")},
    **{name: {name: "clear"} for name in ("cityscapes", "bdd100k", "mapillary", "voc2012", "ade20k")},
    "acdc": {f"acdc:{condition}": condition for condition in ("night", "snow", "fog", "rain")},
    "potsdam": {"potsdam_rgb": "clear", "potsdam_irrg": "clear"},
    "vaihingen": {"vaihingen_irrg": "haze"},
    "endovis18": {"endovis18": "broad"},
    "camvid": {"camvid": "dusk"},
    "imagenet": {"imagenet": "proxy"},
    "custom": {"custom": "clear"},
    "coco": {"coco": "clear"},
}
VERDICTS = {"imagenet": "can be used for distillation; there are no labels to train a task on"}


def source(root: Path, name: str) -> FilesSource:
    own = SAMPLES[name].own
    return FilesSource(root=root, sets={own: root / own} if own else {})


def splits(name: str, domain: str) -> list[str]:
    """The splits with public labels."""
    if SAMPLES[name].own:
        return ["train", "val"]
    layout = DATASETS[domain.partition(":")[0]].layouts[-1]
    return [split for split, files in layout.splits.items() if files.labels or name == "imagenet"]


def rendered(name: str, domain: str, split: str) -> world.Rendered:
    """The first image of a split, whose sides are odd where the official ones differ; its lowest rows are ignored."""
    height, width = SIZE
    size = (height + 1, width + 1) if SAMPLES[name].varied else SIZE
    return with_bonnet(world.render(SHOWN[name][domain], split, 0, size=size))


def with_bonnet(scene: world.Rendered) -> world.Rendered:
    rows = np.arange(len(scene.label))[:, None] >= len(scene.label) - len(scene.label) // 16
    return replace(scene, label=np.where(rows, 255, scene.label), instance=np.where(rows, 0, scene.instance))


def expected(name: str, names: tuple[str, ...], label: np.ndarray) -> np.ndarray:
    """The class of each pixel by the documented table of likenesses, pixel by pixel."""
    if name == "coco":
        things = {"rider": "person"} | {w: w for w in world.CLASSES if w in names}
        table = {i: names.index(things[w]) for i, w in enumerate(world.CLASSES) if w in things}
    elif name in LIKENESS:
        table = {i: names.index(LIKENESS[name][w]) for i, w in enumerate(world.CLASSES) if w in LIKENESS[name]}
    else:
        table = {i: i for i in range(19)}
    ignored = names.index(LIKENESS[name]["ignored"]) if name == "endovis18" else 255
    return np.array([[table.get(pixel, 255 if pixel != 255 else ignored) for pixel in row] for row in label.tolist()])


def on_borders_ignored(label: np.ndarray) -> np.ndarray:
    """255 wherever one of the four neighbours is of another class."""
    padded = np.pad(label, 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.where(np.any([side != middle for side in neighbours], axis=0), 255, label)


@pytest.mark.parametrize(("name", "layout"), READABLE)
def test_the_reader_gives_back_what_was_rendered_and_the_check_finds_no_fault(name, layout, tmp_path):
    folder, _ = write_sample(name, tmp_path, layout=layout, images=1, size=SIZE)
    for domain in {domain.partition(":")[0] for domain in SHOWN[name]}:
        outcome = check(own_place(name, folder) if SAMPLES[name].own else place(domain, tmp_path, {}))
        assert outcome.ok
        assert not outcome.absent
        assert not any(split.lone_labels for split in outcome.splits)
        assert outcome.verdict().endswith(VERDICTS.get(name, "can be used for training"))
    for domain in SHOWN[name]:
        for split in splits(name, domain):
            dataset = source(tmp_path, name).open(DataSelection(domains=(domain,), split=split))
            assert len(dataset) == 1
            scene = rendered(name, domain, split)
            if name == "imagenet":
                assert dataset[0].label is None
            else:
                label = expected(name, dataset.names, scene.label)
                assert (label == 255).any() == (name != "endovis18")
                assert np.array_equal(dataset[0].label, on_borders_ignored(label) if name == "voc2012" else label)
            if "irrg" in domain:
                assert np.array_equal(dataset[0].image[..., 1:], scene.image[..., :2])  # red and green
            elif name in ("gtav", "synthia", "urbansyn", "cityscapes", "acdc", "potsdam", "camvid", "endovis18"):
                assert np.array_equal(dataset[0].image, scene.image)
            else:  # JPEG
                difference = dataset[0].image.astype(int) - scene.image
                assert np.abs(difference).mean() < 8


@pytest.mark.parametrize(("name", "layout"), PACKED)
def test_archives_hold_the_same_files_and_read_the_same(name, layout, tmp_path):
    arguments = {"layout": layout, "images": 1, "size": (16, 32)}
    folder, files = write_sample(name, tmp_path / "folder", **arguments)
    packed, archives = write_sample(name, tmp_path / "packed", zipped=True, **arguments)
    records = [DATASETS[domain.partition(":")[0]] for domain in SHOWN[name]]
    shipped = {archive for record in records for form in (*record.layouts, *record.raw) for archive in form.archives}
    assert {path.name for path in visible(packed)} <= shipped
    assert len(visible(packed)) == archives
    unpacked = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in visible(folder))
    assert sorted(hashlib.sha256(data).hexdigest() for path in visible(packed) for data in members(path)) == unpacked
    assert len(unpacked) == files
    if layout == "tiles":
        return
    for domain in SHOWN[name]:
        for split in splits(name, domain):
            selection = DataSelection(domains=(domain,), split=split)
            pair = [source(tmp_path / where, name).open(selection)[0] for where in ("folder", "packed")]
            assert np.array_equal(pair[0].image, pair[1].image)
            assert np.array_equal(pair[0].label, pair[1].label)


def visible(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


def members(path: Path) -> list[bytes]:
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            return [tar.extractfile(entry).read() for entry in tar]
    with zipfile.ZipFile(path) as file:
        return [file.read(name) for name in file.namelist()]


@pytest.mark.parametrize(("name", "layout"), [form for form in FORMS if not SAMPLES[form[0]].own])
def test_every_class_and_what_is_ignored_survive_the_encoding_in_every_turn(name, layout):
    kind = SAMPLES[name]
    if not kind.record.classes:
        return  # no labels
    form = kind.layouts[layout]
    encoding = next(one.encoding for one in (*kind.record.raw, *kind.record.layouts) if one.title == form.title)
    codec, read = kind.codec(name, form), LabelReader(encoding)
    label = np.array([[*range(19), 255]], np.uint8)
    for turn in range(9):
        written = codec.colored(label, turn) if encoding.colors else codec.ids(label, turn)
        if encoding.channel is not None:
            written = np.repeat(written[..., None], 3, axis=2).astype(np.uint16)
        data = png_rgb16(written) if written.dtype == np.uint16 else png(written)
        assert np.array_equal(read(data, "x"), expected(name, codec.names, label))


def test_all_official_numbers_of_a_class_occur_in_their_turn():
    kind = SAMPLES["mapillary"]
    codec = kind.codec("mapillary", kind.layouts["v1.2"])
    road = {int(codec.ids(np.zeros((1, 1), np.uint8), turn)[0, 0]) for turn in range(20)}
    assert road == {7, 8, 10, 13, 14, 23, 24}


def test_the_66_names_lead_to_the_records_table_by_the_converters_rules():
    names = ["".join(c for c in name.lower() if c not in " -") for name in MAPILLARY_NAMES]
    plain = {w.replace(" ", ""): i for i, w in enumerate(world.CLASSES)}
    parts = [(("trafficsign", "front", "back"), 7), (("onrail",), 16), (("cyclist", "rider"), 12),
             (("pole", "streetlight"), 5), (("curb", "pedestrianarea"), 1),
             (("crosswalkplain", "parking", "bikelane", "servicelane", "lanemarking"), 0)]  # fmt: skip

    def to(name):
        if name in plain:
            return plain[name]
        return next((number for words, number in parts if any(word in name for word in words)), 255)

    encoding = next(one for one in DATASETS["mapillary"].layouts if one.title == "v1.2 archive").encoding
    assert {number: to(name) for number, name in enumerate(names)} == dict(encoding.ids)


def test_sixteen_bit_colour_files_keep_both_bytes_of_every_channel(tmp_path):
    array = np.random.default_rng(0).integers(0, 1 << 16, (5, 7, 3), dtype=np.uint16)
    with Image.open(BytesIO(png_rgb16(array))) as upper:  # all that Pillow gives
        assert np.array_equal(np.asarray(upper), array >> 8)
    for channel in range(3):
        values = np.unique(array[..., channel])
        read = LabelReader(Encoding(ids={int(value): i for i, value in enumerate(values)}, channel=channel))
        assert np.array_equal(values[read(png_rgb16(array), "x")], array[..., channel])


def test_the_second_channel_of_synthia_is_the_instance(tmp_path):
    folder, _ = write_sample("synthia", tmp_path, images=1, size=SIZE)
    instance = rendered("synthia", "synthia", "train").instance
    read = LabelReader(Encoding(ids={i: i for i in range(200)}, channel=1))
    assert np.array_equal(read((folder / "RAND_CITYSCAPES/GT/LABELS/0000000.png").read_bytes(), "x"), instance)


def test_palettes_change_no_index():
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with Image.open(BytesIO(png_indexed(label, [(9, 8, 7)]))) as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), label)
        assert image.convert("RGB").getpixel((0, 0)) == (9, 8, 7)


def test_instances_are_numbered_within_their_class(tmp_path):
    folder, _ = write_sample("cityscapes", tmp_path, images=1, size=(64, 128))
    labels = {kind: np.asarray(Image.open(next(folder.glob(f"gtFine/train/*/*_{kind}.png"))))
              for kind in ("labelIds", "instanceIds")}  # fmt: skip
    ids, numbers = labels["labelIds"].astype(int), labels["instanceIds"].astype(int)
    assert np.array_equal(np.where(numbers >= 1000, numbers // 1000, numbers), ids)
    scene = with_bonnet(world.render("clear", "train", 0, size=(64, 128)))
    pairs = {(n, i) for n, i in zip(numbers.ravel(), scene.instance.ravel(), strict=True) if n >= 1000}
    assert len(pairs) == len({n for n, _ in pairs}) > 1
    folder, _ = write_sample("mapillary", tmp_path, images=1, size=SIZE)
    (path,) = folder.glob("training/instances/*.png")
    ids = np.asarray(Image.open(folder / "training" / "labels" / path.name))
    assert np.array_equal(np.asarray(Image.open(path)) // 256, ids)


def test_run_lengths_are_those_of_coco():
    mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert run_lengths(mask) == [2, 3, 1]
    assert run_lengths(~mask) == [0, 2, 3, 1]
    assert run_lengths(np.zeros((2, 2), bool)) == [4]


def test_the_same_settings_write_the_same_bytes_and_others_do_not(tmp_path):
    def digest(where, **changed):
        folder, _ = write_sample("bdd100k", tmp_path / where, **{"images": 1, "size": (16, 32), **changed})
        return {str(path.relative_to(folder)): path.read_bytes() for path in visible(folder)}

    assert digest("a") == digest("b")
    assert digest("c", seed=1) != digest("a")  # written again into its own folder
    assert len(digest("d", images=2)) == 2 * len(digest("a"))
    assert digest("e", zipped=True) == digest("f", zipped=True)


def test_a_folder_with_something_else_is_refused_in_one_line(tmp_path):
    settings = {"images": 1, "size": (16, 32)}
    folder, _ = write_sample("gtav", tmp_path, **settings)
    assert json.loads((folder / ".segdistill-sample.json").read_text())["sample"] == "gtav"
    next(folder.glob("labels/*.png")).unlink()
    assert write_sample("gtav", tmp_path, **settings) == (folder, 2)  # what is missing is written again
    with pytest.raises(UserError, match="contains a sample with other settings"):
        write_sample("gtav", tmp_path, images=2, size=(16, 32))
    (folder / ".segdistill-sample.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        write_sample("gtav", tmp_path, **settings)
    foreign = tmp_path / "cityscapes"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and not a sample"):
        write_sample("cityscapes", tmp_path)
    (tmp_path / "acdc").write_text("")
    with pytest.raises(UserError, match="is a file"):
        write_sample("acdc", tmp_path)
    assert [path.name for path in foreign.iterdir()] == ["mine.txt"]


def test_wrong_names_show_the_right_ones(tmp_path):
    with pytest.raises(UserError, match="unknown sample 'potsdam_rgb': did you mean 'potsdam'"):
        write_sample("potsdam_rgb", tmp_path)
    with pytest.raises(UserError, match=r"unknown layout of bdd100k 'x': .*10k, seg"):
        write_sample("bdd100k", tmp_path, layout="x")
    with pytest.raises(UserError, match=r"layout official of gtav has no archives; leave --zip out or take .*acdc"):
        write_sample("gtav", tmp_path, zipped=True)
    with pytest.raises(UserError, match=r"each from 16 to 4000 pixels, got \(8, 64\)"):
        write_sample("gtav", tmp_path, size=(8, 64))
    assert not list(tmp_path.iterdir())
