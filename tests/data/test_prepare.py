"""Conversions of data sets, restated with Pillow and NumPy; official files stay as they are; reruns finish the work."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdistill.config import UserError
from segdistill.data.archives import BadSample
from segdistill.data.catalog import DATASETS
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.index import Place, find
from segdistill.data.labels import LabelReader
from segdistill.data.prepare import PREPARATIONS, Counts, boxes, prepare
from segdistill.data.sample import write_sample

TILE = (513, 600)  # 2 x 2 clips
OFFICIAL = {
    "gtav": ("gtav", "official"),
    "synthia": ("synthia", "official"),
    "urbansyn": ("urbansyn", "official"),
    "cityscapes": ("cityscapes", "official"),
    "mapillary": ("mapillary", "v2.0"),
    "mapillary_half": ("mapillary", "v1.2"),
    "potsdam_rgb": ("potsdam", "tiles"),
    "potsdam_irrg": ("potsdam", "tiles"),
    "vaihingen_irrg": ("vaihingen", "tiles"),
    "endovis18": ("endovis18", "official"),
}
SAME = ("gtav", "synthia", "urbansyn", "cityscapes", "mapillary", "endovis18")
TILES = ("potsdam_rgb", "potsdam_irrg", "vaihingen_irrg")
COLORS = {
    (0, 0, 0): 0,
    (255, 255, 255): 1,
    (0, 0, 255): 2,
    (0, 255, 255): 3,
    (0, 255, 0): 4,
    (255, 255, 0): 5,
    (255, 0, 0): 6,
}  # RGB, spec D.4


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Samples, each written once: name of the record -> folder of the data set."""
    made: dict[tuple[str, str], Path] = {}

    def get(name: str) -> Path:
        sample, layout = key = OFFICIAL[name]
        if key not in made:
            size = TILE if layout == "tiles" else (32, 64)
            made[key], _ = write_sample(sample, tmp_path_factory.mktemp("official"), layout=layout, images=1, size=size)
        return made[key]

    return get


def digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_everything_that_can_be_prepared_is_tested():
    assert set(OFFICIAL) == set(PREPARATIONS) == {*SAME, *TILES, "mapillary_half"}


@pytest.mark.parametrize("name", SAME)
def test_trainid_labels_are_the_official_ones_read_through_the_table(name, official, tmp_path):
    source = official(name)
    before = digests(source)
    folder, counts = prepare(name, source, tmp_path)
    assert digests(source) == before
    record = DATASETS[name]
    shipped = tuple(layout for layout in record.layouts if layout.title != PREPARATIONS[name].title)
    prepared = FilesSource(root=tmp_path)
    total = 0
    for split in [split for split, files in shipped[0].splits.items() if files.labels]:
        found = find(Place(name, replace(record, layouts=shipped), source), split)
        dataset = prepared.open(DataSelection(domains=(name,), split=split))
        assert len(dataset) == len(found.items) == 1
        total += 2 * len(dataset)
        item, files = found.items[0], find(Place(name, record, folder), split)
        assert files.layout.title == PREPARATIONS[name].title
        assert np.array_equal(dataset[0].label, LabelReader(found.layout.encoding)(found.store.read(item.label), "x"))
        assert files.store.read(files.items[0].image) == found.store.read(item.image)
        stored = np.asarray(Image.open(BytesIO(files.store.read(files.items[0].label))))
        assert np.array_equal(stored, dataset[0].label)  # trainIds and 255, whatever stood there before
    assert counts == Counts(made=total)


def test_halves_are_pillows(official, tmp_path):
    source = official("mapillary_half")
    prepare("mapillary_half", source, tmp_path)
    (image,), (label,) = source.glob("validation/images/*"), source.glob("validation/labels/*")
    full = Image.open(image)
    assert (full.width % 2, full.height % 2) == (1, 1)  # so that rounding down shows
    expected = BytesIO()
    full.resize((full.width // 2, full.height // 2), Image.Resampling.BICUBIC).save(expected, "JPEG")
    half = tmp_path / "mapillary" / "half"
    assert (half / "val_img" / image.name).read_bytes() == expected.getvalue()
    table = DATASETS["mapillary"].layouts[1].encoding.ids
    ids = np.asarray(Image.open(label))
    rows, columns = ((np.arange(n // 2) + 0.5) * n / (n // 2) for n in ids.shape)  # centres, seen from the full size
    nearest = ids[rows.astype(int)[:, None], columns.astype(int)]
    expected = np.vectorize(table.get)(nearest)
    assert np.array_equal(np.asarray(Image.open(half / "val_label" / label.name)), expected)
    dataset = FilesSource(root=tmp_path).open(DataSelection(domains=("mapillary_half",), split="val"))
    assert np.array_equal(dataset[0].label, expected)


def converter_boxes(height: int, width: int, clip: int = 512, stride: int = 256) -> set[tuple[int, int, int, int]]:
    """mmsegmentation's rule: the stride makes the count of rows and columns, the clip size their places."""

    def places(length):
        count = math.ceil((length - clip) / stride)
        count += count * stride + clip < length
        return [min(i * clip, length - clip) for i in range(count + 1)]

    return {(x, y, x + clip, y + clip) for x in places(width) for y in places(height)}


@pytest.mark.parametrize("size", [(6000, 6000), (512, 512), (513, 1024), (2569, 1919), (1500, 2006)])
def test_clips_lie_where_the_usual_converter_puts_them(size):
    found = list(boxes(*size))
    assert len(found) == len(set(found))
    assert set(found) == converter_boxes(*size)
    if size == (6000, 6000):
        assert len(found) == 144


def test_a_tile_smaller_than_a_clip_is_one_clip():
    assert list(boxes(100, 600)) == [(0, 0, 512, 100), (88, 0, 600, 100)]
    assert list(boxes(100, 50)) == [(0, 0, 50, 100)]


@pytest.mark.parametrize("name", TILES)
def test_clips_are_slices_of_the_tiles(name, official, tmp_path):
    source = official(name)
    folder, counts = prepare(name, source, tmp_path)
    above = {"potsdam_rgb": "RGB/", "potsdam_irrg": "IRRG/"}.get(name, "")
    kind = "RGB" if name == "potsdam_rgb" else "IRRG"
    tiles = {"train": "2_10", "val": "5_15"} if above else {"train": "area1", "val": "area6"}
    for split, tile in tiles.items():
        (image,) = source.rglob(f"top_potsdam_{tile}_{kind}.tif" if above else f"top_mosaic_09cm_{tile}.tif")
        (label,) = source.rglob(f"*{tile}*noBoundary.tif")
        pixels, colors = np.asarray(Image.open(image)), np.asarray(Image.open(label))
        ids = np.full(colors.shape[:2], 99)
        for color, number in COLORS.items():
            ids[(colors == color).all(-1)] = number
        for x, y, right, bottom in converter_boxes(*TILE):
            clip = f"{split}/{tile}_{x}_{y}_{right}_{bottom}.png"
            written = np.asarray(Image.open(folder / f"{above}img_dir" / clip))
            assert np.array_equal(written, pixels[y:bottom, x:right])
            assert np.array_equal(np.asarray(Image.open(folder / f"{above}ann_dir" / clip)), ids[y:bottom, x:right])
        dataset = FilesSource(root=tmp_path).open(DataSelection(domains=(name,), split=split))
        assert len(dataset) == 4
        x, y = map(int, Path(dataset[3].name).stem.split("_")[-4:-2])
        classes = np.where(ids == 0, 255, ids - 1)[y : y + 512, x : x + 512]
        assert np.array_equal(dataset[3].label, classes)
    assert counts == Counts(made=16)


@pytest.mark.parametrize("name", ["cityscapes", "mapillary_half", "potsdam_irrg", "vaihingen_irrg", "endovis18"])
def test_archives_give_what_folders_give(name, tmp_path):
    sample, layout = OFFICIAL[name]
    for where, zipped in (("folder", False), ("packed", True)):
        out = tmp_path / "official" / where
        source, _ = write_sample(sample, out, layout=layout, images=1, size=(16, 32), zipped=zipped)
        prepare(name, source, tmp_path / where)
    assert digests(tmp_path / "folder") == digests(tmp_path / "packed") != {}


def test_an_interrupted_run_is_finished_by_the_next(tmp_path):
    source = write_sample("gtav", tmp_path, images=20, size=(16, 32))[0]
    expected, _ = prepare("gtav", source, tmp_path / "expected")
    told = []

    def interrupt(what: str, done: int, total: int) -> None:
        told.append((what, done, total))
        raise KeyboardInterrupt

    for processes in (1, 2):
        out = tmp_path / str(processes)
        with pytest.raises(KeyboardInterrupt):
            prepare("gtav", source, out, processes=processes, progress=interrupt)
        folder = out / "GTA5"
        assert not list(folder.rglob(".*"))  # no half-written file
        first = digests(folder)
        assert first.items() <= digests(expected).items()
        if processes == 1:
            assert len(first) == 8
        torn = folder / "labels" / "00001_labelTrainIds.png"
        torn.write_bytes(torn.read_bytes()[:-30] if torn.exists() else b"")
        kept = folder / "labels" / "00002_labelTrainIds.png"
        age = kept.stat().st_mtime_ns if kept.exists() else None
        _, counts = prepare("gtav", source, out)
        assert counts.made + counts.kept == 40
        assert counts.made >= 1
        assert digests(folder) == digests(expected)
        assert age in (None, kept.stat().st_mtime_ns)
        assert prepare("gtav", source, out)[1] == Counts(kept=40)
    assert told == [("preparing gtav", 1, 5)] * 2


def test_where_files_cannot_be_linked_images_are_copied_once(official, tmp_path, monkeypatch):
    def refuse(path: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    source = official("gtav")
    folder, counts = prepare("gtav", source, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert prepare("gtav", source, tmp_path)[1] == Counts(kept=counts.made)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    torn = next(folder.glob("images/*"))
    content = torn.read_bytes()
    torn.write_bytes(content[:-30])
    assert prepare("gtav", source, tmp_path)[1] == Counts(made=1, kept=counts.made - 1)
    assert torn.read_bytes() == content


def test_a_bad_label_stops_the_work_in_one_line_that_names_it(tmp_path):
    source, _ = write_sample("gtav", tmp_path, images=1, size=(16, 32))
    label = source / "labels" / "00001.png"
    Image.fromarray(np.full((16, 32), 77, np.uint8)).save(label)
    for processes in (1, 2):
        with pytest.raises(UserError, match=r"labels/00001.png: unknown id 77"):
            prepare("gtav", source, tmp_path / "out", processes=processes)


def test_a_tile_that_is_no_image_is_named(tmp_path):
    source, _ = write_sample("potsdam", tmp_path, layout="tiles", images=1, size=(16, 32))
    next(source.rglob("top_potsdam_2_10_RGB.tif")).write_bytes(b"torn")
    with pytest.raises(BadSample, match=r"top_potsdam_2_10_RGB.tif: is not a readable image \(4 bytes\)"):
        prepare("potsdam_rgb", source, tmp_path / "out")


def test_tiles_without_a_public_label_are_counted_and_left_out(tmp_path):
    source, _ = write_sample("potsdam", tmp_path, layout="tiles", images=2, size=(16, 32))
    next(source.rglob("*7_13_label*"), next(source.rglob("*6_15_label*"))).unlink()
    folder, counts = prepare("potsdam_rgb", source, tmp_path / "out")
    assert counts == Counts(made=6, unlabelled=1)
    assert [path.name for path in folder.glob("RGB/img_dir/val/*")] == ["5_15_0_0_32_16.png"]


def test_mistakes_are_one_line(official, tmp_path):
    source = official("cityscapes")
    with pytest.raises(UserError, match=r"acdc needs no preparation; data sets that do: .*vaihingen_irrg"):
        prepare("acdc", source, tmp_path)
    with pytest.raises(UserError, match="unknown preparation 'cityscape': did you mean 'cityscapes'"):
        prepare("cityscape", source, tmp_path)
    with pytest.raises(UserError, match="overlap; choose another --out"):
        prepare("cityscapes", source, source.parent)
    with pytest.raises(UserError, match=r"no Cityscapes .* expected there: leftImg8bit/"):
        prepare("cityscapes", tmp_path / "none", tmp_path / "out")
    folder, _ = prepare("cityscapes", source, tmp_path)
    with pytest.raises(UserError, match="in prepared form; there is nothing to do"):
        prepare("cityscapes", folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()
