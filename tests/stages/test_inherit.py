"""The stage in which a student starts as a slice of its teacher."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from segdistill.config import UserError
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.ops import derive_seed
from segdistill.recipe import load
from segdistill.runs.check import check
from segdistill.runs.execute import run
from segdistill.runs.plan import make_plan
from tiny_runs import only, tiny_file

STAGE = {
    "type": "inherit",
    "name": "start",
    "data": {"domains": ["proxy"], "images": 4},
    "batch": 2,
    "calibrate": 6,
    "stem_steps": 20,
}


def recipe(folder, *changes, **stage):
    parsed = yaml.safe_load(only("task", evaluate=None))
    parsed["stages"] = [STAGE | stage, *parsed["stages"]]
    return load(tiny_file(folder, yaml.safe_dump(parsed, sort_keys=False)), list(changes))


def test_the_next_stage_starts_from_the_slice(tmp_path):
    run(recipe(tmp_path, "stages.task.optimizer.lr=1e-30", "stages.task.steps=1"), tmp_path / "run")
    start = load_file(tmp_path / "run/stages/00-start/encoder.safetensors")
    left = load_file(tmp_path / "run/stages/01-task/encoder.safetensors")
    random = build_encoder(EncoderConfig(name="world_student"), seed=derive_seed(0, "student")).state_dict()
    name = "backbone.blocks.0.attn.qkv.weight"
    assert not torch.equal(start[name], random[name])
    for key, value in start.items():
        torch.testing.assert_close(left[key], value, rtol=0, atol=1e-6, msg=key)


def test_what_was_cut_is_in_the_results_and_the_slice_is_a_function_of_its_settings(tmp_path):
    run(recipe(tmp_path), tmp_path / "run")
    facts = json.loads((tmp_path / "run/stages/00-start/manifest.json").read_text())["facts"]
    assert facts["blocks"] == [0, 1, 2, 3, 4, 5]
    assert 0.3 < facts["spread"] < 1
    assert facts["summary"].startswith("keeps ")
    assert len(facts["unexplained"]) == 6
    assert all(0 <= share < 1.5 for share in facts["unexplained"])

    def weights(*changes):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        run(recipe(tmp_path / "recipes", *changes), folder)
        return (folder / "stages/00-start/encoder.safetensors").read_bytes()

    first = (tmp_path / "run/stages/00-start/encoder.safetensors").read_bytes()
    assert weights("workers=1") == first
    changed = {weights(f"stages.start.{change}") for change in ("calibrate=2", "batch=3", "augment.erase=1.0",
                                                                "augment.flip=1.0", "stem_steps=5")}  # fmt: skip
    assert len(changed) == 5
    assert first not in changed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["student.encoder={name: world_resnet}"], "stage start: inherit needs two plain ViTs of timm: the student"),
        (["stages.start.blocks=[1]"], "takes 6 rising numbers from 0 to 5"),
        (["teacher.encoder.name=world_student", "student.encoder.name=world_teacher"], "choose a smaller student"),
    ],
)
def test_a_dry_run_refuses_a_pair_that_does_not_fit(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        check(recipe(tmp_path, *changes))


def test_a_recipe_without_a_teacher_is_refused(tmp_path):
    with pytest.raises(UserError, match="stage start needs a teacher"):
        recipe(tmp_path, "teacher=null")
    with pytest.raises(UserError, match="accumulate is for stages that train"):
        recipe(tmp_path, "stages.start.accumulate=2")


def test_its_plan_trains_nothing(tmp_path):
    start, task = make_plan(recipe(tmp_path), speed=1e9).stages
    assert (start.trained, start.steps, start.kind) == (0, 0, "inherit")
    assert start.seconds > 0
    assert task.trained > 0
