"""Tar shards in WebDataset's form: the same samples as from a folder, in any order, and one line for bad ones."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from segdistill.cli import app
from segdistill.config import UserError, parse
from segdistill.data.check import check
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.loader import StepBatches, loaded
from segdistill.data.own import own_place
from segdistill.data.shard_writing import write_shards
from segdistill.data.transforms import DistillAugment, DistillTransform

CLASSES = ["soil", "crop", "weed"]


def picture(number, size=(20, 30)):
    return np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)


def label(number, size=(20, 30)):
    return np.random.default_rng(number).choice(np.array([0, 1, 2, 255], np.uint8), size)


def encoded(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def source(folder):
    return FilesSource(sets={"mine": folder / "dataset.yaml"}, size=(16, 16))


def opened(folder, **changes):
    return source(folder).open(parse(DataSelection, {"domains": ["mine"], **changes}))


@pytest.fixture
def folder(tmp_path):
    """Seven labelled images in folders, some in JPEG, one with dots in its name."""
    root = tmp_path / "plain"
    names = ["a/0.png", "a/1.jpg", "a/2.v1.png", "b/3.webp", "b/4.png", "5.jpg", "6.bmp"]
    for number, name in enumerate(names):
        image = root / "images" / "train" / name
        truth = (root / "labels" / "train" / name).with_suffix(".png")
        for path, pixels in ((image, picture(number)), (truth, label(number))):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (root / "dataset.yaml").write_text(yaml.safe_dump({"classes": CLASSES, "splits": {"train": "train"}}))
    return root


def shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def foreign(folder, members, **settings):
    """A data set of one shard as other tools write it."""
    shard(folder / "train" / "x-000.tar", members)
    values = {"layout": "webdataset", "splits": {"train": "train"}, "classes": CLASSES}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(values | settings))
    return folder


def test_shards_hold_the_images_and_labels_of_the_folder_in_its_order(folder, tmp_path):
    out = tmp_path / "shards"
    assert write_shards(str(folder), out, split="train", size=3) == (3, 7)
    assert len(list((out / "train").glob("*.tar"))) == 3
    plain, packed = opened(folder), opened(out)
    assert packed.names == plain.names == tuple(CLASSES)
    assert len(packed) == len(plain) == 7
    for one, other in zip(plain, packed, strict=True):
        np.testing.assert_array_equal(other.image, one.image)
        np.testing.assert_array_equal(other.label, one.label)
    selection = parse(DataSelection, {"domains": ["mine"]})
    assert list(source(out).listing(selection)) == list(packed.listing())
    files = list(source(out).files(selection))
    assert len(files) == 7
    assert all(file.size == len(file.store.read(file.name)) for file in files)


def test_a_step_reads_the_same_from_shards_of_any_size_in_any_process(folder, tmp_path):
    def images(root, rank=0, world_size=1, workers=0):
        steps = StepBatches(opened(root), DistillTransform(DistillAugment(), (16, 16)), batch=4, seed=(0,),
                            rank=rank, world_size=world_size)  # fmt: skip
        return [batch["image"].numpy() for batch in loaded(steps, [3, 0, 5], workers)]

    folders = {size: tmp_path / str(size) for size in (2, 5)}
    for size, out in folders.items():
        write_shards(str(folder), out, split="train", size=size)
    plain = images(folder)
    for out in folders.values():
        np.testing.assert_array_equal(images(out), plain)
    halves = [images(folders[2], rank, 2, workers=rank) for rank in range(2)]
    np.testing.assert_array_equal(np.stack(halves, 2).reshape(3, 4, 3, 16, 16), plain)


def test_the_same_images_give_the_same_bytes(folder, tmp_path):
    for name in ("one", "two"):
        write_shards(str(folder), tmp_path / name, split="train", size=4)
    one, two = ((tmp_path / name / "train" / "00000.tar").read_bytes() for name in ("one", "two"))
    assert one == two
    with pytest.raises(UserError, match="has shards already; choose another --out or delete them"):
        write_shards(str(folder), tmp_path / "one", split="train", size=4)


def test_shards_of_other_tools_are_read(tmp_path):
    members = []
    for number in (3, 1, 2):
        members += [(f"{number:04d}.jpg", encoded(picture(number), "JPEG")), (f"{number:04d}.json", b"{}")]
        members += [(f"{number:04d}.seg.png", encoded(label(number)))]
    dataset = opened(foreign(tmp_path / "a", members, label_suffix=".seg"))
    assert [sample.name for sample in dataset] == [f"train/000{number}.jpg" for number in (1, 2, 3)]
    np.testing.assert_array_equal(dataset[1].label, label(2))
    pairs = [("7.webp", encoded(picture(7), "WEBP")), ("7.png", encoded(label(7)))]
    np.testing.assert_array_equal(opened(foreign(tmp_path / "b", pairs))[0].label, label(7))
    bare = [("8.png", encoded(picture(8))), ("8.cls", b"3")]
    sample = opened(foreign(tmp_path / "c", bare, classes=[], labels=None))[0]
    assert sample.label is None
    np.testing.assert_array_equal(sample.image, picture(8))


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ([("1.label.png", 1)], r"sample '1' has no image among label\.png; expected one of jpg"),
        ([("1.jpg", 0), ("1.jpeg", 0)], "sample '1' has jpg and jpeg among"),
        ([("1.png", 0), ("1.png", 0)], r"has the member 1\.png twice"),
        ([("1.png", 0), ("1.label.png", 1), ("2.png", 0)], r"1 images .* lack a label, such as train/2\.png"),
    ],
)
def test_a_sample_that_cannot_be_used_is_one_line(tmp_path, members, line):
    pixels = (encoded(picture(0)), encoded(label(0)))
    root = foreign(tmp_path, [(name, pixels[kind]) for name, kind in members])
    with pytest.raises(UserError, match=line):
        opened(root)


def test_a_key_in_two_shards_is_one_line(tmp_path):
    root = foreign(tmp_path, [("1.png", encoded(picture(0)))])
    shard(root / "train" / "x-001.tar", [("1.png", encoded(picture(1)))])
    with pytest.raises(UserError, match=r"x-000\.tar and .*x-001\.tar both have the sample '1'; keep one"):
        opened(root)


def test_a_truncated_shard_is_one_line(tmp_path):
    root = foreign(tmp_path, [(f"{n}.png", encoded(picture(n))) for n in range(3)], classes=[], labels=None)
    path = root / "train" / "x-000.tar"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match=r"cannot read the archive .*x-000\.tar: .*; it is damaged or incomplete"):
        opened(root)


def test_a_shard_that_shrinks_while_it_is_read_is_one_line(tmp_path):
    root = foreign(tmp_path, [("1.png", encoded(picture(1)))], classes=[], labels=None)
    dataset = opened(root)
    path = root / "train" / "x-000.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match="the archive ends too early; copy it again"):
        dataset[0]


def test_a_compressed_shard_is_refused(tmp_path):
    root = foreign(tmp_path, [("1.png", encoded(picture(1)))], splits={"train": "train/*"})
    (root / "train" / "y.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"y\.tar\.gz is not a \.tar; images in compressed archives"):
        opened(root)


def test_a_check_finds_a_changed_byte_by_the_digest(folder, tmp_path):
    out = tmp_path / "shards"
    result = CliRunner().invoke(app, ["data", "shard", str(folder), "--out", str(out), "--size", "4"])
    assert result.exit_code == 0, result.output
    assert "7 images in 2 shards" in result.output
    assert check(own_place("mine", out)).ok
    path = out / "train" / "00001.tar"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1  # in the padding after the last member
    path.write_bytes(content)
    outcome = check(own_place("mine", out))
    assert not outcome.ok
    assert any("has changed since it was written" in line for split in outcome.splits for line in split.faults)


def test_a_second_split_joins_the_same_description(folder, tmp_path):
    values = {"classes": CLASSES, "splits": {"train": "train", "val": "train"}}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(values))
    for split in ("train", "val"):
        write_shards(str(folder), tmp_path / "out", split=split, size=10)
    assert [len(opened(tmp_path / "out", split=split)) for split in ("train", "val")] == [7, 7]


def test_an_interrupted_split_is_not_described(folder, tmp_path):
    def interrupt(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(str(folder), tmp_path / "out", split="train", size=3, progress=interrupt)
    assert [path.name for path in (tmp_path / "out").rglob("*.*")] == ["00000.tar"]
