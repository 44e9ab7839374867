"""Networks of unlike kinds as teacher and student of real runs on the world."""

from __future__ import annotations

import json

import torch
import yaml
from safetensors.torch import load_file

from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.ops import derive_seed
from segdistill.recipe import load
from segdistill.runs.execute import run
from tiny_runs import TINY, tiny_file

CONVNET = {"name": "timm:test_convnext"}
VIT = {"name": "timm:test_vit", "image_size": [32, 64]}
DISTIL = {"type": "distill", "name": "agnostic", "data": {"domains": ["proxy"], "images": 4}, "batch": 2, "steps": 2}
TASK = {"type": "task", "name": "task", "data": {"domains": ["game"], "images": 4}, "batch": 2, "steps": 2}


def go(folder, teacher, student, stages, **changes):
    """Run the tiny recipe with these networks and stages; the losses."""
    values = yaml.safe_load(TINY) | {"stages": stages, **changes}
    values["teacher"]["encoder"], values["student"]["encoder"] = teacher, student
    run(load(tiny_file(folder, yaml.safe_dump(values, sort_keys=False))), folder / "run")
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line["terms"] for line in lines]


def changed(folder, label, student):
    """The encoder's parameters that a stage has moved."""
    fresh = build_encoder(EncoderConfig.model_validate(student), seed=derive_seed(0, "student")).state_dict()
    left = load_file(folder / "run" / "stages" / label / "encoder.safetensors")
    assert left.keys() == fresh.keys()
    return {key for key, value in fresh.items() if not torch.equal(value, left[key])}


def score(folder):
    """The student's mean over the unseen domains."""
    return json.loads((folder / "run" / "results.json").read_text())["models"]["student"]["mean_unseen"]


def test_a_hierarchical_student_of_a_plain_teacher_goes_through_two_stages_and_is_scored(tmp_path):
    mse = {"method": {"type": "mse"}}
    terms = go(tmp_path, VIT, CONVNET, [DISTIL | mse, TASK | mse])
    assert [set(term) for term in terms] == [{"feature"}] * 2 + [{"cross_entropy", "feature"}] * 2
    assert {"backbone.stem.0.weight", "backbone.head.norm.weight"} <= changed(tmp_path, "00-agnostic", CONVNET)
    assert "backbone.stages.3.blocks.0.conv_dw.weight" in changed(tmp_path, "01-task", CONVNET)
    assert 0 <= score(tmp_path) <= 100


def test_two_stages_and_scores_of_a_timm_vit_with_a_hierarchical_teacher(tmp_path):
    stages = [DISTIL | {"method": {"type": "mse"}}, TASK | {"freeze_encoder": True}]
    terms = go(tmp_path, CONVNET, VIT, stages)
    assert [set(term) for term in terms] == [{"feature"}] * 2 + [{"cross_entropy"}] * 2
    assert 0 <= score(tmp_path) <= 100
    assert "backbone.blocks.0.attn.qkv.weight" in changed(tmp_path, "00-agnostic", VIT)
    assert not (tmp_path / "run" / "stages" / "01-task" / "encoder.safetensors").exists()


def test_gkd_hides_tokens_of_a_timm_vit(tmp_path):
    terms = go(tmp_path, {"name": "world_teacher"}, VIT, [DISTIL | {"method": {"type": "gkd"}}], evaluate=None)
    assert [set(term) for term in terms] == [{"token", "feature", "patch"}] * 2
    assert "mask_token" in changed(tmp_path, "00-agnostic", VIT)
