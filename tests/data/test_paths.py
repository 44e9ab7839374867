"""Where a user's files may lie and what they may be called: elsewhere, in any bytes, and things that are no files."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segdistill.config import UserError
from segdistill.data.archives import open_store
from segdistill.data.check import check
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.own import own_place
from tiny_sets import picture

SIZE = (8, 12)
LABEL = np.random.default_rng(0).integers(0, 2, SIZE).astype(np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, "PNG")


def fill(images, labels, names=("a", "deep/b")):
    for split in ("train", "val"):
        for name in names:
            save(images / split / f"{name}.png", picture(1, SIZE))
            save(labels / split / f"{name}.png", LABEL)


def describe(folder, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.yaml").write_text(yaml.safe_dump(settings))
    return folder / "dataset.yaml"


def opened(path, **settings):
    return FilesSource(sets={"farm": path}).open(DataSelection(domains=("farm",), **settings))


@pytest.mark.parametrize("absolute", [False, True])
def test_images_and_labels_may_lie_elsewhere(tmp_path, absolute):
    fill(tmp_path / ".data/images", tmp_path / "marks")
    above = str(tmp_path) if absolute else ".."
    path = describe(tmp_path / "farm", classes=["a", "b"], images=f"{above}/.data/images", labels=f"{above}/marks")
    assert check(own_place("farm", path)).ok
    data = opened(path)
    assert [name.rpartition("train/")[2] for name in data.listing()] == ["a.png", "deep/b.png"]
    assert np.array_equal(data[1].label, LABEL)
    here = describe(tmp_path, classes=["a", "b"], images=".data/images", labels="marks")
    facts = [FilesSource(sets={"farm": each}).facts(DataSelection(domains=("farm",))) for each in (path, here)]
    assert facts[0] == facts[1]  # where images lie does not matter


@pytest.mark.parametrize("absolute", [False, True])
def test_annotation_files_and_lists_may_lie_elsewhere(tmp_path, absolute):
    fill(tmp_path / "images", tmp_path / "labels")
    above = str(tmp_path) if absolute else ".."
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("deep/b\n")
    path = describe(
        tmp_path / "farm", classes=["a", "b"], images=f"{above}/images/train", labels=f"{above}/labels/train",
        splits={"train": f"{above}/lists/train.txt"},
    )  # fmt: skip
    assert [name[-10:] for name in opened(path).listing()] == ["deep/b.png"]
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 12}], "annotations": [],
               "categories": [{"id": 1, "name": "car"}]}  # fmt: skip
    (tmp_path / "lists/train.json").write_text(json.dumps(content))
    path = describe(tmp_path / "coco", layout="coco", annotations={"train": f"{above}/lists/train.json"},
                    images=f"{above}/images/train", background="ground")  # fmt: skip
    assert check(own_place("farm", path)).ok
    assert opened(path)[0].label.tolist() == np.zeros(SIZE).tolist()


def test_two_splits_with_one_folder_of_images_have_their_own(tmp_path):
    fill(tmp_path / "images", tmp_path / "labels", ("a", "b", "c"))
    for split, names in (("train", "ab"), ("val", "c")):
        images = [{"id": i, "file_name": f"{name}.png", "height": 8, "width": 12} for i, name in enumerate(names)]
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "car"}]}
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    path = describe(tmp_path, layout="coco", annotations={"train": "train.json", "val": "val.json"},
                    images="images/train", background="ground")  # fmt: skip
    assert [len(opened(path, split=split)) for split in ("train", "val")] == [2, 1]
    assert [split.images for split in check(own_place("farm", path)).splits] == [2, 1]


def refused_alike(path, message):
    with pytest.raises(UserError, match=message) as caught:
        check(own_place("farm", path))
    (line,) = FilesSource(sets={"farm": path}).problems(DataSelection(domains=("farm",)), labelled=True)
    assert line == str(caught.value)
    line.encode()  # it can be printed
    assert "\n" not in line


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\nlines.png"])
def test_a_name_that_cannot_be_written_down_is_refused(tmp_path, name):
    fill(tmp_path / "images", tmp_path / "labels")
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "images/train") + b"/" + name))
    save(odd, picture(1, SIZE))
    refused_alike(describe(tmp_path, classes=["a", "b"]), "control characters; rename the file")


def test_names_of_composed_and_of_single_characters_are_a_pair(tmp_path):
    fill(tmp_path / "images", tmp_path / "none", ("u\N{COMBINING DIAERESIS}",))
    fill(tmp_path / "none", tmp_path / "labels", ("\N{LATIN SMALL LETTER U WITH DIAERESIS}",))
    outcome = check(own_place("farm", describe(tmp_path, classes=["a", "b"])))
    assert outcome.ok
    assert outcome.splits[0].labelled == 1
    assert not outcome.splits[0].lone_labels


@pytest.mark.parametrize("kind", ["a pipe", "a socket"])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, kind, monkeypatch):
    def make(path):
        monkeypatch.chdir(path.parent)  # a socket's path must be short
        path.unlink(missing_ok=True)
        if kind == "a pipe":
            os.mkfifo(path)
        else:
            with socket.socket(socket.AF_UNIX) as end:
                end.bind(path.name)

    fill(tmp_path / "images", tmp_path / "labels")
    path = describe(tmp_path, classes=["a", "b"])
    make(tmp_path / "labels/train/a.png")
    message = f"cannot read .*a.png: it is {kind}, where a file is expected"
    with pytest.raises(UserError, match=message):
        opened(path)[0]
    assert message.split(": ")[1] in check(own_place("farm", path)).splits[0].faults[0]
    make(tmp_path / "train.json")
    refused_alike(
        describe(tmp_path, layout="coco", annotations={"train": "train.json"}),
        f"cannot read .*train.json: it is {kind}",
    )
    make(tmp_path / "train.txt")
    with pytest.raises(UserError, match=f"cannot read the list .*it is {kind}"):
        opened(describe(tmp_path, classes=["a", "b"]), list=tmp_path / "train.txt")
    make(tmp_path / "dataset.yaml")
    refused_alike(tmp_path / "dataset.yaml", f"dataset.yaml is {kind}; expected a description")
    make(tmp_path / "x.zip")
    with pytest.raises(UserError, match=f"x.zip is {kind}, where an archive is expected"):
        open_store(tmp_path / "x.zip")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    path = describe(tmp_path, layout="coco", annotations={"train": "train.json"})
    (tmp_path / "train.json").mkdir()
    refused_alike(path, r"cannot read .*train.json: it is a folder")
