"""The recipe: one YAML file of settings. Precedence: class defaults < recipe < ``key=value`` on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from segdistill.config import SLUG, Config, UserError, choose, parse
from segdistill.data.dataset import DataSelection, DataSource, Split
from segdistill.data.rendered import WorldSource
from segdistill.data.source import AnySource
from segdistill.encoders import EncoderConfig, record_of
from segdistill.evaluate_settings import EvaluateConfig, reading_stage
from segdistill.files import plain_name
from segdistill.heads import HEADS
from segdistill.overrides import apply, recipe_values
from segdistill.papers import PaperPlace
from segdistill.stages import STAGES, StageConfig
from segdistill.stages.base import ModelConfig, need, need_head
from segdistill.tasks.table import TASKS
from segdistill.trackers import TrackerName

MOST_PIXELS = 2**30
"""Pixels per training step: the images alone take 12 GiB in float32."""


def _read_task(value: object) -> str:
    choose("task", str(value), TASKS)
    return str(value)


def _read_stage(value: object, info: Any) -> object:
    if isinstance(value, Config):
        return value
    if not isinstance(value, dict) or "type" not in value:
        raise ValueError(f"a stage is {{type: ..., settings}}; allowed types: {', '.join(STAGES)}")
    kind = choose("stage type", value["type"], STAGES)
    if "task" in kind.model_fields:
        if "task" in value:
            raise ValueError(
                f"stage '{value.get('name', '?')}': task is a setting of the recipe, which all stages share"
            )
        value = value | {"task": info.data.get("task", "semantic")}
    return parse(kind, value, f"stage '{value.get('name', '?')}'")


TaskName = Annotated[str, BeforeValidator(_read_task)]
Stage = Annotated[SerializeAsAny[StageConfig], BeforeValidator(_read_stage)]


@dataclass(frozen=True)
class Reading:
    """Images that a recipe reads: ``where`` ("stage task", "evaluate"), and whether they need labels and objects.

    ``pixels``: labels of boxes alone do not suffice.
    """

    where: str
    source: DataSource
    selection: DataSelection
    labelled: bool
    objects: bool = False
    pixels: bool = False

    def problems(self) -> list[str]:
        """One line for each reason why they cannot be read."""
        boxes = self.source.box_problems(self.selection) if self.pixels else []
        return boxes or self.source.problems(self.selection, labelled=self.labelled, objects=self.objects)

    def doubts(self) -> list[str]:
        """One warning for each thing that looks like a mistake, after inspecting a few images."""
        return self.source.doubts(self.selection, labelled=self.labelled)


class Recipe(Config):
    """One experiment, from start weights to scores."""

    name: str = Field(pattern=SLUG, max_length=128)
    title: str = ""
    paper: PaperPlace | None = Field(None, description="where the paper prints this comparison; shown beside ours")
    seed: int = Field(0, ge=0, lt=2**63)
    task: TaskName = Field("semantic", description="the task to learn")
    data: AnySource = WorldSource()
    teacher: ModelConfig | None = None
    student: ModelConfig | None = None
    stages: tuple[Stage, ...] = Field(max_length=100, description="none: score a network whose head has weights")
    evaluate: EvaluateConfig | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "auto"] = Field(
        "auto",
        description="auto: bf16-mixed where the device computes bf16 at least as fast as fp32, else 32-true; a run "
        "that has begun keeps its own",
    )
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = Field(
        False, description="torch.compile for the blocks of encoders; the result is the same up to rounding"
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="of several processes; fsdp: frozen teachers are sharded, every process keeps a part"
    )
    workers: Annotated[int, Field(ge=0, le=128)] | Literal["auto"] = Field(
        "auto",
        description="data-loading processes; 0: load in the training process; auto: 0 on a CPU; on a GPU its share of "
        "the cores, at most 16",
    )
    log_every: int = Field(20, ge=1, le=10**8)
    checkpoint_every: int = Field(200, ge=1, le=10**8)
    tracker: TrackerName = Field("tensorboard", description="where to show curves, in addition to metrics.jsonl")

    @field_validator("evaluate", mode="after")
    @classmethod
    def _completed(cls, value: EvaluateConfig | None, info: Any) -> EvaluateConfig | None:
        """Fill in the evaluation's defaults, which follow from the data and the stages, if these are valid."""
        known = info.data
        if value is None or not {"data", "stages"} <= set(known):
            return value
        return value.completed(known["data"], known["stages"])

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        """Check settings against each other and report all problems at once. Opens no file."""
        names = [stage.name for stage in self.stages]
        problems = [
            f"stage names must differ; {name} appears twice" for name in sorted(set(names)) if names.count(name) > 1
        ]
        problems += [f"data: {line}" for line in self.data.faults()]
        if self.paper is not None:
            problems += [f"paper: {line}" for line in _attempt(self.paper.block_of)]
        problems += [problem for number in range(len(self.stages)) for problem in _stage_problems(self, number)]
        given = [
            model for model in (self.teacher, self.student) if model is not None and model.head_weights is not None
        ]
        if not self.stages and not given:
            problems.append(
                "stages: there are no stages, and no head has weights to score; add a stage or head.weights"
            )
        if self.evaluate is not None:
            names = [line for name in self.evaluate.domains for line in _attempt(partial(plain_name, name))]
            problems += [f"evaluate: {line}" for line in names]
        if problems:
            raise ValueError("; ".join(dict.fromkeys(problems)))
        return self

    @property
    def scored_source(self) -> DataSource:
        """The source of the evaluation images."""
        own = self.evaluate.data if self.evaluate is not None else None
        return self.data if own is None else own

    def sharing(self, sources: dict[str, DataSource]) -> Recipe:
        """The same recipe with the sources that ``sources`` has for the same settings; adds those that it lacks.

        A source lists its folders once, however many recipes share it.
        """

        def known(source: DataSource) -> DataSource:
            return sources.setdefault(source.model_dump_json(), source)

        changes: dict[str, Any] = {"data": known(self.data)}
        if self.evaluate is not None and self.evaluate.data is not None:
            changes["evaluate"] = self.evaluate.model_copy(update={"data": known(self.evaluate.data)})
        return self.model_copy(update=changes)

    def readings(self, *, training: bool = True) -> list[Reading]:
        """Everything that is read: by the stages in order (only with ``training``), then by the evaluation."""
        objects, pixels = TASKS[self.task].objects, not TASKS[self.task].boxes
        found = [
            Reading(
                f"stage {stage.name}{part}", self.data, selection, labelled, labelled and objects, labelled and pixels
            )
            for stage in (self.stages if training else ())
            for part, selection, labelled in stage.reads()
        ]
        source, config = self.scored_source, self.evaluate
        if config is not None:
            scored = [config.selection(source, name) for name in config.domains]
            found += [Reading("evaluate", source, selection, True, objects, pixels) for selection in scored]
        return found

    def classes(self) -> tuple[str, ...]:
        """The classes that a head predicts: those of the first labelled images for training or evaluation."""
        labelled = (each for each in self.readings() if each.labelled)
        first = next(labelled, None)
        return () if first is None else first.source.look(first.selection)[1]

    def trained_on(self, domain: str, split: Split) -> str | None:
        """The stage that reads images of ``domain``; see :func:`reading_stage`."""
        return reading_stage(self.data, self.stages, domain, split)


def last_learner(stages: Sequence[StageConfig], role: str, before: int) -> int | None:
    """The number of the last stage before number ``before`` that trains the head of ``role``."""
    numbers = [number for number, stage in enumerate(stages[:before]) if stage.learner == role]
    return numbers[-1] if numbers else None


def last_task(recipe: Recipe, reader: str) -> StageConfig:
    """The last stage that trains on labels; a :class:`UserError` says that ``reader`` needs one."""
    stages = [stage for stage in recipe.stages if stage.learner is not None]
    if not stages:
        raise UserError(f"the recipe has no stage with labels, which {reader} reads; add a task stage")
    return stages[-1]


def _stage_problems(recipe: Recipe, number: int) -> list[str]:
    """What stage ``number`` needs from the rest of ``recipe`` and is missing."""
    stage = recipe.stages[number]
    problems: list[str] = []
    for role in stage.roles:
        model: ModelConfig | None = getattr(recipe, role)
        problems += _attempt(lambda role=role, model=model: need(model, role, stage.name))
        if model is None:
            continue
        problems += _size_problems(recipe, stage, role, model.encoder)
        if role == stage.learner:
            problems += _head_problems(recipe.task, model, role) + _level_problems(model, role)
            problems += _scale_problems(recipe, stage, model, role)
            if getattr(stage, "adapter", False) and model.encoder.rein is None:
                problems.append(f"stage {stage.name}: the {role}'s encoder has no adapter; add encoder.rein: {{}}")
            problems += _attempt(lambda role=role, model=model: need_head(model, role, stage.name))
    problems += _batch_problems(recipe, stage)
    problems += [f"stage {stage.name}: {line}" for line in stage.faults()]
    problems += _earlier_problems(recipe, number)
    if stage.learner and stage.reads_logits:
        problems += _logit_problems(recipe, stage)
    given = recipe.teacher is not None and recipe.teacher.head_weights is not None
    other = None if recipe.teacher is None or recipe.teacher.head is None else recipe.teacher.head.settings
    if stage.reads_logits and getattr(other, "two_scale", None) is not None:
        problems.append(
            f"stage {stage.name}: its method compares class scores at a single scale; remove head.two_scale"
        )
    if stage.learner and stage.reads_logits and not given and last_learner(recipe.stages, "teacher", number) is None:
        problems.append(
            f"stage {stage.name}: its method compares class scores, but no earlier stage trains the teacher's "
            "head; put {type: task, model: teacher, ...} before it, or set teacher.head.weights"
        )
    return problems


def _earlier_problems(recipe: Recipe, number: int) -> list[str]:
    """Results of other stages that stage ``number`` needs and no earlier stage gives."""
    stage, before, problems = recipe.stages[number], recipe.stages[:number], []
    names = {each.name for each in before}
    for name in stage.earlier:
        if name not in names:
            allowed = ", ".join(each.name for each in before) or "none"
            problems.append(f"stage {stage.name}: no earlier stage is called '{name}'; allowed: {allowed}")
    if names.issuperset(stage.earlier):
        wrong = stage.earlier_faults({each.name: each for each in before})
        problems += [f"stage {stage.name}: {line}" for line in wrong]
    role = stage.predicts
    model: ModelConfig | None = None if role is None else getattr(recipe, role)
    if model is not None and model.head_weights is None and last_learner(recipe.stages, str(role), number) is None:
        problems.append(
            f"stage {stage.name}: no earlier stage trains the {role}'s head; put one before it, or set "
            f"{role}.head.weights"
        )
    return problems


def _size_problems(recipe: Recipe, stage: StageConfig, role: str, encoder: EncoderConfig) -> list[str]:
    """Image sizes, set by the stage or the data, that an encoder cannot process."""
    size = stage.crop(recipe.data.size)
    where = "data.size" if size == recipe.data.size else f"stage {stage.name}: size"
    faults = _attempt(lambda: stage.fit(encoder, teacher=role == "teacher").check(*size))
    return [f"{where}: {line}" for line in faults]


def _scale_problems(recipe: Recipe, stage: StageConfig, model: ModelConfig, role: str) -> list[str]:
    """What a head with two scales cannot do."""
    scales = getattr(model.head.settings, "two_scale", None) if model.head is not None else None
    if scales is None:
        return []
    size, cell = stage.crop(recipe.data.size), stage.fit(model.encoder).cell
    problems = [f"{role}.head: {line}" for line in _attempt(lambda: scales.check(cell, *size))]
    if stage.method is not None:
        problems.append(
            f"stage {stage.name}: a head with two_scale trains without a distillation term; remove the method, or "
            "distil the encoder in a distill stage"
        )
    return problems


def _batch_problems(recipe: Recipe, stage: StageConfig) -> list[str]:
    """A batch too large for any memory."""
    size, images = stage.crop(recipe.data.size), stage.images_per_step
    if images * size[0] * size[1] <= MOST_PIXELS:
        return []
    return [
        f"stage {stage.name}: a step of {images:,} images of {size[0]} x {size[1]} does not fit into memory; "
        f"choose a batch of at most {MOST_PIXELS // (size[0] * size[1]):,}, or a smaller size"
    ]


def _head_problems(task: str, model: ModelConfig, role: str) -> list[str]:
    """A head for another task."""
    if model.head is None or task in HEADS[model.head.type].tasks:
        return []
    own = ", ".join(name for name, head in HEADS.items() if task in head.tasks) or "none"
    made = ", ".join(HEADS[model.head.type].tasks)
    return [f"{role}.head: {model.head.type} is for the task {made}; allowed for {task}: {own}"]


def _logit_problems(recipe: Recipe, stage: StageConfig) -> list[str]:
    """A method that compares class logits, with a head that has none."""
    heads = {model.head.type for model in (recipe.student, recipe.teacher) if model is not None and model.head}
    return [
        f"stage {stage.name}: its method compares class scores of pixels, which the head {name} does not have; choose "
        "a method that compares features, such as mse or gkd"
        for name in sorted(heads)
        if not HEADS[name].has_logits
    ]


def _level_problems(model: ModelConfig, role: str) -> list[str]:
    """A head whose number of levels differs from the encoder's number of taps."""
    strides = getattr(model.head.settings, "strides", None) if model.head is not None else None
    taps = len(record_of(model.encoder.name).taps)
    if strides is None or taps in (1, len(strides)):
        return []
    return [
        f"{role}.head.strides: {len(strides)} levels for the {taps} taps of {model.encoder.name}; give {taps} strides"
    ]


def _attempt(check: Callable[[], object]) -> list[str]:
    """The message of the :class:`UserError` that ``check`` raises, if any."""
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []


def load(path: Path, overrides: Sequence[str] | None = None) -> Recipe:
    """The validated recipe in ``path`` with ``key=value`` overrides; a :class:`UserError` lists all problems.

    Whether its images and weights exist is checked by :func:`segdistill.runs.check.check`.
    """
    return parse(Recipe, recipe_values(path, overrides or []))


def change(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """``recipe`` with ``key=value`` overrides; see :func:`load`."""
    values = recipe.model_dump(mode="json")
    for override in overrides:
        apply(values, override)
    return parse(Recipe, values)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML; loading it returns the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
