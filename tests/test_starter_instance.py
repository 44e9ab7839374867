"""`segdistill init --task instance`: outlines and images without labels become a recipe that runs."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import yaml
from PIL import Image

from segdistill.config import UserError
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.starter import start

WORLD = {"teacher": "world_teacher", "student": "world_student"}
HEAD = "{type: masked_dpt, width: 64, heads: 2, queries: 6, decoder_layers: 1, decoder_feedforward: 16, " \
       "neck_channels: [8, 8, 8, 8], points: 32}"  # fmt: skip
SHORT = [f"teacher.head={HEAD}", f"student.head={HEAD}", "stages.adapt.steps=1", "stages.adapt.contrast={anchors: 4}",
         "stages.labels.score=0.001", "stages.labels.least=1", "stages.transfer.steps=2",
         "stages.transfer.contrast={anchors: 4}", "stages.transfer.batch=2",
         "stages.refine.steps=1"]  # fmt: skip


def photos(root: Path, domains: dict[str, int], *, labelled: bool = True) -> None:
    for domain, count in domains.items():
        (root / domain).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = (
                np.random.default_rng(crc32(f"{domain} {number}".encode()))
                .integers(0, 255, (32, 64, 3))
                .astype(np.uint8)
            )
            Image.fromarray(pixels).save(root / domain / f"{number}.png")
            if labelled:
                corners = [[4 + number, 4], [30, 4], [30, 28], [4 + number, 28]]
                shape = {"label": ("cat", "dog")[number % 2], "points": corners, "shape_type": "polygon"}
                content = {"shapes": [shape], "imagePath": f"{number}.png", "imageHeight": 32, "imageWidth": 64}
                (root / domain / f"{number}.json").write_text(json.dumps(content))


def test_images_without_labels_are_labelled_by_the_teacher(tmp_path):
    """They have no classes of their own: the pseudo-labels have those of the labelled images."""
    photos(tmp_path / "own", {"street": 5, "fog": 2})
    photos(tmp_path / "own", {"more": 3}, labelled=False)
    started = start(tmp_path / "own", tmp_path / "recipe.yaml", task="instance", **WORLD)
    recipe = load(started.recipe, SHORT)
    assert [stage.kind for stage in recipe.stages] == ["semi", "pseudo_label", "semi", "task"]
    results = run(recipe, tmp_path / "run")
    assert results["primary"] == "ap"
    assert set(results["models"]["student"]["domains"]) == {"street", "fog"}
    labels = json.loads((tmp_path / "run/stages/01-labels/labels.json").read_text())
    assert [each["name"] for each in labels["categories"]] == ["cat", "dog"]
    assert len(labels["images"]) == 3
    assert labels["annotations"]
    assert (tmp_path / "run/stages/01-labels/sheet.png").exists()


def test_without_other_images_the_labels_are_all(tmp_path):
    photos(tmp_path / "own", {"street": 5})
    started = start(tmp_path / "own", tmp_path / "recipe.yaml", task="instance", **WORLD)
    assert [(stage.kind, stage.name) for stage in load(started.recipe).stages] == [
        ("semi", "adapt"), ("semi", "transfer")]  # fmt: skip
    described = yaml.safe_load((tmp_path / "own/dataset.yaml").read_text())
    assert described["objects"] is True
    assert "background" not in described


def test_a_student_without_weights_inherits_and_the_papers_is_the_default(tmp_path):
    photos(tmp_path / "own", {"street": 5})
    photos(tmp_path / "own", {"more": 3}, labelled=False)
    names = {"teacher": "dinov2_s", "student": "vit_nano"}
    started = start(tmp_path / "own", tmp_path / "recipe.yaml", task="instance", **names)
    recipe = load(started.recipe)
    assert [stage.name for stage in recipe.stages] == ["adapt", "labels", "start", "transfer", "refine"]
    assert recipe.stages[2].gives == ("encoder", "head")
    other = start(tmp_path / "own", tmp_path / "other.yaml", task="instance", force=True)
    recipe = load(other.recipe)
    assert (recipe.teacher.encoder.name, recipe.student.encoder.name) == ("dinov2_b", "dinov2_s")


def test_label_maps_have_no_objects(tmp_path):
    photos(tmp_path / "own", {"images": 2, "labels": 2}, labelled=False)
    for number in range(2):
        Image.fromarray(np.eye(32, 64, dtype=np.uint8)).save(tmp_path / f"own/labels/{number}.png")
    with pytest.raises(UserError, match=r"label maps do not tell one object from the next; .* needs outlines"):
        start(tmp_path / "own", tmp_path / "recipe.yaml", task="instance", **WORLD)
    assert not (tmp_path / "recipe.yaml").exists()
