"""Blocks of encoders: compiled without another result, frozen ones sharded without another result."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import segdistill.train.blocks as module
from segdistill.config import UserError
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.train.blocks import blocks, compile_blocks, shard
from test_processes import DATA, assert_same, execute, stage, write
from tiny_runs import only, tiny_file


@pytest.mark.parametrize("name", ["world_student", "timm:test_resnet", "timm:test_convnext", "timm:test_efficientnet"])
def test_blocks_are_most_of_an_encoder_and_none_stands_in_another(name):
    encoder = build_encoder(EncoderConfig(name=name), seed=0)
    found = list(blocks(encoder))
    assert len(found) == len(set(found)) > 1
    inside = [parameter for block in found for parameter in block.parameters()]
    assert len(inside) == len({id(parameter) for parameter in inside})
    assert sum(p.numel() for p in inside) > 0.4 * sum(p.numel() for p in encoder.parameters())


def test_compiled_blocks_leave_the_same_run(tmp_path, monkeypatch):
    """Traced with their backward passes; the C++ code that torch would write for them takes too long here."""
    whole, compiled = torch.compile, []

    def traced(function):
        compiled.append(function.__qualname__)
        return whole(function, backend="aot_eager")

    text = only("agnostic", evaluate=None).replace("steps: 8", "steps: 2")
    run(load(tiny_file(tmp_path, text)), tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", traced)
    monkeypatch.setattr(module, "_check_compiler", lambda device: None)
    run(load(tiny_file(tmp_path, text), ["compile=true"]), tmp_path / "compiled")
    assert sorted(compiled) == ["Module._call_impl"] * 3 + ["through_blocks"] * 2
    assert_same(tmp_path / "plain", tmp_path / "compiled", 2)


def test_without_a_compiler_there_is_one_line(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("No working compiler found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match="cannot compile here: No working compiler found; use compile=false"):
        compile_blocks(build_encoder(EncoderConfig(name="world_student"), seed=0))


def test_a_trained_network_is_not_sharded():
    with pytest.raises(ValueError, match="only frozen"):
        shard(nn.Linear(2, 2), torch.device("cpu"))


STAGES = [
    {"type": "task", "name": "head", "model": "teacher", "data": DATA, "batch": 4, "steps": 2},
    stage("whole", {"type": "gkd"}) | {"steps": 2},
    stage("task", {"type": "mse"}) | {"steps": 2},
]


def test_a_sharded_teacher_gives_the_same_run_which_others_continue(tmp_path):
    """Two processes with a sharded teacher are killed in the second stage; one process without continues."""
    plain, sharded = (write(tmp_path / name, *STAGES, strategy=name, evaluate=None) for name in ("ddp", "fsdp"))
    whole, folder = execute(1, plain, tmp_path / "whole"), tmp_path / "run"
    execute(2, sharded, folder, ("01-whole", 1))
    execute(1, plain, folder, ("02-task", 1))
    execute(2, sharded, folder)
    assert_same(whole, folder, 6)
