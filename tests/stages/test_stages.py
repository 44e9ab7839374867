"""The stages as a run executes them: what they hand over, and that each of their settings matters."""

from __future__ import annotations

import hashlib
import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from segdistill import environment
from segdistill.config import UserError
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.ops import derive_seed
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.runs.folder import handed_encoder
from segdistill.weights import ASSETS
from tiny_runs import only, tiny, tiny_file


def state(folder, label, kind="encoder"):
    return load_file(folder / "stages" / label / f"{kind}.safetensors")


def test_hand_over_is_the_students_encoder_without_teacher_and_heads(finished):
    student = build_encoder(EncoderConfig(name="world_student"), seed=derive_seed(0, "student"))
    left = state(finished, "01-agnostic")
    assert {key: value.shape for key, value in left.items()} == {
        key: value.shape for key, value in student.state_dict().items()
    }
    changed = [key for key, value in student.state_dict().items() if not torch.equal(value, left[key])]
    assert "backbone.blocks.0.attn.qkv.weight" in changed
    assert sorted(path.name for path in (finished / "stages" / "00-teacher").iterdir()) == [
        "head.safetensors", "images.txt", "manifest.json"]  # fmt: skip


def test_the_last_stage_that_trained_the_encoder_hands_it_over(tmp_path, finished):
    recipe = tiny(tmp_path)
    folders = [handed_encoder(recipe, finished, number) for number in range(4)]
    assert [path and path.parent.name for path in folders] == [None, None, "01-agnostic", "02-task"]


def test_a_stage_starts_from_the_weights_of_the_one_before(tmp_path, finished):
    """The domain-agnostic stage with a learning rate of nothing leaves what the task-agnostic stage left."""
    values = {"type": "distill", "name": "specific", "data": {"domains": ["game"], "images": 4}, "batch": 2, "steps": 1,
              "method": {"type": "mse"}, "optimizer": {"lr": 1e-30, "min_lr": 0.0}}  # fmt: skip
    recipe = tiny(tmp_path, "evaluate=null")
    stages = [recipe.stages[1].model_dump(mode="json"), values]
    path = tiny_file(tmp_path, only(stages=stages, evaluate=None))
    run(load(path), tmp_path / "run", reuse=[finished])
    before, after = state(tmp_path / "run", "00-agnostic"), state(tmp_path / "run", "01-specific")
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-20, msg=key)
    assert before.keys() == after.keys()


DISTILL = {
    "name": "other", "steps": 3, "batch": 4, "repeats": 1, "data.images": 3, "data.domains": "[game]",
    "data.first": 2, "data.split": "val", "method.type": "mse", "method.feature_weight": 0.5, "augment.erase": 1.0,
    "optimizer.lr": 1.0, "optimizer.weight_decay": 1.0, "optimizer.algorithm.betas": "[0.1, 0.9]",
    "optimizer.clip": 1.0e-9, "optimizer.algorithm": "{type: sgd}", "accumulate": 2,
}  # fmt: skip
TASK = {
    "name": "other", "steps": 3, "batch": 4, "freeze_encoder": True, "presence_weight": 0.5, "data.images": 3,
    "method": "{type: mse}", "augment.flip": 1.0, "optimizer.lr": 1.0, "optimizer.encoder_lr_scale": 1.0,
    "optimizer.weight_decay": 1.0, "optimizer.algorithm.betas": "[0.1, 0.9]",
    "optimizer.clip": 1.0e-9, "model": "teacher", "accumulate": 2,
}  # fmt: skip
RUN = {"seed": 1, "data.seed": 1, "data.redraw": 1, "data.size": "[32, 32]", "student.encoder.weights": "WEIGHTS"}
COSMETIC = {"title": "x", "log_every": 1, "checkpoint_every": 1}


def text(kind):
    """The tiny recipe with two steps of one stage, its name ``stage``, and no scores."""
    name = {"distill": "agnostic", "task": "task"}[kind]
    stage = {"type": kind, "name": "stage", "batch": 2, "steps": 2}
    stage["data"] = {"domains": ["proxy" if name == "agnostic" else "game"], "images": 4}
    if kind == "distill":
        stage |= {"method": {"type": "gkd"}}
    return only(stages=[stage], evaluate=None, log_every=5)


def outcome(folder, kind, override, finished):
    """A digest of every weight that the stage leaves under ``override``."""
    override = override.replace("WEIGHTS", str(finished / "stages" / "01-agnostic"))
    run(load(tiny_file(folder, text(kind)), [override]), folder / "run")
    digest = hashlib.sha256()
    for path in sorted((folder / "run").glob("stages/*/*.safetensors")):
        digest.update(path.name.encode())
        for key, value in sorted(load_file(path).items()):
            digest.update(key.encode() + value.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("kind", "settings"), [("distill", DISTILL), ("task", TASK)])
def test_every_setting_of_a_stage_changes_what_it_leaves(tmp_path, finished, kind, settings):
    changes = {f"stages.stage.{key}": value for key, value in settings.items()} | (RUN if kind == "task" else {})
    found = {"nothing": outcome(tmp_path / "base", kind, "seed=0", finished)}
    for number, (key, value) in enumerate(changes.items()):
        found[key] = outcome(tmp_path / str(number), kind, f"{key}={value}", finished)
    assert len(set(found.values())) == len(found), found


def test_log_titles_and_checkpoints_change_no_weight(tmp_path, finished):
    found = {outcome(tmp_path / key, "task", f"{key}={value}", finished) for key, value in COSMETIC.items()}
    assert len(found) == 1


def test_the_log_holds_the_terms_their_sum_and_what_the_method_measured(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        *(("00-teacher", step) for step in (1, 2)),
        *(("01-agnostic", step) for step in range(1, 9)),
        *(("02-task", step) for step in range(1, 9)),
    ]
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line["terms"].values()))
        assert line["images_per_s"] > 0
    assert set(lines[2]["terms"]) == {"token", "feature", "patch"}
    assert set(lines[-1]["terms"]) == {"cross_entropy", "presence", "token", "feature", "patch"}
    assert 0 <= lines[2]["diagnostics"]["own_position_share"] <= 1


def test_a_distillation_stage_may_have_a_size_and_a_patch_of_its_own(tmp_path):
    """As the papers' first stage: 224 pixels at patch 14, the next one 512 at patch 16; the weights follow."""
    text = (
        only("agnostic", evaluate=None)
        .replace("world_student", "timm:test_vit")
        .replace("world_teacher", "timm:test_vit")
    )
    path = tiny_file(tmp_path, text)
    other = ["stages.agnostic.size=[28,42]", "stages.agnostic.patch=14", "stages.agnostic.steps=1",
             "stages.agnostic.teacher_resample=hub", "teacher.encoder.image_size=[32,64]"]  # fmt: skip
    run(load(path, other), tmp_path / "run")
    state = load_file(tmp_path / "run" / "stages" / "00-agnostic" / "encoder.safetensors")
    assert state["backbone.patch_embed.proj.weight"].shape[-2:] == (14, 14)
    assert state["backbone.pos_embed"].shape[1] == 1 + 2 * 3
    config = load(path, other).stages[0]
    assert config.fit(EncoderConfig(name="timm:test_vit"), teacher=True).resample == "hub"
    assert config.fit(EncoderConfig(name="timm:test_vit")).resample == "papers"
    stem = EncoderConfig(name="world_student")
    with pytest.raises(UserError, match="leave `patch` out"):
        config.fit(stem)
    with pytest.raises(UserError, match=r"stage agnostic: size: .*image size 30 x 42 is not divisible by the patch 14"):
        load(path, [*other, "stages.agnostic.size=[30,42]"])


def test_the_peak_is_counted_from_where_it_was_forgotten():
    held = bytearray(2**29)
    before = environment.peak_memory_mb()
    del held
    environment.forget_peak()
    gone = 400 if sys.platform == "linux" else 0  # elsewhere a process cannot forget
    assert environment.peak_memory_mb() <= before - gone


def test_a_manifest_says_what_the_weights_were_and_what_the_stage_cost(tmp_path, monkeypatch):
    forgotten: list[None] = []
    monkeypatch.setattr(environment, "forget_peak", lambda: forgotten.append(None))
    path = ASSETS / "world_student_local.safetensors"
    run(load(tiny_file(tmp_path, only("agnostic", evaluate=None)), [f"student.encoder.weights={path}",
        "stages.agnostic.steps=1"]), tmp_path / "run")  # fmt: skip
    manifest = json.loads((tmp_path / "run" / "stages" / "00-agnostic" / "manifest.json").read_text())
    assert list(manifest["weights"]) == ["student"]  # the teacher's are random: nothing was read
    assert "100.00 % of the parameters" in manifest["weights"]["student"]
    assert str(path) in manifest["weights"]["student"]
    assert 100 < manifest["memory_mb"] < 100_000
    assert len(forgotten) == 1  # each stage counts its own


def two_tasks(folder, first="", second=""):
    """Two task stages of the student, the second one with a learning rate that moves nothing; what each leaves."""
    stage = {"type": "task", "data": {"domains": ["game"], "images": 4}, "batch": 2, "steps": 1}
    still = {"optimizer": {"lr": 1e-30, "weight_decay": 0.0}}
    stages = [stage | {"name": "one"} | first, stage | {"name": "two"} | still | second]
    run(load(tiny_file(folder, only(stages=stages, teacher=None, evaluate=None))), folder / "run")
    return [
        {path.name: load_file(path) for path in (folder / "run/stages" / name).glob("*.safetensors")}
        for name in ("00-one", "01-two")
    ]


def equal(one, other):
    return all(torch.allclose(value, other[key], rtol=0, atol=1e-20) for key, value in one.items())


@pytest.mark.parametrize("given", [(), ("encoder",), ("head",), ("encoder", "head")])
def test_a_stage_starts_with_what_the_recipe_says_that_an_earlier_one_hands_over(tmp_path, given):
    before, after = two_tasks(tmp_path, {"hands_over": list(given)}, {})
    for part in ("encoder", "head"):
        name = f"{part}.safetensors"
        assert equal(before[name], after[name]) == (part in given), part


def test_by_default_the_trained_encoder_is_handed_over_and_a_head_starts_anew(tmp_path):
    before, after = two_tasks(tmp_path, {}, {})
    assert equal(before["encoder.safetensors"], after["encoder.safetensors"])
    assert not equal(before["head.safetensors"], after["head.safetensors"])


def test_what_a_stage_does_not_train_it_cannot_hand_over(tmp_path):
    with pytest.raises(UserError, match="hands_over: the encoder is not trained here; allowed: head"):
        two_tasks(tmp_path, {"hands_over": ["encoder"], "freeze_encoder": True}, {})
    with pytest.raises(UserError, match="hands_over: the head is not trained here; allowed: encoder"):
        load(tiny_file(tmp_path), ["stages.agnostic.hands_over=[head]"])
