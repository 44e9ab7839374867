"""Warnings: what can be used and is probably not meant, by one function for `data check`, `run --dry-run` and `run`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from segdistill.data.check import check
from segdistill.data.dataset import DataSelection
from segdistill.data.doubts import LOOKED
from segdistill.data.files import FilesSource
from segdistill.data.own import own_place
from tiny_sets import picture

SIZE = (32, 64)
HALVES = np.repeat(np.array([0, 1], np.uint8), 16)[:, None].repeat(64, axis=1)


def make(root, label=HALVES, *, image=None, count=2, **settings):
    for first, split in enumerate(("train", "val")):
        for number in range(count):
            shift = number + count * first  # every image has pixels of its own
            seen = picture(shift, SIZE) if image is None else np.roll(image, shift)
            for folder, content in (("images", seen), ("labels", label)):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(root / folder / split / f"{number}.png")
    (root / "dataset.yaml").write_text(yaml.safe_dump({"classes": ["a", "b"]} | settings))
    return root / "dataset.yaml"


def unlisted(root):
    path = make(root)
    for split in ("train", "val"):
        Image.fromarray(picture(1, SIZE)).save(root / f"images/{split}/x.gif")
        (root / f"images/{split}/x.jfif").write_bytes(b"")
        (root / f"images/{split}/notes.txt").write_bytes(b"")
    return path


def crowds(root):
    runs = {"size": list(SIZE), "counts": [100, 28, 32 * 64 - 128]}
    (root / "images").mkdir(parents=True)
    Image.fromarray(picture(1, SIZE)).save(root / "images/a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 32, "width": 64}],
        "annotations": [{"image_id": 1, "category_id": which, "segmentation": runs, "iscrowd": crowd}
                        for which, crowd in ((1, 1), (1, 1), (2, 1), (2, 0))],
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
    }  # fmt: skip
    (root / "t.json").write_text(json.dumps(content))
    settings = {"layout": "coco", "annotations": {"train": "t.json", "val": "t.json"}, "background": "ground"}
    (root / "dataset.yaml").write_text(yaml.safe_dump(settings))
    return root / "dataset.yaml"


WIDE = (np.arange(32 * 64).reshape(SIZE) * 2).astype(np.uint16)  # to 4094: 12 bits
DOUBTS = {
    "absent": (lambda root: make(root, classes=["a", "b", "c"]), ["no pixel of 1 of 3 classes: c"]),
    "allignore": (lambda root: make(root, HALVES * 0 + 255), ["every pixel of the labels is ignored"]),
    "binary255": (lambda root: make(root, HALVES * 255),
                  ["255 is the only number besides 0, and it is ignored; if it means 'b', write ids: {0: a, 255: b}",
                   "no pixel of 1 of 2 classes: b"]),
    "crowdall": (crowds, ["every object of 'car' is a crowd (iscrowd: 1) and ignored",
                          "no pixel of 1 of 3 classes: car"]),
    "dark": (lambda root: make(root, image=WIDE), ["the images of 16 bits are nearly black: no value reaches 4096"]),
    "endings": (unlisted, ["2 files are not read because of their suffix (gif, jfif), such as images/train/x"]),
    "nothing": (make, []),
    "bright": (lambda root: make(root, image=WIDE * 16), []),
    "binary with ids": (lambda root: make(root, HALVES * 255, ids={0: "a", 255: "b"}), []),
}  # fmt: skip


@pytest.mark.parametrize("name", DOUBTS)
def test_the_check_and_a_look_before_a_run_say_the_same(tmp_path, name):
    build, wanted = DOUBTS[name]
    path = build(tmp_path / "set")
    outcome = check(own_place("set", path))
    assert outcome.ok
    lines = outcome.splits[0].doubts
    assert len(lines) == len(wanted)
    for line, text in zip(lines, wanted, strict=True):
        assert line.startswith(f"set, split train: {text}")
        assert "\n" not in line
    assert FilesSource(sets={"set": path}).doubts(DataSelection(domains=("set",)), labelled=True) == lines


def test_before_a_run_few_images_are_read_and_the_line_says_how_many(tmp_path):
    path = make(tmp_path, count=2 * LOOKED)
    for split in ("train", "val"):
        Image.fromarray(HALVES * 0).save(tmp_path / f"labels/{split}/1.png")
    (line,) = FilesSource(sets={"set": make(tmp_path, HALVES * 0, count=3 * LOOKED)}).doubts(
        DataSelection(domains=("set",)), labelled=True
    )
    assert line.endswith(f"no pixel of 1 of 2 classes: b (seen: {LOOKED} of {3 * LOOKED} images)")
    assert FilesSource(sets={"set": path}).doubts(DataSelection(domains=("set",)), labelled=False) == []


def test_two_processes_doubt_what_one_doubts(tmp_path):
    path = make(tmp_path, HALVES * 255, image=WIDE, count=9)
    one, two = (check(own_place("set", path), processes=processes) for processes in (1, 2))
    assert one.splits[0].doubts == two.splits[0].doubts
    assert len(one.splits[0].doubts) == 3


RECIPE = """
name: doubtful
data: {{source: files, size: [32, 64], sets: {{farm: {path}}}}}
student: {{encoder: {{name: world_student}}, head: {{type: semfpn, width: 8}}}}
stages: [{{type: task, name: task, data: {{domains: [farm]}}, batch: 2, steps: 1}}]
evaluate: {{domains: [farm], split: val, images: null, pictures: 0}}
accelerator: cpu
"""


TABLE = """
name: doubtful_table
title: Doubtful
seeds: [0]
rows: [{{title: One, recipe: {path}, baseline: true}}, {{title: Two, recipe: {path}, settings: [stages.task.steps=2]}}]
"""


def test_every_command_that_reads_images_prints_the_warnings_once(call, tmp_path):
    path = make(tmp_path / "farm", classes=["a", "b", "[/c]"])
    (tmp_path / "r.yaml").write_text(RECIPE.format(path=path))
    (tmp_path / "t.yaml").write_text(TABLE.format(path=tmp_path / "r.yaml"))
    recipe, out = ("run", tmp_path / "r.yaml"), ("--out", tmp_path / "run")
    train, val = (f"warning: farm, split {split}: no pixel of 1 of 3 classes: [/c] (seen: all 2 images)"
                  for split in ("train", "val"))  # fmt: skip
    commands = [(("data", "check", path, "--processes", 1), [train, val]), ((*recipe, "--dry-run"), [train, val]),
                ((*recipe, *out), [train, val]), (("evaluate", tmp_path / "run", "evaluate.batch=1"), [val]),
                (("bench", tmp_path / "t.yaml", "--dry-run"), [train, val])]  # fmt: skip
    for command, wanted in commands:
        status, told, err = call(*command)
        assert status == 0, err
        assert [line for line in (told + err).splitlines() if line.startswith("warning:")] == wanted, command
