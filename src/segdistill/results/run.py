"""A run folder read back and checked."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from segdistill.config import UserError, parse
from segdistill.files import json_digest, plain_name, read_metrics_line, text_is_whole
from segdistill.papers import PaperPlace

TOLERANCE = 1e-3  # between a stored mean and the mean of the stored domains; more is damage, not rounding

R = TypeVar("R", bound=BaseModel)


def _finite(value: Any) -> Any:
    """NaN and infinity, which the JSON writer lets through, mean 'not measured'."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Byte = Annotated[int, Field(ge=0, le=255)]


class _Record(BaseModel):
    """A JSON object of a run folder. Keys that a later version added are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Metric(_Record):
    """A score: its key in the files, the reader's name, and what its numbers are; more is better.

    With the unit ``%`` values are shares in [0, 1] and are shown in percent; else they are shown as they are.
    """

    key: str = ""
    label: str
    unit: Literal["%", ""] = ""
    by_class: str | None = None  # key of its list of values per class
    by_class_label: str = "score"

    @property
    def decimals(self) -> int:
        return 1 if self.unit == "%" else 3

    @property
    def points(self) -> str:
        """The unit of a difference."""
        return "points" if self.unit == "%" else self.label

    def number(self, value: float | int) -> float:
        """``value`` as shown."""
        return 100.0 * value if self.unit == "%" else float(value)

    def text(self, value: float | int) -> str:
        """``value`` as shown, with one decimal of a percent, else with three."""
        return f"{self.number(value):.{self.decimals}f}"


class DomainScore(_Record):
    """One model on one domain: the primary score and its values per class; None where nothing could be measured."""

    score: Number
    by_class: tuple[Number, ...] = ()
    images: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _primary(cls, values: Any, info: Any) -> Any:
        """Files name the scores by their own keys; the context is the primary :class:`Metric`."""
        metric = info.context
        if not isinstance(metric, Metric) or not isinstance(values, dict) or metric.key not in values:
            return values
        return values | {"score": values[metric.key], "by_class": values.get(metric.by_class or "", ())}


class ModelResult(_Record):
    """A measured network: parameters by part, training seconds, scores by domain."""

    title: str
    parameters: dict[str, int] = Field(default_factory=dict)
    seconds: Number = None
    domains: dict[str, DomainScore]
    mean_unseen: Number = None
    mean_unseen_interval: tuple[float, float] | None = None  # 95 %, bootstrap over images

    @property
    def size(self) -> int | None:
        """All parameters, None where they were not counted."""
        return sum(self.parameters.values()) if self.parameters else None


class _Models(_Record):
    teacher: ModelResult | None = None
    student: ModelResult


class _Pictures(_Record):
    domains: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    worst: dict[str, tuple[tuple[int, float], ...]] = Field(default_factory=dict)  # (image, score), the worst first

    def kept(self, domain: str) -> tuple[int, ...]:
        """The images of ``domain`` that there are pictures of."""
        worst = (index for index, _ in self.worst.get(domain, ()))
        return tuple(dict.fromkeys((*self.domains.get(domain, ()), *worst)))


class Stage(_Record):
    """A finished stage, as its manifest or the results have it."""

    name: str
    type: str | None = None
    steps: int | None = None
    seconds: Number = None
    memory_mb: Number = None  # peak of its process while it ran
    finished: str | None = None


class Step(_Record):
    """One line of ``metrics.jsonl``."""

    stage: str
    step: int
    steps: int | None = None
    loss: Number = None
    terms: dict[str, Number] | None = None
    lr: Number = None
    images_per_s: Number = None
    diagnostics: dict[str, Number] | None = None


class _Head(_Record):
    """Which score ``results.json`` compares, read before the rest."""

    format: Literal[1]
    primary: str
    metrics: dict[str, Metric]


class Run(_Record):
    """What one run folder says: its ``results.json``, log and stages. ``metric`` is the primary score."""

    folder: Path
    metric: Metric
    name: str
    title: str
    seed: int
    task: str = "semantic"
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=255)]
    colors: tuple[tuple[Byte, Byte, Byte], ...]
    source: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    models: _Models
    retention: Number = None
    distilled: bool = True  # by any of its stages
    pictures: _Pictures = _Pictures()
    paper: PaperPlace | None = None
    stages: tuple[Stage, ...] = ()
    log: tuple[Step, ...] = ()
    recipe: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)

    @property
    def student(self) -> ModelResult:
        return self.models.student

    @property
    def teacher(self) -> ModelResult | None:
        return self.models.teacher

    @property
    def memory(self) -> float | None:
        """Peak memory in MiB over its stages."""
        return max((stage.memory_mb for stage in self.stages if stage.memory_mb is not None), default=None)

    @property
    def fewest_steps(self) -> int | None:
        """Training steps of its shortest stage."""
        return min((stage.steps for stage in self.stages if stage.steps is not None), default=None)

    @property
    def fewest_images(self) -> int | None:
        """Test images of its smallest unseen domain."""
        counts = [self.student.domains[domain].images for domain in self.unseen]
        return min((count for count in counts if count is not None), default=None)


def load_run(folder: Path) -> Run:
    """Read a run folder; a :class:`UserError` names the folder and what is missing or damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder}: results.json is missing; the run is unfinished: give its command again to continue")
    values = _json(path)
    if isinstance(values, dict) and "name" in values and "models" not in values:
        raise UserError(
            f"{folder}: the run has no scores: its recipe scores nothing; give it 'evaluate', or score it with "
            f"segdistill evaluate {folder} evaluate.domains=[...]"
        )
    metric = _primary(values, path)
    environment = _json(folder / "environment.json") if (folder / "environment.json").is_file() else {}
    if not isinstance(environment, dict):
        raise UserError(f"{folder / 'environment.json'}: expected an object, got {type(environment).__name__}")
    recipe = _text(folder / "recipe.yaml")
    if recipe is not None and not text_is_whole(recipe.encode()):
        raise UserError(f"{folder / 'recipe.yaml'}: is damaged or was edited; give the run's command again")
    values |= {
        "folder": folder,
        "metric": metric,
        "recipe": recipe,
        "environment": {str(key): str(value) for key, value in environment.items() if value not in (None, "", [], {})},
        "log": _read_log(folder / "metrics.jsonl"),
    }
    if stages := _read_stages(folder):
        values["stages"] = stages
    run = _record(Run, values, path, metric)
    _check(run, path)
    models = {
        role: model and model.model_copy(update={"mean_unseen": _mean(model, run.unseen)}) for role, model in run.models
    }
    return run.model_copy(update={"models": run.models.model_copy(update=models)})


def _primary(values: Any, path: Path) -> Metric:
    """The score that ``results.json`` names as the one to compare."""
    if isinstance(values, dict) and values.get("format") == 1 and "primary" not in values and "models" in values:
        raise UserError(f"{path}: names no primary score (an earlier version wrote it); score it again: "
                        f"segdistill evaluate {path.parent}")  # fmt: skip
    found = _record(_Head, values, path)
    if found.primary not in found.metrics:
        raise UserError(f"{path}: primary: '{found.primary}' is none of its metrics: {', '.join(found.metrics)}")
    return found.metrics[found.primary].model_copy(update={"key": found.primary})


def _check(run: Run, path: Path) -> None:
    """What one field cannot tell: sizes that agree, domains and pictures that exist, retention that follows."""
    if len(run.colors) != len(run.classes):
        raise UserError(f"{path}: {len(run.classes)} classes but {len(run.colors)} colours")
    for role, model in run.models:
        if model is not None:
            _check_model(run, model, f"{path}: the {role}")
    teacher, student = run.teacher, run.student
    if run.retention is not None and teacher and teacher.mean_unseen and student.mean_unseen is not None:
        ratio = student.mean_unseen / teacher.mean_unseen
        if abs(run.retention - ratio) > 10 * TOLERANCE:
            raise UserError(
                f"{path}: retention {run.retention} is not student / teacher on unseen domains, {ratio:.4f}"
            )
    for domain in {**run.pictures.domains, **run.pictures.worst}:
        plain_name(domain)
        for index in run.pictures.kept(domain):
            for kind in ("image", "truth", "student"):
                picture = Path("pictures", kind, f"{domain}-{index}.png")
                if not (run.folder / picture).is_file():
                    raise UserError(f"{run.folder}: the picture {picture} is missing; give the run's command again")


def _check_model(run: Run, model: ModelResult, who: str) -> None:
    """A score per domain and class, in its range, and a mean that follows from them."""
    metric = run.metric
    for domain in (*run.source, *run.unseen, *run.validation):
        if domain not in model.domains:
            raise UserError(f"{who} has no scores for the domain '{domain}'")
        found = model.domains[domain]
        if metric.by_class and len(found.by_class) != len(run.classes):
            raise UserError(f"{who} needs one {metric.by_class_label} per class on '{domain}'")
        if metric.unit == "%" and not all(v is None or 0 <= v <= 1 for v in (found.score, *found.by_class)):
            raise UserError(f"{who} has scores on '{domain}' that are no shares between 0 and 1")
    mean = _mean(model, run.unseen)
    if model.mean_unseen is not None and (mean is None or abs(model.mean_unseen - mean) > TOLERANCE):
        raise UserError(f"{who}'s mean_unseen {model.mean_unseen} is not the mean of its domains {mean}")


def _mean(model: ModelResult, unseen: Sequence[str]) -> float | None:
    """The mean score over ``unseen``; None without such domains or where one was not measured."""
    scores = [model.domains[domain].score for domain in unseen]
    known = [score for score in scores if score is not None]
    return fmean(known) if known and len(known) == len(scores) else None


def _read_log(path: Path) -> tuple[Step, ...]:
    """The log, later lines replacing earlier ones of the same step (a run that was continued repeats some)."""
    lines, steps = (_text(path) or "").split("\n"), {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        value = read_metrics_line(line)
        if value is None:
            if number == len(lines):  # no newline yet: the run was stopped while it wrote
                continue
            raise UserError(
                f"{path}: line {number} is damaged: {textwrap.shorten(line, 60)}; delete it to do without its point"
            )
        step = _record(Step, value, path)
        steps[step.stage, step.step] = step
    return tuple(sorted(steps.values(), key=lambda step: (step.stage, step.step)))


def _read_stages(folder: Path) -> tuple[Stage, ...]:
    """The manifests of the stages, in their order."""
    paths = sorted((folder / "stages").glob("*/manifest.json"))
    return tuple(_record(Stage, _json(path), path) for path in paths)


def _json(path: Path) -> Any:
    text = _text(path)
    try:
        value = json.loads(text or "")
        if isinstance(value, dict) and value.get("digest") not in (None, json_digest(value)):
            raise ValueError("its digest differs")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({error}); give the run's command again") from None
    if isinstance(value, dict):
        value.pop("digest", None)
    return value


def _text(path: Path) -> str | None:
    """The file's text, None where there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({textwrap.shorten(str(error), 80)})") from None


def _record(cls: type[R], value: Any, path: Path, context: object = None) -> R:
    """``value`` as ``cls``, or one line with the file and its problems."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object, got {textwrap.shorten(repr(value), 60)}")
    try:
        return parse(cls, value, context=context)
    except UserError as error:
        raise UserError(f"{path}: {textwrap.shorten(str(error), 300)}") from None
