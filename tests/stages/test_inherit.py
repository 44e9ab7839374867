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
from segdistill.runs.folder import fingerprints
from segdistill.runs.plan import make_plan
from tiny_runs import TINY_OBJECTS, only, tiny_file

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
        (["stages.start.blocks=[1]"], "needs 6 increasing block numbers from 0 to 5"),
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


@pytest.mark.parametrize("change", ["method={type: heir}", "cache={views: 2}"])
def test_a_method_or_a_cache_is_refused(tmp_path, change):
    with pytest.raises(UserError, match=f"start'.{change.partition('=')[0]}: this type of stage takes none; remove it"):
        recipe(tmp_path, f"stages.start.{change}")


def test_its_plan_trains_nothing(tmp_path):
    start, task = make_plan(recipe(tmp_path), speed=1e9).stages
    assert (start.trained, start.steps, start.kind) == (0, 0, "inherit")
    assert start.seconds > 0
    assert task.trained > 0


HEAD = ["encoder", "head"]


def with_head(folder, *changes, text=None, stages=("teacher", "task")):
    """A recipe whose student inherits the head that the teacher's stage trained."""
    parsed = yaml.safe_load(text or only(*stages, evaluate=None))
    parsed["stages"].insert(len(parsed["stages"]) - 1, STAGE | {"hands_over": HEAD})
    return load(tiny_file(folder, yaml.safe_dump(parsed, sort_keys=False)), list(changes))


@pytest.mark.parametrize("text", [None, TINY_OBJECTS])
def test_the_head_of_the_teacher_is_handed_over_but_for_its_first_layers(tmp_path, text):
    run(with_head(tmp_path, "evaluate=null", text=text), tmp_path / "run")
    teacher, start = (
        load_file(tmp_path / f"run/stages/{name}/head.safetensors") for name in ("00-teacher", "01-start")
    )
    first = ("reassemble", "0.weight", "0.bias") if text else ("laterals", "0.weight")
    differing = {key for key in start if teacher[key].shape != start[key].shape or not teacher[key].equal(start[key])}
    assert differing == {f"{first[0]}.{level}.{end}" for level in range(4) for end in first[1:]}
    manifests = [json.loads((tmp_path / f"run/stages/{name}/manifest.json").read_text())
                 for name in ("01-start", "02-task")]  # fmt: skip
    assert "the head's first layers reproduce" in manifests[0]["facts"]["summary"]
    assert len(manifests[0]["facts"]["head_unexplained"]) == 4
    assert manifests[0]["parameters"].keys() == {"encoder", "head"}
    assert "01-start/head.safetensors" in manifests[1]["weights"]["head"]


def test_the_start_predicts_much_as_its_teacher_does(tmp_path):
    """Before the first step of training; with a fresh head less than half of the pixels agree."""
    changes = ("stages.teacher.steps=40", "stages.teacher.data.images=8", "stages.teacher.optimizer.lr=1e-2",
               "stages.start.calibrate=12", "stages.start.data.images=8", "stages.start.stem_steps=300",
               "teacher.encoder.weights=shipped", "stages.task.steps=1", "stages.task.optimizer.lr=1e-30",
               "stages.task.method=null", "stages.task.proxy=null", "stages.task.presence_weight=0",
               "evaluate={domains: [game, fog], unseen: [fog], images: 2, pictures: 0}")  # fmt: skip
    recipe = with_head(tmp_path, *changes)
    found = run(recipe, tmp_path / "run")["agreement"]
    assert found["fog"] > 0.7


def test_a_teacher_without_a_trained_head_is_one_line(tmp_path):
    with pytest.raises(UserError, match="stage start: no earlier stage trains the teacher's head; put one before it"):
        with_head(tmp_path, stages=("task",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("student.head.width=16", "tensors of the student's and the teacher's differ"),
        (
            "student.head={type: mask2former}",
            "inherit copies the teacher's head, but the student's is Mask2Former and the",
        ),
    ],
)
def test_a_dry_run_refuses_heads_that_do_not_fit(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        check(with_head(tmp_path, change))


def test_its_plan_counts_both_networks(tmp_path):
    _, start, task = make_plan(with_head(tmp_path), speed=1e9).stages
    assert (start.trained, start.kind) == (0, "inherit")
    assert start.seconds > 0
    assert task.trained > 0


def test_the_head_is_part_of_the_fingerprint(tmp_path):
    encoder = with_head(tmp_path / "a", "stages.start.hands_over=[encoder]")
    head, other = with_head(tmp_path / "b"), with_head(tmp_path / "c", "stages.teacher.steps=3")
    prints = [fingerprints(each)[1:] for each in (encoder, head, other)]
    assert len({each[0] for each in prints}) == len({each[1] for each in prints}) == 3
