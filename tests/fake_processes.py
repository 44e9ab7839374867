"""What a process of several computes in the tests of :mod:`segdistill.processes`; a spawned process can import it."""

from __future__ import annotations

import json
import multiprocessing
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from torch import nn

from checks import MethodCase
from segdistill.config import UserError
from segdistill.criteria import pixel_cross_entropy, presence_loss
from segdistill.generalize import Facts, FeatureDistance, Seen
from segdistill.generalize.tldr import gram, gram_distance
from segdistill.heads import Mask2Former, SemFPN
from segdistill.heads.semfpn import ChannelDropout
from segdistill.ops import generator, own_mask, random_mask
from segdistill.processes import own_rows, rank_and_size
from segdistill.runlog import Quiet, RunLog
from segdistill.train.loop import LoopSettings, Objective, train
from segdistill.train.norms import share_statistics
from segdistill.train.optim import CosineConfig, build_optimizer, parameter_groups, vectors_and_biases
from segdistill.types import Features, Views
from tiny_runs import run_and_die

K, MASK2FORMER = 4, Mask2Former.Config(
    queries=3, width=64, encoder_layers=1, decoder_layers=1, heads=2, encoder_feedforward=8, decoder_feedforward=8,
    points=20,
)  # fmt: skip


def drawn(name, *shape):
    return torch.randn(shape, generator=generator("processes", name))


def labels(kind="uneven"):
    """Four images: the second is all but ignored, the fourth wholly; the first has more classes than queries."""
    made = torch.randint(0, K, (4, 16, 16), generator=generator("labels"))
    made[1, :, 1:], made[3] = 255, 255
    if kind == "one":  # a single labelled pixel in all
        made[:] = 255
        made[2, 5, 5] = 1
    if kind == "none":
        made[:] = 255
    return made


def cross_entropy(kind="uneven"):
    head = nn.Conv2d(3, K, 1)
    return pixel_cross_entropy(head(own_rows(drawn("maps", 4, 3, 16, 16))), own_rows(labels(kind))), head


def presence():
    head = nn.Linear(3, K)
    return presence_loss(head(own_rows(drawn("cls", 4, 3))), own_rows(labels())), head


def semfpn():
    head = SemFPN(SemFPN.Config(width=8, dropout=0.5), (6,), (4,), K)
    return sum(head.loss((own_rows(drawn("taps", 4, 6, 4, 4)),), own_rows(labels())).values()), head


def mask2former(kind="uneven", **changes):
    head = Mask2Former(MASK2FORMER.model_copy(update=changes), (6,), (4,), K)
    torch.manual_seed(7)
    return sum(head.loss((own_rows(drawn("taps", 4, 6, 4, 4)),), own_rows(labels(kind))).values()), head


def method(name, *, masked=0.25, **settings):
    """Four images; of those with a masked view all are in the first process where ``masked`` is 0.25: it is one."""
    case = MethodCase(name, **settings, **({"mask_probability": masked} if name in ("gkd", "proteus") else {}))
    module, (h, w) = case.method.float(), case.grid
    ours, theirs = case.widths
    taps = len(case.needs.taps)

    def view(who, width, count):
        tokens = tuple(own_rows(drawn(f"{who} {tap}", 4, h * w, width)) for tap in range(count))
        return Features(tokens=tokens, cls=own_rows(drawn(f"{who} cls", 4, width)), grid=case.grid)

    plain, mask, hidden = view("student", ours, taps), None, None
    if case.needs.masked:
        found = own_mask(random_mask(4, h * w, rng=generator("mask"), **module.mask_settings()))
        mask, hidden = found, view("hidden", ours, taps)
        hidden = Features(tuple(t[found.samples] for t in hidden.tokens), hidden.cls[found.samples], case.grid)
        if not len(found.samples):
            mask = hidden = None
    torch.manual_seed(8)
    return sum(module(Views(plain, hidden, mask), Views(view("teacher", theirs, taps))).values()), module


def dropped():
    head, dropout = nn.Conv2d(3, 8, 1), ChannelDropout(0.5)
    output = dropout(head(own_rows(drawn("maps", 4, 3, 16, 16))))
    return (output * own_rows(drawn("weights", 4, 8, 1, 1))).mean(), head


def batch_norm():
    """Three images in the first process and two in the second."""
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1))
    share_statistics(network)
    output = network(own_rows(drawn("five", 5, 3, 4, 4)))
    loss = (output * own_rows(drawn("weights", 5, 2, 1, 1))).sum() * rank_and_size()[1]
    network.add_module("statistics", nn.ParameterList([network[1].running_mean, network[1].running_var]))
    for statistic in network.statistics:
        statistic.grad = statistic.detach().clone()
    return loss, network


def things():
    """Cells of cars: three in the first image, none in the second."""
    part = FeatureDistance(FeatureDistance.Config(weight=1.0), Facts(("road", "car"), (3,)))
    made = torch.zeros(2, 4, 4, dtype=torch.int64)
    made[0, 1:] = 1
    head = nn.Linear(5, 3)
    maps = [Features((own_rows(drawn(name, 2, 16, 5)),), None, (4, 4)) for name in ("own", "start")]
    seen = Seen(own_rows(made), *(Features((head(each.tokens[0]),), None, (4, 4)) for each in maps))
    return part.terms(seen)["feature_distance"], head


def grams():
    head = nn.Linear(5, 3)
    own, other = (gram(head(own_rows(drawn(name, 4, 16, 5)))) for name in ("own grams", "other grams"))
    return gram_distance(own, other.detach(), other.detach() > 0), head


CASES = {
    "cross entropy": cross_entropy,
    "cross entropy of one pixel": lambda: cross_entropy("one"),
    "cross entropy of nothing": lambda: cross_entropy("none"),
    "presence": presence,
    "semfpn": semfpn,
    "mask2former": mask2former,
    "mask2former with one mask": lambda: mask2former("one"),
    "mask2former without masks": lambda: mask2former("none"),
    "mask2former without a no-object class": lambda: mask2former("none", no_object_weight=0.0),
    "gkd": lambda: method("gkd"),
    "gkd, hidden tokens alone": lambda: method("gkd", masked_only=True),
    "proteus": lambda: method("proteus"),
    "proteus, three masked": lambda: method("proteus", masked=0.75, mask_first=False),
    "proteus, none masked": lambda: method("proteus", masked=0.0),
    "g2sd": lambda: method("g2sd"),
    "vitkd": lambda: method("vitkd"),
    "afdcd": lambda: method("afdcd", pixel_weight=0.0),
    "mse": lambda: method("mse"),
    "mse, relative": lambda: method("mse", relative=True),
    "cwd": lambda: method("cwd"),
    "thing distance": things,
    "gram distance": grams,
    "dropout": dropped,
    "batch norm": batch_norm,
}


def outcome(name) -> dict[str, torch.Tensor]:
    """Loss and gradients of one case, averaged over the processes as DDP does."""
    torch.manual_seed(0)
    loss, network = CASES[name]()
    loss.backward()
    zero = torch.zeros_like
    found = {"loss": loss.detach()} | {
        key: zero(value) if value.grad is None else value.grad for key, value in network.named_parameters()
    }
    size = rank_and_size()[1]
    if size > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= size
    return found


def run_until(recipe: Path, folder: Path, trace: Path, fatal: tuple[str, int] | None) -> None:
    """Run ``recipe`` and get killed after the step ``fatal``; workers are forked, as they are under torchrun on Linux.

    Without that they would be started as this process was, from a server that imports everything anew.
    """
    multiprocessing.set_start_method("fork", force=True)
    run_and_die(recipe, folder, trace, fatal)


def share(rank, folder: Path) -> None:
    """Process ``rank`` of two: the outcome of every case."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    outcomes = {name: outcome(name) for name in CASES}
    if rank == 0:
        torch.save(outcomes, folder / "outcomes.pt")
    dist.destroy_process_group()


ADAMW = partial(build_optimizer, CosineConfig().algorithm)


class Spoiled(Objective):
    """A layer whose loss is not a number from step ``at`` on: in the process ``rank`` alone, at first."""

    def __init__(self, at: int, rank: int = 0) -> None:
        super().__init__()
        self.layer, self.at, self.rank = nn.Linear(2, 2), at, rank

    def optimized(self):
        return {"layer": self.layer}

    def forward(self, batch, step, steps):
        bad = step > self.at or (step == self.at and rank_and_size()[0] == self.rank)
        return {"good": self.layer(batch["x"]).sum(), "bad": self.layer.bias.sum() * (float("nan") if bad else 1.0)}


def train_spoiled(fabric: Fabric, folder: Path, objective: Objective, **settings) -> str:
    """The line that ends the training."""
    values = {"stage": "x", "steps": 12, "seed": (0,), "fingerprint": "a", "log_every": 100, "checkpoint_every": 4}
    try:
        train(
            fabric,
            objective,
            parameter_groups([(objective, 1.0)], 0.0, vectors_and_biases),
            lambda order: ({"x": torch.ones(1, 2)} for _ in order),
            schedule=CosineConfig().schedule(1),
            optimizer=ADAMW,
            settings=LoopSettings(**values | settings),
            folder=folder / "checkpoint",
            log=RunLog(folder, Quiet(), writes=fabric.is_global_zero),
        )
    except UserError as error:
        return str(error)
    return ""


def spoil(rank: int, folder: Path) -> None:
    """Process ``rank`` of two, started as by torchrun, whose second one meets a loss that is not finite."""
    fabric = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(find_unused_parameters=True))
    fabric.launch()
    line = train_spoiled(fabric, folder, Spoiled(5, rank=1))
    (folder / f"{rank}.json").write_text(json.dumps(line))
    dist.destroy_process_group()
