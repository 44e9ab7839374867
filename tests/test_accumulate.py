"""Gradient accumulation: micro-batches one after the other do what the whole batch does at once."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from lightning.fabric import Fabric
from torch import nn

from fake_processes import ADAMW, CASES, outcome
from segdistill.config import UserError
from segdistill.processes import first_micro_batch, micro_batch
from segdistill.recipe import load
from segdistill.runlog import Quiet, RunLog
from segdistill.runs.plan import make_plan
from segdistill.train.loop import LoopSettings, Objective, train
from segdistill.train.optim import parameter_groups, vectors_and_biases
from test_processes import DATA, MASK2FORMER, assert_same, execute, stage, write
from tiny_runs import only, tiny_file

EQUAL = ("cross entropy of nothing", "gkd", "g2sd", "proteus, none masked", "vitkd", "afdcd", "mse", "cwd", "dropout")
"""Terms that are means over images, or whose random numbers belong to the images."""
OTHER = (
    "cross entropy", "presence", "semfpn", "mask2former", "mask2former with one mask", "gkd, hidden tokens alone",
    "proteus, three masked", "batch norm",
)  # fmt: skip
"""Terms divided by a count that micro-batches do not share evenly, and statistics of the batch."""


def accumulated(name):
    parts = []
    for number in range(2):
        with micro_batch(number, 2):
            parts.append(outcome(name))
    return {key: (parts[0][key] + parts[1][key]) / 2 for key in parts[0]}


@pytest.mark.parametrize("name", EQUAL)
def test_two_micro_batches_have_the_mean_loss_and_gradients_of_the_batch(name):
    whole, parts = outcome(name), accumulated(name)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", OTHER)
def test_the_documentation_names_what_differs(name):
    assert name in CASES
    whole, parts = outcome(name), accumulated(name)
    assert any(not torch.allclose(parts[key], value, rtol=1e-4, atol=1e-5) for key, value in whole.items())


EVEN = [
    stage("masked", {"type": "gkd", "mask_probability": 0.5}),  # a masked image in each micro-batch
    stage("noisy", {"type": "vitkd"}),
]
HALVES = [values | {"accumulate": 2} for values in EVEN]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, image_cache):
    """Of one process, in one pass per step."""
    folder = tmp_path_factory.mktemp("whole")
    return execute(1, write(folder, *EVEN, evaluate=None), folder / "run")


def test_a_run_is_the_same_with_micro_batches_whatever_the_processes_that_continue_it(tmp_path, whole):
    recipe, folder = write(tmp_path, *HALVES, evaluate=None), tmp_path / "run"
    execute(1, recipe, folder, ("00-masked", 3))
    execute(2, recipe, folder, ("01-noisy", 3))
    execute(1, recipe, folder)
    assert_same(whole, folder, 8)


def test_heads_of_queries_train_with_micro_batches_in_two_processes(tmp_path):
    values = stage("task", accumulate=2) | {"steps": 2}
    one, two = (execute(n, write(tmp_path, values, head=MASK2FORMER, evaluate=None), tmp_path / str(n)) for n in (1, 2))
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (one, two)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # random points differ


class Watched(Objective):
    """Records its passes and how often a step begins."""

    def __init__(self):
        super().__init__()
        self.layer, self.rows, self.begun = nn.Linear(2, 1), [], 0

    def optimized(self):
        return {"layer": self.layer}

    def forward(self, batch, step, steps):
        self.begun += first_micro_batch()
        self.rows.append(batch["x"][:, 0].tolist())
        return {"loss": self.layer(batch["x"]).square().mean()}


def trained(folder, accumulate, batch=6):
    torch.manual_seed(0)
    objective = Watched()
    one = torch.arange(batch).float()
    train(
        Fabric(accelerator="cpu"),
        objective,
        parameter_groups([(objective, 1.0)], 0.0, vectors_and_biases),
        lambda order: ({"x": torch.stack([one, one], 1)} for _ in order),
        schedule=lambda step, steps: 0.1,
        optimizer=ADAMW,
        settings=LoopSettings(stage="x", steps=3, seed=(0,), fingerprint="a", accumulate=accumulate, log_every=1),
        folder=folder / "checkpoint",
        log=RunLog(folder, Quiet(), writes=True),
    )
    return objective, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_image_is_in_one_micro_batch_and_a_step_begins_once(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, log = trained(tmp_path / "a", 1)
    parts, other = trained(tmp_path / "b", 3)
    assert parts.rows[:3] == [[0, 3], [1, 4], [2, 5]]
    assert parts.begun == whole.begun == 3
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value)
    for one, two in zip(log, other, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_images_per_second_count_the_whole_batch(tmp_path, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("segdistill.train.loop.time.perf_counter", lambda: float(next(clock)))
    _, log = trained(tmp_path, 3)
    assert [entry["images_per_s"] for entry in log] == [6.0] * 3


def test_a_batch_that_does_not_divide_is_one_line(tmp_path):
    with pytest.raises(UserError, match="6 images per process cannot be divided into 4 micro-batches; choose"):
        trained(tmp_path, 4)
    text = only("agnostic").replace("batch: 2", "batch: 2\n  accumulate: 3")
    with pytest.raises(UserError, match="stage agnostic: accumulate 3 does not divide the batch 2; choose a divisor"):
        load(tiny_file(tmp_path, text))


def test_the_memory_of_a_plan_is_that_of_a_micro_batch(tmp_path):
    def memory(accumulate):
        values = yaml.safe_load(only("agnostic", evaluate=None))
        values["stages"][0] |= {"batch": 64, "accumulate": accumulate, "data": DATA}
        return make_plan(load(tiny_file(tmp_path, yaml.safe_dump(values))), speed=1e9).stages[0]

    whole, parts = memory(1), memory(8)
    assert parts.memory < 0.3 * whole.memory
    assert parts.flops == whole.flops
