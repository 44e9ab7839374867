"""One and two processes do the same: losses of every step, weights at the end, whatever the number while it ran."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import torch
import yaml
from lightning.fabric import Fabric
from safetensors.torch import load_file
from torch import nn

from fake_processes import CASES, outcome, run_until, share, spoil
from segdistill import ops
from segdistill.heads import semfpn
from segdistill.ops import generator, own_mask, random_mask
from segdistill.runs.fabric import PATIENCE, make_fabric
from segdistill.train import checkpoint
from segdistill.train.norms import share_statistics
from tiny_runs import TINY, Child, tiny, tiny_file

DATA = {"domains": ["game"], "images": 6}
SEMFPN = {"type": "semfpn", "width": 8}  # with its dropout of 0.1
MASK2FORMER = {
    "type": "mask2former", "width": 64, "queries": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 2,
    "points": 48, "encoder_feedforward": 32, "decoder_feedforward": 32,
}  # fmt: skip


def stage(name, method=None, **settings):
    """A stage of four steps of four images each: padded crops, so that images differ in their labelled pixels."""
    values = {"type": "task" if name == "task" else "distill", "name": name, "data": DATA, "batch": 4, "steps": 4}
    if name == "task":
        values |= {"augment": {"scale": [0.4, 1.0]}}
    return values | settings | ({} if method is None else {"method": method})


def write(folder: Path, *stages, head=None, **changes) -> Path:
    values = yaml.safe_load(TINY)
    values["student"]["head"] = head or SEMFPN
    values["stages"] = list(stages)
    values["evaluate"] = {"domains": ["fog"], "unseen": ["fog"], "images": 3, "pictures": 1}
    return tiny_file(folder, yaml.safe_dump(values | changes, sort_keys=False))


def torchrun(processes: int, output: Path, target, *arguments, ranked: bool = False) -> list[Child]:
    """So many processes as torchrun starts them; ``ranked``: their number is the first argument."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    own = [{} if processes == 1 else shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [
        Child(output.with_suffix(f".{rank}"), target, *([rank] if ranked else []), *arguments, environment=environment)
        for rank, environment in enumerate(own)
    ]


def execute(processes: int, recipe: Path, folder: Path, fatal: tuple[str, int] | None = None) -> Path:
    """Run ``recipe`` in ``folder`` by so many processes; at the step ``fatal`` all are killed."""
    for child in torchrun(processes, folder, run_until, recipe, folder, folder.with_suffix(".trace"), fatal):
        status = child.wait()
        assert (status == 0) == (fatal is None), child.text()
    return folder


def logged(folder: Path) -> dict[tuple[str, int, str], float]:
    """Every loss term of every step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {(line["stage"], line["step"], name): value for line in lines for name, value in line["terms"].items()}


def assert_same(one: Path, other: Path, steps: int) -> None:
    ours, theirs = logged(one), logged(other)
    assert ours.keys() == theirs.keys()
    assert len({key[:2] for key in ours}) == steps
    for key, value in ours.items():
        assert theirs[key] == pytest.approx(value, rel=2e-5, abs=1e-7), key
    files = sorted(path.relative_to(one) for path in one.glob("stages/*/*.safetensors"))
    assert files
    for file in files:
        weights = load_file(other / file)
        for key, value in load_file(one / file).items():
            if not key.endswith("k_proj.bias"):  # the softmax removes it: its gradient is rounding, which Adam enlarges
                torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=5e-5, msg=f"{file} {key}")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Of every case, in two processes."""
    folder = tmp_path_factory.mktemp("cases")
    for child in [Child(folder / f"{rank}", share, rank, folder) for rank in range(2)]:
        assert child.wait() == 0, child.text()
    return torch.load(folder / "outcomes.pt")


@pytest.mark.parametrize("name", CASES)
def test_the_mean_of_two_processes_losses_and_gradients_is_that_of_one(outcomes, name):
    """Labelled pixels, masks and hidden tokens are not shared evenly; noise and dropout belong to the samples."""
    one, two = outcome(name), outcomes[name]
    assert one.keys() == two.keys()
    assert one["loss"].isfinite()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


EVERYTHING = [
    stage("masked", {"type": "gkd", "masked_only": True, "mask_probability": 0.3}),  # one masked image, and none
    stage("noisy", {"type": "vitkd"}),
    stage("task", {"type": "proteus"}, proxy={"data": DATA, "batch": 2}, presence_weight=0.1),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, image_cache):
    """One process, uninterrupted."""
    folder = tmp_path_factory.mktemp("alone")
    return execute(1, write(folder, *EVERYTHING), folder / "run")


def test_two_processes_with_workers_do_what_one_does_without(tmp_path, alone):
    two = execute(2, write(tmp_path, *EVERYTHING, workers=2), tmp_path / "run")
    assert_same(alone, two, 12)
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (alone, two))
    ours, theirs = (results["models"]["student"]["domains"]["fog"] for results in (ours, theirs))
    assert ours["images"] == theirs["images"] == 3
    for key in ("miou", "accuracy", "calibration_error"):
        assert theirs[key] == pytest.approx(ours[key], abs=2e-3)  # a pixel may fall on the other side


def test_a_run_goes_on_with_another_number_of_processes_and_workers(tmp_path, alone):
    folder = tmp_path / "run"
    recipe, workers = write(tmp_path / "none", *EVERYTHING), write(tmp_path / "two", *EVERYTHING, workers=2)
    execute(1, recipe, folder, ("00-masked", 3))
    execute(2, workers, folder, ("02-task", 3))
    execute(1, workers, folder)
    assert_same(alone, folder, 12)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": MASK2FORMER},
        {"student": {"encoder": {"name": "timm:test_efficientnet", "weights": "random"}, "head": SEMFPN}},
    ],
    ids=["mask2former", "batch norms"],
)
def test_random_points_and_batch_statistics_do_not_depend_on_the_number_of_processes(tmp_path, changes):
    recipe = write(tmp_path, stage("task"), **changes)
    assert_same(execute(1, recipe, tmp_path / "one"), execute(2, recipe, tmp_path / "two"), 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"generalize": [{"type": "advstyle"}]},
        {"generalize": [{"type": "tldr"}], "styles": {"data": {"domains": ["proxy"], "images": 4}}},
        {"generalize": [{"type": "shade", "prototypes": 3, "every": 2}, {"type": "feature_distance", "weight": 0.5}],
         "rare_class": {"min_pixels": 10}},
    ],
    ids=["advstyle", "tldr", "shade, feature distance, rare classes"],
)  # fmt: skip
def test_generalisation_baselines_do_not_depend_on_the_number_of_processes(tmp_path, settings):
    """Style statistics, prototypes, thing cells and the norms of Gram matrices are those of the whole batch."""
    recipe = write(tmp_path, stage("task", **settings))
    assert_same(execute(1, recipe, tmp_path / "one"), execute(2, recipe, tmp_path / "two"), 4)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_with_its_step(tmp_path):
    for child in torchrun(2, tmp_path / "output", spoil, tmp_path, ranked=True):
        assert child.wait() == 0, child.text()
    lines = {json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)}
    assert len(lines) == 1
    assert re.match(r"stage x, step 5: the loss is not finite \(good \S+, bad nan\)", lines.pop())
    assert checkpoint.load(tmp_path / "checkpoint", 12)["step"] == 4


def test_masked_images_are_spread_evenly_and_are_those_of_one_process(monkeypatch):
    settings = {"probability": 0.5, "ratio": 0.5}
    whole = random_mask(12, 8, rng=generator(0), **settings)
    assert torch.equal(own_mask(whole).tokens, whole.tokens)
    for size in (2, 3, 4):
        found = {}
        for rank in range(size):
            monkeypatch.setattr(ops, "share", lambda rank=rank, size=size: (rank, size))
            mine = own_mask(whole)
            assert len(mine.samples) in (6 // size, -(-6 // size))
            found |= {
                sample * size + rank: hidden
                for sample, hidden in zip(mine.samples.tolist(), mine.tokens.tolist(), strict=True)
            }
        assert found == dict(zip(whole.samples.tolist(), whole.tokens.tolist(), strict=True))


def test_channel_dropout_draws_what_torch_draws(monkeypatch):
    """In several processes it multiplies by its own numbers: those of ``nn.Dropout2d`` on the whole batch."""
    features = torch.randn(6, 5, 3, 2)
    torch.manual_seed(3)
    whole = nn.Dropout2d(0.4)(features)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(semfpn, "share", lambda: (0, 2))
        monkeypatch.setattr(semfpn, "own_rows", lambda kept, rank=rank: kept[rank::2])
        torch.manual_seed(3)
        parts.append(semfpn.ChannelDropout(0.4)(features[rank::2]))
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)


def test_batch_norms_are_left_alone_in_a_single_process():
    network = nn.Sequential(nn.BatchNorm2d(3))
    share_statistics(network)
    assert type(network[0]) is nn.BatchNorm2d


def test_processes_wait_for_one_that_works_alone(tmp_path, monkeypatch):
    class Unlaunched(Fabric):
        device = torch.device("cpu")

        def __init__(self, strategy, **_):
            self.made = strategy

        def launch(self):
            """Starts nothing."""

    monkeypatch.setattr("lightning.fabric.Fabric", Unlaunched)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert make_fabric(tiny(tmp_path)).made._timeout == PATIENCE
    assert PATIENCE.total_seconds() > 12 * 3600
