"""`data check`: what it counts, what it finds, and that more processes find the same."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from PIL import Image

from segdistill.config import UserError
from segdistill.data.check import check
from segdistill.data.index import place
from segdistill.data.pool import worker_pool
from tiny_sets import picture, truncate, write

IMAGE, LABEL = "images/10k/{}/a{}.jpg", "labels/sem_seg/masks/{}/a{}.png"


def outcome(root, name="bdd100k", **settings):
    return check(place(name, root, {}), **settings)


def test_a_sound_data_set_can_be_trained_on(tmp_path):
    truth = write("bdd100k", tmp_path)
    told = []
    found = outcome(tmp_path, progress=lambda *step: told.append(step))
    assert found.ok
    assert found.verdict() == "bdd100k: can be used for training"
    train, val, test = found.splits
    assert (train.images, train.labelled, train.official, test.labelled) == (2, 2, 7000, 0)
    assert train.sizes == {(32, 64): 2}
    labels = np.stack([label for (split, _), label in truth.items() if split == "val"])
    assert val.pixels.tolist() == [(labels == number).sum() for number in range(19)]
    assert val.ignored == (labels == 255).sum() > 0
    assert told[-1] == ("checking bdd100k test", 2, 2)


def test_every_fault_is_named(tmp_path):
    write("bdd100k", tmp_path, count=5)
    folder = tmp_path / "bdd100k"
    truncate(folder / IMAGE.format("train", 0))
    Image.fromarray(np.full((32, 64), 77, np.uint8)).save(folder / LABEL.format("train", 1))
    Image.new("L", (16, 16)).save(folder / LABEL.format("train", 2))
    Image.fromarray(picture(0)).save(folder / LABEL.format("train", 3))
    (folder / LABEL.format("val", 10)).unlink()
    (folder / IMAGE.format("val", 11)).unlink()
    found = outcome(tmp_path)
    train, val, _ = found.splits
    parts = ("a0.jpg: is damaged", "a1.png: unknown id 77", "different sizes", "3 channels")
    assert len(train.faults) == len(parts)
    assert all(part in line for part, line in zip(parts, train.faults, strict=True))
    assert val.lone_images == [IMAGE.format("val", 10)]
    assert val.lone_labels == [LABEL.format("val", 11)]
    assert [split.ok for split in found.splits] == [False, False, True]
    assert found.verdict() == "bdd100k: not usable: split train, val has faults"


def test_a_label_too_many_does_no_harm(tmp_path):
    write("bdd100k", tmp_path)
    (tmp_path / "bdd100k" / IMAGE.format("train", 0)).unlink()
    found = outcome(tmp_path)
    assert found.ok
    assert found.splits[0].lone_labels == [LABEL.format("train", 0)]


def test_a_list_that_names_absent_images_is_a_fault(tmp_path):
    write("voc2012", tmp_path)
    with (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").open("a") as out:
        out.write("2007_000001\n")
    found = outcome(tmp_path, "voc2012")
    assert [split.missing for split in found.splits] == [[], ["2007_000001"]]
    assert not found.ok


def test_what_is_there_decides_what_it_can_be_used_for(tmp_path):
    write("imagenet", tmp_path)
    assert "imagenet: can be used for distillation; there are no labels" in outcome(tmp_path, "imagenet").verdict()
    write("mapillary_half", tmp_path)
    assert "can be used for evaluation" in outcome(tmp_path, "mapillary_half").verdict()
    write("acdc", tmp_path, subsets=("fog",))
    fog = outcome(tmp_path, "acdc:fog")
    assert [(split.split, split.images, split.official) for split in fog.splits] == [
        ("train", 2, 400), ("val", 2, 100), ("test", 2, 500)]  # fmt: skip
    with pytest.raises(UserError, match="no ACDC at"):
        outcome(tmp_path, "acdc:night")
    write("gtav", tmp_path)
    assert outcome(tmp_path, "gtav").absent == []


def test_splits_that_are_not_here_are_named(tmp_path):
    write("bdd100k", tmp_path)
    for path in (tmp_path / "bdd100k/images/10k/val").iterdir():
        path.unlink()
    assert outcome(tmp_path).absent == ["val"]


def test_two_processes_find_what_one_finds(tmp_path):
    write("ade20k", tmp_path, count=9)
    folder = tmp_path / "ADEChallengeData2016"
    truncate(next((folder / "images/training").iterdir()))
    one, two = outcome(tmp_path, "ade20k"), outcome(tmp_path, "ade20k", processes=2)
    for left, right in zip(one.splits, two.splits, strict=True):
        assert left.faults == right.faults
        assert left.pixels.tolist() == right.pixels.tolist()
        assert left.sizes == right.sizes
    assert len(one.splits[0].faults) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_images_with_the_pixels_of_another_one_are_told(tmp_path, processes):
    """Whatever their names and whoever compressed them; labels do not count."""
    write("bdd100k", tmp_path, count=8)
    folder = tmp_path / "bdd100k"
    first = (folder / IMAGE.format("train", 0)).read_bytes()
    (folder / IMAGE.format("train", 3)).write_bytes(first)
    comment = b"\xff\xfe\x00\x06copy"
    (folder / IMAGE.format("val", 14)).write_bytes(first[:2] + comment + first[2:])
    (folder / IMAGE.format("test", 25)).write_bytes((folder / IMAGE.format("val", 16)).read_bytes())
    found = outcome(tmp_path, processes=processes)
    assert found.ok
    train, val, test = ([line for line in split.doubts if "same pixels" in line] for split in found.splits)
    assert train == [
        f"bdd100k, split train: 1 image has the same pixels as another one of this split, such as "
        f"{IMAGE.format('train', 3)} and {IMAGE.format('train', 0)}; remove the copies"
    ]
    then = "remove them from one of the two: a score on them says little"
    assert val == [
        f"bdd100k, split val: 1 image has the same pixels as one of split train, such as "
        f"{IMAGE.format('val', 14)} and {IMAGE.format('train', 0)}; {then}"
    ]
    assert test == [
        f"bdd100k, split test: 1 image has the same pixels as one of split val, such as "
        f"{IMAGE.format('test', 25)} and {IMAGE.format('val', 16)}; {then}"
    ]


def test_a_killed_process_is_one_line_and_an_interruption_is_the_parents():
    with worker_pool(1) as pool:
        assert pool.submit(signal.raise_signal, signal.SIGINT).result() is None
        assert pool.submit(abs, -1).result() == 1
    with pytest.raises(UserError, match=r"a process was killed, .*; use fewer --processes"), worker_pool(2) as pool:
        pool.submit(os._exit, 9).result()
