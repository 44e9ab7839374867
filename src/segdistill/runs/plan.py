"""Dry run of a recipe: opens data and weights and estimates the cost, without training.

Torch counts the operations of a forward pass of the real networks at the real size on meta tensors; a trained part
counts three times, since its backward pass costs twice its forward pass. Memory is estimated from the tensors saved
for the backward pass. Time is operations / (speed of a matrix product timed on this device x UTILISED). The estimate
is rough: about a factor of two, enough to tell an evening from a month. Of the method's own heads only the parameters
are counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segdistill.config import UserError, duration
from segdistill.encoders import Encoder, build_encoder, outline
from segdistill.environment import within_memory
from segdistill.recipe import Recipe
from segdistill.runs.check import check
from segdistill.runs.folder import settled
from segdistill.stages import StageConfig
from segdistill.stages.base import ModelConfig, Pass, count, need
from segdistill.stages.fitting import build_method, needs_of
from segdistill.stages.task import build_model, check_head
from segdistill.stages.teacher_cache import shape_of
from segdistill.stages.views import teacher_views
from segdistill.tasks.table import TASKS

UTILISED = 0.15  # of a large matrix product's speed: 0.08 to 0.19 in the demo's stages (LOG.md, 2026-11-21)
FLOAT = 4  # bytes
ADAM = 3 * FLOAT  # bytes per trained parameter besides its value: gradient and two moments


@dataclass(frozen=True)
class StagePlan:
    """One stage: what it reads, what it trains, what it costs."""

    label: str
    kind: str
    images: int  # in its training data
    steps: int
    batch: int
    trained: int  # parameters
    frozen: int
    flops: int  # per step
    seconds: float  # all steps
    memory: int  # bytes at the peak
    disk: int  # bytes of the files it writes
    note: str = ""  # cost of work that runs share

    def row(self) -> list[str]:
        """The stage as a row of the table."""
        return [
            self.label, self.kind, f"{self.images:,}", f"{self.steps:,} x {self.batch}",
            f"{self.trained / 1e6:.2f} + {self.frozen / 1e6:.2f}", f"{self.flops / 1e9:,.1f}", duration(self.seconds),
            f"{self.memory / 2**20:,.0f}", f"{self.disk / 2**20:,.0f} MiB",
        ]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """All stages, the number of evaluation images, and a description of the weight files."""

    stages: tuple[StagePlan, ...]
    evaluation: dict[str, int]
    weights: tuple[str, ...]
    speed: float  # operations per second assumed for the times
    device: str
    doubts: tuple[str, ...] = ()  # warnings about inputs that look like mistakes

    @property
    def seconds(self) -> float:
        """Training time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    def rows(self) -> list[list[str]]:
        """The table, header row first; parameters are given as trained + frozen."""
        heads = ["stage", "kind", "images", "steps x batch", "parameters (M)", "GFLOP/step", "about", "MiB", "disk"]
        return [heads, *(stage.row() for stage in self.stages)]

    def notes(self) -> list[str]:
        """Costs that several runs share, one line per stage."""
        return [f"{stage.label}: {stage.note}" for stage in self.stages if stage.note]

    def summary(self) -> str:
        """One line below the table."""
        scored = sum(self.evaluation.values())
        return (
            f"about {duration(self.seconds)} of training on {self.device} "
            f"({self.speed / 1e9:,.0f} GFLOP/s assumed), {scored:,} images to score"
        )


@within_memory()
def make_plan(recipe: Recipe, *, speed: float | None = None, doubts: Sequence[str] | None = None) -> Plan:
    """Open everything that ``recipe`` reads and estimate its cost on this device.

    Weights are really loaded, datasets are listed (the world is not rendered). ``speed`` in operations per second
    replaces the measured one; ``doubts`` are those of a check that was made before. Raises a :class:`UserError` that
    lists everything missing or incompatible.
    """
    doubts = check(recipe) if doubts is None else list(doubts)
    device = "cuda" if recipe.accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    speed = speed or UTILISED * matmul_speed(device, settled(recipe).precision)
    if device == "cpu":
        doubts += [f"stage {stage.name}: decode=gpu needs a GPU; there is none here"
                   for stage in recipe.stages if stage.needs_gpu]  # fmt: skip
    problems: list[str] = []
    images = [
        _attempt(lambda s=stage: sum(recipe.data.look(selection)[0] for _, selection, _ in s.reads()), problems)
        for stage in recipe.stages
    ]
    weights = [line for role in ("teacher", "student") for line in _weights(recipe, role, problems)]
    evaluation = {}
    if recipe.evaluate is not None:
        source = recipe.scored_source
        for name in recipe.evaluate.domains:
            selection = recipe.evaluate.selection(source, name)
            evaluation[name] = _attempt(lambda s=selection: source.look(s)[0], problems) or 0
        if (corrupt := recipe.evaluate.corrupt) is not None:
            times = 1 + len(corrupt.corruptions()) * len(corrupt.severities)
            evaluation |= {f"{name}, corrupted": times * min(evaluation[name], corrupt.images or evaluation[name])
                           for name in corrupt.domains}  # fmt: skip
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))
    classes = recipe.classes()
    plans = [
        _stage(recipe, number, stage, images[number] or 0, classes, speed) for number, stage in enumerate(recipe.stages)
    ]
    return Plan(tuple(plans), evaluation, tuple(weights), speed, device, tuple(doubts))


def matmul_speed(device: str, precision: str, side: int = 1024, seconds: float = 0.3) -> float:
    """Operations per second of a square matrix product in the recipe's precision.

    Taken from the fastest product within ``seconds``, so that other load on the machine matters little.
    """
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)
    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
    a @ a
    wait()
    end, best = time.perf_counter() + seconds, math.inf
    while (began := time.perf_counter()) < end:
        a @ a
        wait()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def _weights(recipe: Recipe, role: str, problems: list[str]) -> list[str]:
    """Load a model's start weights and describe them."""
    model: ModelConfig | None = getattr(recipe, role)
    if model is None:
        return []
    lines = []
    encoder = _attempt(lambda: build_encoder(model.encoder, seed=0), problems)
    if encoder is not None:
        lines.append(f"{role}: {encoder.loaded.summary() if encoder.loaded else f'{encoder.name}, random weights'}")
    if model.head_weights is not None:
        report = _attempt(lambda: check_head(TASKS[recipe.task], model, recipe.classes()), problems)
        lines += [] if report is None else [f"{role}: {report.summary()}"]
    return lines


def _attempt(what: Callable[[], Any], problems: list[str]) -> Any:
    """The result of ``what``; on a :class:`UserError` None, and the message is added to ``problems``."""
    try:
        return what()
    except UserError as error:
        problems.append(str(error))
        return None


def _stage(
    recipe: Recipe, number: int, stage: StageConfig, images: int, classes: Sequence[str], speed: float
) -> StagePlan:
    """Count the cost of one stage on meta tensors."""
    cost, size = _Cost(), stage.crop(recipe.data.size)
    if not stage.roles:
        return _own_plan(number, stage, images, stage.passes(classes, size), speed)
    encoders = {
        role: _bare(need(getattr(recipe, role), role, stage.name), stage, teacher=role == "teacher")
        for role in stage.roles
    }
    kept: list[nn.Module] = [encoders[stage.roles[0]]]
    if stage.measured:
        cost.forward(lambda: encoders[stage.roles[-1]](_images(1, size)), trains=False)
        cost.frozen = sum(map(count, encoders.values()))
    elif stage.predicts is not None:
        kept = []
        _predicting(cost, recipe, stage, encoders[stage.predicts], classes)
    elif stage.learner is None:
        cost.trained(*kept)
    else:
        kept = _learning(cost, recipe, stage, encoders[stage.learner], classes)
    if stage.method is not None:
        _distillation(cost, stage, encoders["student"], encoders["teacher"], size)
    disk = FLOAT * sum(map(count, kept))
    return StagePlan(
        label=f"{number:02d}-{stage.name}",
        kind=stage.kind,
        images=images,
        steps=stage.steps,
        batch=stage.batch,
        trained=cost.parameters,
        frozen=cost.frozen,
        flops=cost.flops,
        seconds=(stage.measured or (stage.steps if stage.predicts is None else images)) * cost.flops / speed,
        memory=cost.kept // stage.accumulate + (FLOAT + ADAM) * cost.parameters + FLOAT * cost.frozen,
        disk=disk,
        note=_cache_note(recipe, stage, encoders["teacher"], classes, speed) if stage.caches else "",
    )


def _own_plan(number: int, stage: StageConfig, images: int, passes: Sequence[Pass], speed: float) -> StagePlan:
    """The cost of a stage with networks of its own: those that it trains take turns."""
    flops, kept = 0, 0
    for each in passes:
        one = _Cost()
        one.forward(each.call, trains=bool(each.trained))
        flops += one.flops * (images if each.steps is None else each.images * each.steps)
        kept = max(kept, one.kept * each.images // stage.accumulate + ADAM * each.trained)
    trained, parameters = sum(each.trained for each in passes), sum(each.parameters for each in passes)
    return StagePlan(
        label=f"{number:02d}-{stage.name}",
        kind=stage.kind,
        images=images,
        steps=stage.steps,
        batch=stage.batch,
        trained=trained,
        frozen=parameters - trained,
        flops=flops // (stage.steps or max(1, images)),
        seconds=flops / speed,
        memory=kept + FLOAT * parameters,
        disk=FLOAT * sum(each.written for each in passes),
    )


def _cache_note(recipe: Recipe, stage: StageConfig, teacher: Encoder, classes: Sequence[str], speed: float) -> str:
    """The cost of the stage's caches of the teacher's tokens, if they do not exist yet."""
    needs, size, cost, head = needs_of(stage.method), stage.crop(recipe.data.size), _Cost(), None
    if needs.logits:
        model = need(recipe.teacher, "teacher", stage.name).bare()
        head = build_model(TASKS[recipe.task], model, teacher, classes, seed=0, stage=stage.name).head.to("meta").eval()
    cost.forward(lambda: teacher_views(teacher, _images(1, size), needs.of_teacher, head), trains=False)
    views, nbytes = 0, 0
    for selection, config, labelled in stage.caches:
        own = recipe.data.look(selection)[0] * config.views
        shape = shape_of(teacher, needs.of_teacher, size, head, labelled=labelled)
        views, nbytes = views + own, nbytes + own * shape.nbytes(config.dtype)
    return (
        f"a teacher cache of {views:,} views, {nbytes / 2**30:.2f} GiB, takes about "
        f"{duration(views * cost.flops / speed)} to build, once for all runs with this teacher and these views"
    )


class _Cost:
    """Operations, bytes kept for the backward pass, and parameters of one step."""

    def __init__(self) -> None:
        self.flops = self.kept = self.parameters = self.frozen = 0

    def forward(self, call: Callable[[], Any], *, trains: bool, times: int = 1) -> Any:
        """Count ``times`` such passes; a training pass counts three times and keeps tensors for its backward pass."""
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            kept[id(tensor)] = tensor.numel() * tensor.element_size()
            return tensor

        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(trains):
            if trains:
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    result = call()
            else:
                result = call()
        self.flops += times * counter.get_total_flops() * (3 if trains else 1)
        self.kept += times * sum(kept.values())
        return result

    def trained(self, *modules: nn.Module) -> None:
        """Count the parameters of ``modules`` as trained."""
        self.parameters += sum(map(count, modules))


def _bare(model: ModelConfig, stage: StageConfig, *, teacher: bool) -> Encoder:
    """The encoder as configured in ``stage``, on the meta device."""
    return outline(stage.fit(model.encoder, teacher=teacher))


def _images(batch: int, size: tuple[int, int]) -> Tensor:
    return torch.empty(batch, 3, *size, device="meta")


def _distillation(cost: _Cost, stage: StageConfig, student: Encoder, teacher: Encoder, size: tuple[int, int]) -> None:
    """One pass of the teacher, the student's views, and the method's parameters."""
    needs, heads = needs_of(stage.method), build_method(stage.method, student, teacher)
    cost.trained(heads)
    cost.frozen += count(teacher)
    batch = stage.images_per_step
    taps, theirs = needs.taps or (-1,), needs.of_teacher or (-1,)  # a method on class scores alone still runs both
    if stage.cache is None:
        cost.forward(lambda: teacher(_images(batch, size), theirs), trains=False)
    views = batch if stage.learner is None and needs.plain else batch - stage.batch  # labelled ones count elsewhere
    if needs.masked:
        views += int(batch * heads.mask_settings()["probability"])
    if views:
        cost.forward(lambda: student(_images(views, size), taps), trains=True)


def _learning(
    cost: _Cost, recipe: Recipe, stage: StageConfig, encoder: Encoder, classes: Sequence[str]
) -> list[nn.Module]:
    """Encoder and head on the labelled images; returns the modules that the stage writes."""
    assert stage.learner is not None
    model, frozen = need(getattr(recipe, stage.learner), stage.learner, stage.name), "encoder" not in stage.trains
    network = build_model(TASKS[recipe.task], model.bare(), encoder, classes, seed=0, stage=stage.name)
    images = _images(stage.learned_per_step, recipe.data.size)
    features = cost.forward(lambda: network.features(images), trains=not frozen)
    if stage.compares_start:
        cost.forward(lambda: encoder(_images(stage.batch, recipe.data.size), network.taps), trains=False)
        cost.frozen += count(encoder)
    # Mask2Former branches on its own values, so the head is counted on one image with real data; in evaluation mode,
    # since batch norm may need more than one.
    network.head.eval()
    cost.forward(lambda: network.decode(features.blank()), trains=True, times=stage.learned_per_step)
    cost.trained(network.head)
    adapter = encoder.rein if getattr(stage, "adapter", False) else None
    if frozen or adapter is not None:
        cost.frozen += count(encoder)
    if adapter is not None:
        cost.frozen -= count(adapter)
        cost.trained(adapter)
    elif not frozen:
        cost.trained(encoder)
    return [network.head] if frozen else [network.head, encoder]


def _predicting(cost: _Cost, recipe: Recipe, stage: StageConfig, encoder: Encoder, classes: Sequence[str]) -> None:
    """One image through a trained network."""
    model = need(getattr(recipe, stage.roles[0]), stage.roles[0], stage.name)
    network = build_model(TASKS[recipe.task], model.bare(), encoder, classes, seed=0, stage=stage.name)
    network.eval()
    features = cost.forward(lambda: network.features(_images(1, recipe.data.size)), trains=False)
    cost.forward(lambda: network.decode(features.blank()), trains=False)
    cost.frozen += count(network)
