"""A checkpoint continues only what it was made by."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from segdistill.config import UserError
from segdistill.runlog import Quiet, RunLog
from segdistill.train import checkpoint
from segdistill.train.loop import LoopSettings, Objective, train
from segdistill.train.optim import CosineConfig, build_optimizer, parameter_groups, vectors_and_biases

ADAMW = partial(build_optimizer, CosineConfig().algorithm)


class Nothing(Objective):
    """One trained layer that is never asked for a loss."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def optimized(self):
        return {"layer": self.layer}


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    objective = Nothing()
    checkpoint.save(tmp_path / "checkpoint", 2, {"modules": {}, "optimizer": {}, "seconds": 1.0, "fingerprint": "a"})
    with pytest.raises(UserError, match="made with other settings or weights; delete it"):
        train(
            Fabric(accelerator="cpu"),
            objective,
            parameter_groups([(objective, 1.0)], 0.0, vectors_and_biases),
            lambda order: iter(()),
            schedule=CosineConfig().schedule(1),
            optimizer=ADAMW,
            settings=LoopSettings(stage="x", steps=2, seed=(0,), fingerprint="b"),
            folder=tmp_path / "checkpoint",
            log=RunLog(tmp_path, Quiet(), writes=True),
        )


class Averaged(Objective):
    """A layer, and a moving average of it that the optimiser does not touch."""

    def __init__(self):
        super().__init__()
        self.layer, self.average = nn.Linear(2, 1), nn.Linear(2, 1)
        self.average.requires_grad_(False)

    def optimized(self):
        return {"layer": self.layer}

    def state(self):
        return {**self.optimized(), "average": self.average}

    def forward(self, batch, step, steps):
        with torch.no_grad():
            self.average.weight.lerp_(self.layer.weight, 0.5)
        return {"loss": self.layer(batch["x"]).square().mean()}


def test_a_checkpoint_holds_more_than_is_optimised_and_both_continue(tmp_path):
    def trained(folder, steps):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(0)
        objective = Averaged()
        train(
            Fabric(accelerator="cpu"),
            objective,
            parameter_groups([(each, 1.0) for each in objective.optimized().values()], 0.0, vectors_and_biases),
            lambda order: ({"x": torch.full((1, 2), 1.0 + step)} for step in itertools.islice(order, steps)),
            schedule=lambda step, steps: 0.1,
            optimizer=ADAMW,
            settings=LoopSettings(stage="x", steps=4, seed=(0,), fingerprint="a", checkpoint_every=2),
            folder=folder / "checkpoint",
            log=RunLog(folder, Quiet(), writes=True),
        )
        return objective.state_dict()

    whole = trained(tmp_path / "whole", 4)
    with pytest.raises(ValueError, match="zip"):  # no third batch: the run is cut after its checkpoint
        trained(tmp_path / "cut", 2)
    kept = torch.load(tmp_path / "cut/checkpoint/step-00000002.pt", weights_only=True)
    assert set(kept["modules"]) == {"layer", "average"}
    again = trained(tmp_path / "cut", 4)
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    assert not torch.equal(whole["average.weight"], whole["layer.weight"])
