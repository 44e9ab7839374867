"""The recipes of real data sets with objects: a dry run and fifty steps of every stage, on samples in official form."""

from __future__ import annotations

import json

import pytest

import tiny_vocab
from segdistill.data.catalog import DATASETS
from segdistill.data.pseudo import read_pseudo
from segdistill.data.sample import write_sample
from segdistill.grid.demo import recipes_folder, shortened
from segdistill.recipe import load

SETS = {"cityscapes_instance": "cityscapes_instances", "ade20k_instance": "ade20k_instances"}
HEAD = (
    "{type: masked_dpt, width: 64, heads: 2, queries: 6, decoder_layers: 1, decoder_feedforward: 16, "
    "neck_channels: [8, 8, 8, 8], points: 32}"
)


@pytest.fixture(scope="module", params=SETS)
def small(request, tmp_path_factory):
    """A recipe, and the overrides that make it run in seconds on a sample with tiny networks."""
    name, root = SETS[request.param], tmp_path_factory.mktemp("sets")
    write_sample(name, root, images=4, size=(64, 128))
    words = sorted({word for each in DATASETS[name].classes for word in each.lower().replace(",", " ").split()})
    teacher = {"detector": tiny_vocab.detector(root / "detector", words=words), "threshold": 0.02}
    teacher["segmenter"] = tiny_vocab.segmenter(root / "segmenter")
    path = recipes_folder() / f"{request.param}.yaml"
    recipe = load(path)
    changes = [*shortened(recipe, steps=50), f"data.root={root}", "data.size=[32,64]", f"student.head={HEAD}",
               "accelerator=cpu", "student.encoder={name: world_student}", "workers=0", "precision=32-true",
               "evaluate.images=1", "log_every=10", "checkpoint_every=1000", "evaluate.pictures=1"]  # fmt: skip
    for stage in recipe.stages:
        key = {"open_vocabulary": "model", "pseudo_label": "open_vocabulary"}.get(stage.type)
        changes += [f"stages.{stage.name}.{key}.{part}={value}" for part, value in teacher.items() if key]
        changes += [f"stages.{stage.name}.score=0", f"stages.{stage.name}.least=1"] * (key == "open_vocabulary")
        changes += [f"stages.{stage.name}.unlabelled.score=0"] * (getattr(stage, "unlabelled", None) is not None)
        changes += [f"stages.{stage.name}.size=[48,96]"] * (key == "model")
    return path, changes


def test_a_dry_run_tells_the_stages_and_leaves_nothing(small, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    path, changes = small
    status, printed, err = call("run", path, *changes, "--dry-run")
    assert not status, err
    kinds = [line.split()[1] for line in printed.splitlines() if line[:2].isdigit()]
    assert kinds == [stage.type for stage in load(path).stages]
    assert "GFLOP/s assumed" in printed
    assert not any(tmp_path.iterdir())


def test_fifty_steps_of_every_stage_run(small, tmp_path, call):
    path, changes = small
    status, _, err = call("run", path, *changes, "--out", tmp_path / "run")
    assert not status, err
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    trained = ("00-adapt_labels-detector", "00-adapt_labels-segmenter", "02-adapt-detector", "02-adapt-segmenter",
               "04-transfer", "05-refine")  # fmt: skip
    assert [(line["stage"], line["step"]) for line in lines] == [
        (label, step) for label in trained for step in range(10, 51, 10)
    ]
    assert len(read_pseudo(tmp_path / "run/stages/03-labels/labels.json")) == 3
    assert "pixel_contrast" in next(line for line in lines if line["stage"] == "04-transfer")["terms"]
    results = json.loads((tmp_path / "run/results.json").read_text())
    domain = SETS[path.stem]
    assert set(results["models"]["student"]["domains"]) == {domain}
    assert (tmp_path / "run/report.html").stat().st_size > 1000


def test_the_authors_settings(small):
    """Of the data set that the recipe is for; see the specification, 2.3 and 3."""
    recipe = load(small[0])
    adapt, labels, again, _, transfer, refine = recipe.stages
    assert adapt.detector.model_dump() == again.detector.model_dump()
    assert (adapt.images_of("detector"), adapt.images_of("segmenter")) == (8, 1)
    assert (adapt.detector.lr, adapt.segmenter.lr, labels.score, labels.open_vocabulary.threshold) == (
        5e-5,
        5e-6,
        0.3,
        0.3,
    )
    assert (transfer.steps, transfer.images_per_step, transfer.optimizer.encoder_lr_scale) == (90000, 8, 0.1)
    expected = {"cityscapes": (1000, 5e-5, 0.1), "ade20k": (10000, 1e-4, 0.05)}[recipe.name.partition("_")[0]]
    assert (adapt.steps, transfer.optimizer.lr, transfer.optimizer.weight_decay) == expected
    assert {transfer.optimizer.clip, refine.optimizer.clip} == {0.01}
