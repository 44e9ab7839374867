"""A run folder read back and checked."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from segdistill.config import UserError, parse
from segdistill.files import json_digest, plain_name, read_metrics_line, text_is_whole
from segdistill.papers import PaperPlace

TOLERANCE = 1e-3  # between a stored mean and the mean of the stored domains; more is damage, not rounding

R = TypeVar("R", bound=BaseModel)


def _finite(value: Any) -> Any:
    """NaN and infinity, which the JSON writer lets through, mean 'not measured'."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Share = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_finite)]
Number = Annotated[float | None, BeforeValidator(_finite)]
Byte = Annotated[int, Field(ge=0, le=255)]


_COPIED = ("name", "title", "seed", "paper", "classes", "colors", "source", "unseen", "validation", "retention")


class _Record(BaseModel):
    """A JSON object of a run folder. Keys that a later version added are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DomainScore(_Record):
    """One model on one domain; shares in [0, 1], None where nothing could be measured."""

    miou: Share
    iou: tuple[Share, ...]
    accuracy: Share = None
    mean_accuracy: Share = None
    images: int | None = None


class ModelResult(_Record):
    """A measured network: parameters by part, training seconds, scores by domain."""

    title: str
    parameters: dict[str, int] = Field(default_factory=dict)
    seconds: Number = None
    domains: dict[str, DomainScore]
    mean_unseen: Share = None
    mean_unseen_interval: tuple[Share, Share] | None = None  # 95 %, bootstrap over images

    @property
    def size(self) -> int | None:
        """All parameters, None where they were not counted."""
        return sum(self.parameters.values()) if self.parameters else None


class _Models(_Record):
    teacher: ModelResult | None = None
    student: ModelResult


class _Pictures(_Record):
    domains: dict[str, tuple[int, ...]] = Field(default_factory=dict)


class _Results(_Record):
    format: Literal[1]
    name: str
    title: str
    seed: int
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=255)]
    colors: tuple[tuple[Byte, Byte, Byte], ...]
    source: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    models: _Models
    retention: Number = None
    paper: PaperPlace | None = None
    pictures: _Pictures = _Pictures()


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
    probe: Number = None


class Stage(_Record):
    """The manifest of one finished stage."""

    name: str
    type: str | None = None
    steps: int | None = None
    seconds: Number = None
    memory_mb: Number = None  # peak of its process while it ran
    finished: str | None = None


@dataclass(frozen=True)
class Run:
    """What one run folder says. ``teacher`` and ``retention`` may be None; scores are shares in [0, 1]."""

    folder: Path
    name: str
    title: str
    seed: int
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    source: tuple[str, ...]
    unseen: tuple[str, ...]
    validation: tuple[str, ...]
    student: ModelResult
    teacher: ModelResult | None
    retention: float | None
    pictures: dict[str, tuple[int, ...]]
    recipe: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Step, ...] = ()
    stages: tuple[Stage, ...] = ()
    paper: PaperPlace | None = None


def load_run(folder: Path) -> Run:
    """Read a run folder; a :class:`UserError` names the folder and what is missing or damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder}: results.json is missing; the run is unfinished: give its command again to continue")
    value = _json(path)
    if isinstance(value, dict) and "name" in value and "models" not in value:
        raise UserError(
            f"{folder}: the run has no scores: its recipe scores nothing; give it 'evaluate', or score it with "
            f"segdistill evaluate {folder} evaluate.domains=[...]"
        )
    results = _record(_Results, value, path)
    _check(results, path)
    _check_pictures(results, folder)
    environment = _json(folder / "environment.json") if (folder / "environment.json").is_file() else {}
    if not isinstance(environment, dict):
        raise UserError(f"{folder / 'environment.json'}: expected an object, got {type(environment).__name__}")
    recipe = _text(folder / "recipe.yaml")
    if recipe is not None and not text_is_whole(recipe.encode()):
        raise UserError(f"{folder / 'recipe.yaml'}: is damaged or was edited; give the run's command again")
    student, teacher = (
        model and model.model_copy(update={"mean_unseen": _mean(model, results.unseen)})
        for model in (results.models.student, results.models.teacher)
    )
    assert student is not None
    return Run(
        folder=folder,
        student=student,
        teacher=teacher,
        pictures=dict(results.pictures.domains),
        recipe=recipe,
        environment={str(key): str(value) for key, value in environment.items() if value not in (None, "", [], {})},
        metrics=_read_metrics(folder / "metrics.jsonl"),
        stages=_read_stages(folder),
        **{k: getattr(results, k) for k in _COPIED},
    )


def _check(results: _Results, path: Path) -> None:
    """What one field cannot tell: sizes that agree, domains that exist, means and retention that follow from them."""
    if len(results.colors) != len(results.classes):
        raise UserError(f"{path}: {len(results.classes)} classes but {len(results.colors)} colours")
    for role, model in (("teacher", results.models.teacher), ("student", results.models.student)):
        if model is None:
            continue
        for domain in (*results.source, *results.unseen, *results.validation):
            if domain not in model.domains:
                raise UserError(f"{path}: the {role} has no scores for the domain '{domain}'")
            if len(model.domains[domain].iou) != len(results.classes):
                raise UserError(f"{path}: the {role} needs one IoU per class on '{domain}'")
        mean = _mean(model, results.unseen)
        if model.mean_unseen is not None and (mean is None or abs(model.mean_unseen - mean) > TOLERANCE):
            raise UserError(
                f"{path}: the {role}'s mean_unseen {model.mean_unseen} is not the mean of its domains {mean}"
            )
    teacher, student = results.models.teacher, results.models.student
    if results.retention is not None and teacher and teacher.mean_unseen and student.mean_unseen is not None:
        ratio = student.mean_unseen / teacher.mean_unseen
        if abs(results.retention - ratio) > 10 * TOLERANCE:
            raise UserError(
                f"{path}: retention {results.retention} is not student / teacher on unseen domains, {ratio:.4f}"
            )


def _check_pictures(results: _Results, folder: Path) -> None:
    """Every picture that the results promise is there."""
    for domain, indices in results.pictures.domains.items():
        plain_name(domain)
        for index in indices:
            for kind in ("image", "truth", "student"):
                path = folder / "pictures" / kind / f"{domain}-{index}.png"
                if not path.is_file():
                    raise UserError(
                        f"{folder}: the picture {path.relative_to(folder)} is missing; give the run's command again"
                    )


def _mean(model: ModelResult, unseen: Sequence[str]) -> float | None:
    """The mean mIoU over ``unseen``; None without such domains or where one was not measured."""
    scores = [model.domains[domain].miou for domain in unseen]
    known = [score for score in scores if score is not None]
    return fmean(known) if known and len(known) == len(scores) else None


def _read_metrics(path: Path) -> tuple[Step, ...]:
    """The log, later lines replacing earlier ones of the same step (a run that was continued repeats some)."""
    text = _text(path)
    if text is None:
        return ()
    lines, steps = text.split("\n"), {}
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


def _record(cls: type[R], value: Any, path: Path) -> R:
    """``value`` as ``cls``, or one line with the file and its problems."""
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object, got {textwrap.shorten(repr(value), 60)}")
    try:
        return parse(cls, value)
    except UserError as error:
        raise UserError(f"{path}: {textwrap.shorten(str(error), 300)}") from None
