"""Reads and checks a run folder."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, model_validator

from segdistill.averages import complete_mean
from segdistill.config import UserError, parse
from segdistill.files import json_digest, plain_name, read_metrics_line, text_is_whole
from segdistill.papers import PaperPlace
from segdistill.results.corruptions import Corruptions
from segdistill.results.record import Number, Record

TOLERANCE = 1e-3  # between a stored mean and the mean of the stored domains; more than rounding means damage

R = TypeVar("R", bound=BaseModel)


Byte = Annotated[int, Field(ge=0, le=255)]


class Metric(Record):
    """A score: its key in the files, its display name and its unit; higher is better.

    With the unit ``%``, values are shares in [0, 1] and displayed in percent; otherwise they are displayed unchanged.
    """

    key: str = ""
    label: str
    unit: Literal["%", ""] = ""
    by_class: str | None = None  # key of the list of its values per class
    by_class_label: str = "score"
    beside: bool = False  # shown beside the primary score: on the source domains, and its mean over the unseen ones

    @property
    def decimals(self) -> int:
        return 1 if self.unit == "%" else 3

    @property
    def points(self) -> str:
        """The unit of a difference."""
        return "points" if self.unit == "%" else self.label

    def number(self, value: float | int) -> float:
        """``value`` in displayed units."""
        return 100.0 * value if self.unit == "%" else float(value)

    def text(self, value: float | int) -> str:
        """``value`` as displayed: one decimal for percent, else three."""
        return f"{self.number(value):.{self.decimals}f}"


class DomainScore(Record):
    """One model on one domain: the primary score and its values per class; None where undefined."""

    score: Number
    by_class: tuple[Number, ...] = ()
    images: int | None = None
    others: dict[str, Number] = Field(default_factory=dict)  # all other scores, by key

    @model_validator(mode="before")
    @classmethod
    def _primary(cls, values: Any, info: Any) -> Any:
        """Pick the primary score by its key; the validation context is the primary :class:`Metric`."""
        metric = info.context
        if not isinstance(metric, Metric) or not isinstance(values, dict) or metric.key not in values:
            return values
        others = {key: value for key, value in values.items() if key != metric.key and isinstance(value, float)}
        return values | {
            "score": values[metric.key],
            "by_class": values.get(metric.by_class or "", ()),
            "others": others,
        }


class ModelResult(Record):
    """A scored network: parameters by part, training seconds, scores by domain."""

    title: str
    parameters: dict[str, int] = Field(default_factory=dict)
    seconds: Number = None
    domains: dict[str, DomainScore]
    mean_unseen: Number = None
    mean_unseen_interval: tuple[float, float] | None = None  # 95 %, bootstrap over images
    corruptions: Corruptions | None = None

    @property
    def size(self) -> int | None:
        """Number of all parameters; None if they were not counted."""
        return sum(self.parameters.values()) if self.parameters else None


class _Models(Record):
    teacher: ModelResult | None = None
    student: ModelResult


class _Pictures(Record):
    domains: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    worst: dict[str, tuple[tuple[int, float], ...]] = Field(default_factory=dict)  # (image, score), worst first

    def kept(self, domain: str) -> tuple[int, ...]:
        """The images of ``domain`` that have pictures."""
        worst = (index for index, _ in self.worst.get(domain, ()))
        return tuple(dict.fromkeys((*self.domains.get(domain, ()), *worst)))


class Stage(Record):
    """A finished stage, as described by its manifest or the results."""

    name: str
    type: str | None = None
    steps: int | None = None
    seconds: Number = None
    memory_mb: Number = None  # peak of its process while it ran
    facts: dict[str, Any] = Field(default_factory=dict)  # what it measured; "summary": in one line


class Step(Record):
    """One line of ``metrics.jsonl``."""

    stage: str
    step: int
    loss: Number = None
    images_per_s: Number = None
    diagnostics: dict[str, Number] | None = None


class _Head(Record):
    """The part of ``results.json`` that names the primary score, read before the rest."""

    format: Literal[1]
    primary: str
    metrics: dict[str, Metric]


class Run(Record):
    """The content of a run folder: ``results.json``, log and stages. ``metric`` is the primary score, ``beside`` those
    shown beside it.
    """

    folder: Path
    metric: Metric
    beside: tuple[Metric, ...] = ()
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
    distilled: bool = True  # in any of its stages
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
    def corruptions(self) -> str | None:
        """The corruptions that its models were scored on, in words; None: none."""
        return self.student.corruptions.setup if self.student.corruptions else None

    @property
    def memory(self) -> float | None:
        """Peak memory in MiB over its stages."""
        return max((stage.memory_mb for stage in self.stages if stage.memory_mb is not None), default=None)

    @property
    def fewest_steps(self) -> int | None:
        """Training steps of its shortest stage that trains."""
        return min((stage.steps for stage in self.stages if stage.steps), default=None)

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
        raise UserError(f"{folder}: results.json is missing: the run is unfinished; run its command again to continue")
    values = _json(path)
    if isinstance(values, dict) and "name" in values and "models" not in values:
        raise UserError(
            f"{folder}: the run has no scores, since its recipe has no 'evaluate'; score it with "
            f"segdistill evaluate {folder} evaluate.domains=[...]"
        )
    metric = _primary(values, path)
    about = folder / "environment.json"  # a folder of scores alone has none
    environment = _json(about) if about.is_file() else values.get("environment", {})
    if not isinstance(environment, dict):
        raise UserError(f"{about}: expected an object, got {type(environment).__name__}")
    recipe = _text(folder / "recipe.yaml")
    if recipe is not None and not text_is_whole(recipe.encode()):
        raise UserError(f"{folder / 'recipe.yaml'}: is damaged or was edited; run the command again")
    values |= {
        "folder": folder,
        "metric": metric,
        "beside": _beside(values, path),
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
    """The primary score that ``results.json`` names."""
    if isinstance(values, dict) and values.get("format") == 1 and "primary" not in values and "models" in values:
        raise UserError(f"{path}: names no primary score, since an earlier version wrote it; score it again with "
                        f"segdistill evaluate {path.parent}")  # fmt: skip
    found = _record(_Head, values, path)
    if found.primary not in found.metrics:
        raise UserError(f"{path}: primary: '{found.primary}' is not one of its metrics: {', '.join(found.metrics)}")
    return found.metrics[found.primary].model_copy(update={"key": found.primary})


def _beside(values: Any, path: Path) -> tuple[Metric, ...]:
    """The scores that are shown beside the primary one."""
    found = _record(_Head, values, path)
    return tuple(one.model_copy(update={"key": key}) for key, one in found.metrics.items() if one.beside)


def _check(run: Run, path: Path) -> None:
    """Check across fields: equal lengths, existing domains and pictures, consistent retention."""
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
                f"{path}: retention {run.retention} is not student / teacher on unseen domains, which is {ratio:.4f}"
            )
    for domain in {**run.pictures.domains, **run.pictures.worst}:
        plain_name(domain)
        for index in run.pictures.kept(domain):
            for kind in ("image", "truth", "student"):
                picture = Path("pictures", kind, f"{domain}-{index}.png")
                if not (run.folder / picture).is_file():
                    raise UserError(f"{run.folder}: the picture {picture} is missing; run the command again")


def _check_model(run: Run, model: ModelResult, who: str) -> None:
    """Check that there is a score per domain and class, within its range, and that the mean matches them."""
    metric = run.metric
    for domain in (*run.source, *run.unseen, *run.validation):
        if domain not in model.domains:
            raise UserError(f"{who} has no scores for the domain '{domain}'")
        found = model.domains[domain]
        if metric.by_class and len(found.by_class) != len(run.classes):
            raise UserError(f"{who} needs one {metric.by_class_label} per class on '{domain}'")
        if metric.unit == "%" and not all(v is None or 0 <= v <= 1 for v in (found.score, *found.by_class)):
            raise UserError(f"{who} has scores on '{domain}' outside [0, 1]")
    mean = _mean(model, run.unseen)
    if model.mean_unseen is not None and (mean is None or abs(model.mean_unseen - mean) > TOLERANCE):
        raise UserError(f"{who}'s mean_unseen {model.mean_unseen} is not the mean of its domains, {mean}")


def _mean(model: ModelResult, unseen: Sequence[str]) -> float | None:
    """The mean score over ``unseen``; None without such domains or if one was not measured."""
    return complete_mean(model.domains[domain].score for domain in unseen)


def _read_log(path: Path) -> tuple[Step, ...]:
    """The log; later lines replace earlier ones of the same step, which a resumed run repeats."""
    lines, steps = (_text(path) or "").split("\n"), {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        value = read_metrics_line(line)
        if value is None:
            if number == len(lines):  # no newline: the run was stopped while writing it
                continue
            raise UserError(
                f"{path}: line {number} is damaged: {textwrap.shorten(line, 60)}; delete it to lose only this point"
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
        raise UserError(f"{path}: is damaged ({error}); run the command again") from None
    if isinstance(value, dict):
        value.pop("digest", None)
    return value


def _text(path: Path) -> str | None:
    """The file's text; None if there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({textwrap.shorten(str(error), 80)})") from None


def _record(cls: type[R], value: Any, path: Path, context: object = None) -> R:
    """``value`` as ``cls``, or a :class:`UserError` with the file and its problems."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object, got {textwrap.shorten(repr(value), 60)}")
    try:
        return parse(cls, value, context=context)
    except UserError as error:
        raise UserError(f"{path}: {textwrap.shorten(str(error), 300)}") from None
