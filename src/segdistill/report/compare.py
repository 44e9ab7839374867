"""Runs side by side: grouped into arms over seeds, held against one teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from segdistill.config import UserError
from segdistill.pictures import Panel
from segdistill.report.runs import ModelResult, Run, load_run

_SHARED = ("classes", "source", "unseen", "validation")


@dataclass(frozen=True)
class Stat:
    """A number measured with one or several seeds; ``sd`` is the sample standard deviation (n - 1)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def sd(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Arm:
    """One row of a comparison: the models that differ in their seed only. The teacher is an arm of its own."""

    name: str
    title: str
    seeds: tuple[int, ...]
    models: tuple[ModelResult, ...]  # one per seed
    retentions: tuple[float | None, ...] = ()

    def score(self, domain: str) -> Stat | None:
        """mIoU on ``domain`` over the seeds."""
        return _stat(model.domains[domain].miou for model in self.models)

    @property
    def mean_unseen(self) -> Stat | None:
        return _stat(model.mean_unseen for model in self.models)

    @property
    def mean_unseen_interval(self) -> tuple[float, float] | None:
        """95 % interval over the images, for a single seed: several have their own spread."""
        low, high = self.models[0].mean_unseen_interval or (None, None)
        return (low, high) if len(self.models) == 1 and low is not None and high is not None else None

    @property
    def retention(self) -> Stat | None:
        """Mean over unseen domains divided by the teacher's, per seed."""
        return _stat(self.retentions)

    @property
    def seconds(self) -> Stat | None:
        return _stat(model.seconds for model in self.models)

    @property
    def size(self) -> int | None:
        return self.models[0].size

    def class_iou(self, domains: Sequence[str]) -> list[float | None]:
        """Per class the mean over ``domains`` and seeds, None where the class never occurred."""
        columns = zip(*(model.domains[domain].iou for model in self.models for domain in domains), strict=True)
        known = ([v for v in column if v is not None] for column in columns)
        return [fmean(values) if values else None for values in known]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side. ``arms`` keep the order in which their first run was given.

    ``hues`` are the CSS colour classes by an arm's name where several comparisons on one page must agree in them.
    """

    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    source: tuple[str, ...]
    unseen: tuple[str, ...]
    validation: tuple[str, ...]
    teacher: Arm | None
    arms: tuple[Arm, ...]
    runs: tuple[Run, ...]
    hues: dict[str, str] = field(default_factory=dict)

    @property
    def domains(self) -> tuple[str, ...]:
        return self.source + self.unseen + self.validation

    def arm_runs(self, arm: Arm) -> tuple[Run, ...]:
        """The runs of ``arm``, by seed."""
        return tuple(sorted((run for run in self.runs if run.name == arm.name), key=lambda run: run.seed))

    def picture_indices(self, domain: str) -> tuple[int, ...]:
        """The scenes that any run kept for ``domain``."""
        return tuple(dict.fromkeys(index for run in self.runs for index in run.pictures.get(domain, ())))

    def panels(self, domain: str, index: int) -> tuple[Panel, ...]:
        """Image, truth, teacher (where it was kept) and every arm's first seed for one scene."""
        name = f"{domain}-{index}.png"
        runs = [run for run in self.runs if index in run.pictures.get(domain, ())]
        if not runs:
            return ()
        folder = runs[0].folder / "pictures"
        panels = [Panel("Image", "image", folder / "image" / name), Panel("Truth", "label", folder / "truth" / name)]
        teachers = [run.folder / "pictures" / "teacher" / name for run in runs if run.teacher is not None]
        kept = [path for path in teachers if path.is_file()]
        if kept and self.teacher is not None:
            panels.append(Panel(self.teacher.title, "label", kept[0]))
        for arm in self.arms:
            own = [run for run in self.arm_runs(arm) if run in runs]
            if own:
                panels.append(Panel(arm.title, "label", own[0].folder / "pictures" / "student" / name))
        return tuple(panels)


def collect(folders: Sequence[Path]) -> Comparison:
    """Read and group runs by name; a :class:`UserError` where they cannot stand in one table."""
    if not folders:
        raise UserError("no run folder was given; give one or more, for example runs/demo/gkd")
    runs = tuple(load_run(Path(folder)) for folder in folders)
    check_shared(runs)
    first = runs[0]
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        group = groups.setdefault(run.name, {})
        if run.seed in group:
            raise UserError(
                f"{run.folder}: another run '{run.name}' with seed {run.seed} was given: {group[run.seed].folder}"
            )
        group[run.seed] = run
    teachers = _teachers(runs)
    arms = tuple(
        Arm(
            name=name,
            title=next(iter(group.values())).title,
            seeds=tuple(sorted(group)),
            models=tuple(group[seed].student for seed in sorted(group)),
            retentions=tuple(_retention(group[seed], teachers) for seed in sorted(group)),
        )
        for name, group in groups.items()
    )
    return Comparison(
        classes=first.classes,
        colors=first.colors,
        source=first.source,
        unseen=first.unseen,
        validation=first.validation,
        teacher=_teacher_arm(teachers),
        arms=arms,
        runs=runs,
    )


def check_shared(runs: Sequence[Run]) -> None:
    """Raise a :class:`UserError` where runs differ in their classes or domains: they cannot stand in one table."""
    for run in runs:
        for what in _SHARED:
            if getattr(run, what) != getattr(runs[0], what):
                theirs, ours = (", ".join(getattr(r, what)) or "none" for r in (run, runs[0]))
                raise UserError(f"{run.folder}: {what} differ from {runs[0].folder}: {theirs}; there: {ours}")


def _teachers(runs: Sequence[Run]) -> list[tuple[int, ModelResult]]:
    """(seed, teacher) of every teacher whose scores differ; one row cannot hold two kinds of teacher."""
    distinct: list[tuple[int, ModelResult]] = []
    first: Run | None = None
    for run in sorted(runs, key=lambda run: run.seed):
        if run.teacher is None:
            continue
        first = first or run
        assert first.teacher is not None
        if (run.teacher.title, run.teacher.parameters) != (first.teacher.title, first.teacher.parameters):
            raise UserError(
                f"{run.folder}: its teacher ({run.teacher.title}) is not the one of {first.folder} "
                f"({first.teacher.title}, other title or size); report runs with different teachers separately"
            )
        if all(run.teacher.domains != teacher.domains for _, teacher in distinct):
            distinct.append((run.seed, run.teacher))
    return distinct


def _teacher_arm(teachers: Sequence[tuple[int, ModelResult]]) -> Arm | None:
    """The teacher's row: one value where all runs share its scores, else mean and spread of the distinct ones."""
    if not teachers:
        return None
    seeds, models = zip(*teachers, strict=True)
    return Arm("teacher", models[0].title, seeds, models)


def _retention(run: Run, teachers: Sequence[tuple[int, ModelResult]]) -> float | None:
    """Student / teacher on unseen domains; a run without its own teacher is held against its seed's, else the first."""
    others = [teacher for seed, teacher in teachers if seed == run.seed] + [teacher for _, teacher in teachers]
    teacher = run.teacher or (others[0] if others else None)
    if teacher is None or not teacher.mean_unseen or run.student.mean_unseen is None:
        return None
    return run.student.mean_unseen / teacher.mean_unseen


def _stat(values: Iterable[float | None]) -> Stat | None:
    """The measured values; None where one of them is missing."""
    listed = list(values)
    known = tuple(value for value in listed if value is not None)
    return Stat(known) if known and len(known) == len(listed) else None
