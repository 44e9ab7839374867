"""What is shipped: a student's encoder in half precision, with the story of how it was made."""

from __future__ import annotations

import pytest
import torch

from segdistill.config import UserError
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.files import read_signed, sha256
from segdistill.runs.execute import run
from segdistill.sharing.pack import pack_encoder as pack
from tiny_runs import tiny


@pytest.fixture(scope="module")
def packed(tmp_path_factory, finished):
    out = tmp_path_factory.mktemp("packed") / "small.safetensors"
    return out, pack(finished, out)


def test_the_packed_encoder_loads_and_is_the_students_to_half_precision(packed, finished):
    out, _ = packed
    small = build_encoder(EncoderConfig(name="world_student", weights=str(out)), seed=5).state_dict()
    left = str(finished / "stages" / "02-task")  # the last stage that trained it
    for key, value in build_encoder(EncoderConfig(name="world_student", weights=left), seed=6).state_dict().items():
        assert torch.equal(small[key], value.half().float()), key
    assert out.stat().st_size < 0.6 * (finished / "stages/02-task/encoder.safetensors").stat().st_size


def test_the_manifest_tells_recipe_seed_steps_hardware_commit_and_metrics(packed):
    out, manifest = packed
    assert read_signed(out.with_suffix(".json")) == manifest
    assert manifest["sha256"] == sha256(out)
    assert (manifest["encoder"], manifest["seed"], manifest["licence"]) == ("world_student", 0, "apache-2.0")
    assert manifest["recipe"] == "tiny"
    assert [(stage["name"], stage["steps"]) for stage in manifest["stages"]] == [
        ("teacher", 2), ("agnostic", 8), ("task", 8)]  # fmt: skip
    for stage in manifest["stages"]:
        assert stage["hardware"]
        assert stage["commit"]
        assert stage["metrics"]["step"] == stage["steps"]
        assert stage["metrics"]["loss"] > 0
    assert set(manifest["scores"]["student"]["miou"]) == {"game", "fog", "rain"}


def test_a_run_without_a_finished_student_cannot_be_packed(tmp_path, finished):
    with pytest.raises(UserError, match="no recipe at"):
        pack(tmp_path / "none", tmp_path / "x")
    run(tiny(tmp_path, "stages=[{type: task, name: teacher, model: teacher, steps: 1, batch: 2, "
                       "data: {domains: [game], images: 4}}]", "evaluate=null"), tmp_path / "run")  # fmt: skip
    with pytest.raises(UserError, match="no finished student encoder"):
        pack(tmp_path / "run", tmp_path / "x")
    assert not list(tmp_path.glob("x*"))
