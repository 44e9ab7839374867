"""``segdistill pseudo-label``: a teacher of words or a run of ours, files beside the document, resume, mistakes."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

import tiny_vocab
from segdistill.data.pseudo import PseudoWriter, read_pseudo
from segdistill.recipe import load
from segdistill.runs.execute import run

RECIPE = """
name: own
title: Ours
task: instance
data: {source: world, classes: things8, size: [32, 64], least_pixels: 4}
student: {encoder: {name: world_student, weights: "shipped:world_student_local"},
          head: {type: masked_dpt, width: 64, heads: 2, queries: 6, decoder_layers: 1, decoder_feedforward: 16,
                 neck_channels: [8, 8, 8, 8], points: 32}}
stages: [{type: task, name: task, data: {domains: [game], images: 2}, batch: 2, steps: 1}]
accelerator: cpu
precision: 32-true
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A YAML file, and what is in it."""
    top = tmp_path_factory.mktemp("teacher")
    values = {"detector": tiny_vocab.detector(top / "d"), "segmenter": tiny_vocab.segmenter(top / "s")}
    lines = [f"{key}: {value}" for key, value in values.items()]
    path = top / "teacher.yaml"
    path.write_text("\n".join([*lines, "threshold: 0.02", "suppress: 1.0", "classes: [car, person]", "licence: MIT"]))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_cache):
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.yaml").write_text(RECIPE)
    run(load(folder / "own.yaml"), folder / "run")
    return folder / "run"


@pytest.fixture
def photos(tmp_path):
    """Three images of two sizes."""
    random = np.random.default_rng(0)
    for name, size in {"a.png": (40, 64), "deep/b.jpg": (32, 64), "c.png": (40, 64)}.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def test_a_teacher_of_words_labels_a_folder(teacher, photos, tmp_path, call):
    out, ids, sheet = tmp_path / "labels.json", tmp_path / "ids", tmp_path / "sheet.png"
    arguments = ("pseudo-label", teacher, photos, "--out", out, "--score", 0, "--least", 1)
    status, printed, err = call(*arguments, "--instance-ids", ids, "--sheet", sheet)
    assert not status, err
    labels = read_pseudo(out, ("car", "person"))
    assert list(labels) == ["images/a.png", "images/c.png", "images/deep/b.jpg"]
    assert (labels.info["teacher"], labels.info["licence"], labels.info["prompt"]) == ("d + s", "MIT", "car . person")
    count = sum(len(labels.detections(image)) for image in labels)
    assert count > 0
    assert f"{count} objects; 3 images labelled, 0 already finished" in printed
    with Image.open(ids / "images/deep/b_instanceIds.png") as picture:
        values = np.asarray(picture)
    objects = labels.objects("images/deep/b.jpg")
    assert values.shape == (32, 64)
    assert ((values > 0) == (objects.ids[0] > 0)).all()
    assert set(np.unique(values) // 1000) <= {0, 24, 26}  # Cityscapes' person and car
    with Image.open(sheet) as picture:
        assert picture.size[1] > 3 * 256
    before = out.read_bytes()
    status, printed, _ = call(*arguments)
    assert (status, out.read_bytes()) == (0, before)
    assert "0 images labelled, 3 already finished" in printed


def test_an_interrupted_command_continues_with_the_missing_images(teacher, photos, tmp_path, call, monkeypatch):
    def arguments(name):
        return "pseudo-label", teacher, photos, "--out", tmp_path / name, "--score", 0, "--least", 1

    added = PseudoWriter.add

    def add(self, image, *args):
        if image.endswith("c.png"):
            raise KeyboardInterrupt
        added(self, image, *args)

    monkeypatch.setattr(PseudoWriter, "add", add)
    assert call(*arguments("a.json"))[0] == 130
    assert not (tmp_path / "a.json").exists()
    monkeypatch.undo()
    printed = call(*arguments("a.json"))[1]
    assert "already finished" in printed
    assert "3 images labelled" not in printed
    call(*arguments("b.json"))
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "b.json").read_text())


def test_a_run_of_ours_labels_an_archive(finished, photos, tmp_path, call):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in photos.rglob("*.png"):
            archive.write(path, path.name)
    out = tmp_path / "labels.json"
    status, _, err = call("pseudo-label", finished, tmp_path / "set.zip", "--out", out, "--score", 0, "--least", 1)
    assert not status, err
    labels = read_pseudo(out)
    assert len(labels.classes) == 8
    assert list(labels) == ["images/set/a.png", "images/set/c.png"]
    assert labels.detections("images/set/a.png").size == (40, 64)
    assert labels.info["licence"] == "Apache-2.0"
    assert labels.info["thresholds"] == {"score": 0, "pixels": 1}


def test_bad_images_are_named_or_skipped(teacher, photos, tmp_path, call):
    (photos / "bad.png").write_bytes(b"no picture")
    arguments = ("pseudo-label", teacher, photos, "--out", tmp_path / "labels.json")
    status, _, err = call(*arguments)
    assert status == 2
    assert "bad.png" in err.splitlines()[-1]
    status, printed, err = call(*arguments, "--skip-bad")
    assert not status
    assert "1 skipped" in printed
    assert "skipped: " in err
    assert "3 already finished" in call(*arguments, "--skip-bad")[1]


def test_mistakes_are_one_line(teacher, finished, photos, tmp_path, call):
    def mistake(*arguments):
        status, _, err = call("pseudo-label", *arguments)
        assert status == 2
        return err.splitlines()[-1]

    out = tmp_path / "labels.json"
    assert "no model at nowhere" in mistake("nowhere", photos, "--out", out)
    assert "written to a .json file" in mistake(teacher, photos, "--out", tmp_path / "labels.txt")
    assert "no such file, folder or pattern" in mistake(teacher, tmp_path / "none", "--out", out)
    other = teacher.with_name("other.yaml")
    other.write_text(teacher.read_text().replace("classes: [car, person]", ""))
    assert "classes" in mistake(other, photos, "--out", out)
    other.write_text(teacher.read_text() + "\nthreshhold: 0.1\n")
    assert "threshold" in mistake(other, photos, "--out", out)
    call("pseudo-label", teacher, photos / "a.png", "--out", out)
    assert "another thresholds" in mistake(teacher, photos / "a.png", "--out", out, "--score", 0.5)
    assert "finished without 2 of the images" in mistake(teacher, photos, "--out", out)
    assert "has the classes car, person" in mistake(finished, photos, "--out", out)
