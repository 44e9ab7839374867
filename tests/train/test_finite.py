"""A loss that is not finite ends the training with its step's name before anything of it is saved."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric

from fake_processes import Spoiled, train_spoiled
from segdistill.train import checkpoint
from segdistill.train.finite import Finite


@pytest.mark.parametrize(("at", "saved"), [(2, None), (5, 4), (7, 4), (11, 8)])
def test_the_step_is_named_and_the_newest_checkpoint_is_older(tmp_path, at, saved):
    """Losses are looked at before each checkpoint, every fourth step here, and at the end."""
    line = train_spoiled(Fabric(accelerator="cpu"), tmp_path, Spoiled(at))
    assert line.startswith(f"stage x, step {at}: the loss is not finite (good ")
    assert "bad nan" in line
    state = checkpoint.load(tmp_path / "checkpoint", 12)
    assert (state and state["step"]) == saved
    if state:
        assert all(value.isfinite().all() for value in state["modules"]["layer"].values())


def test_the_first_step_counts_and_its_terms():
    finite = Finite()
    for step, value in enumerate([1.0, float("inf"), 2.0, float("nan")]):
        finite.see(step, torch.tensor(value + step), {"a": torch.tensor(value), "b": torch.tensor(float(step))})
        assert (finite.broken() is None) == (step == 0)
    assert finite.broken() == (1, {"a": float("inf"), "b": 1.0})


def test_steps_in_between_do_not_wait_for_the_loss(tmp_path, monkeypatch):
    """On a GPU reading a number waits for all that is queued: only logged steps may."""
    read, item = [], torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: read.append(1) or item(self))
    counts = []
    for steps in (3, 11):
        read.clear()
        assert not train_spoiled(Fabric(accelerator="cpu"), tmp_path, Spoiled(99), steps=steps, checkpoint_every=100)
        counts.append(len(read))
    assert counts[0] == counts[1] > 0
