"""A checkpoint continues only what it was made by."""

from __future__ import annotations

from functools import partial

import pytest
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
