"""Compares runs: the rows of a table over seeds and sweep values, relative to one teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from segdistill.averages import complete_mean
from segdistill.config import UserError
from segdistill.papers import PaperPlace
from segdistill.pictures import Panel
from segdistill.results.corruptions import Corruptions
from segdistill.results.lead import Lead
from segdistill.results.run import Metric, ModelResult, Run, load_run
from segdistill.results.shared import check_shared
from segdistill.runlog import FEWEST_STEPS

FEWEST_IMAGES = 10  # per unseen domain; below that, scores mean nothing
TEACHER = -1
"""The row number of the teacher."""


@dataclass(frozen=True)
class Stat:
    """A value measured with one or more seeds; ``sd`` is the sample standard deviation (n - 1)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def sd(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Arm:
    """Models that differ only in their seed."""

    title: str
    seeds: tuple[int, ...]
    models: tuple[ModelResult, ...]  # one per seed
    retentions: tuple[float | None, ...] = ()
    memories: tuple[float | None, ...] = ()

    def score(self, domain: str) -> Stat | None:
        """The primary score on ``domain`` over the seeds."""
        return _stat(score.score if (score := model.domains.get(domain)) else None for model in self.models)

    def other(self, key: str, domains: Sequence[str]) -> Stat | None:
        """The mean over ``domains`` of the score ``key``; None where a domain has none."""
        rows = [[score.others.get(key) if (score := model.domains.get(domain)) else None for domain in domains]
                for model in self.models]  # fmt: skip
        return _stat(map(complete_mean, rows))

    def corrupted(self, pick: Callable[[Corruptions], float | None]) -> Stat | None:
        """A number of the models' scores on corrupted images over the seeds."""
        return _stat(None if model.corruptions is None else pick(model.corruptions) for model in self.models)

    @property
    def mean_unseen(self) -> Stat | None:
        return _stat(model.mean_unseen for model in self.models)

    @property
    def mean_unseen_interval(self) -> tuple[float, float] | None:
        """95 % interval over the images, for a single seed; several seeds have a standard deviation instead."""
        return self.models[0].mean_unseen_interval if len(self.models) == 1 else None

    @property
    def retention(self) -> Stat | None:
        """Mean over unseen domains divided by the teacher's, per seed."""
        return _stat(self.retentions)

    @property
    def seconds(self) -> Stat | None:
        return _stat(model.seconds for model in self.models)

    @property
    def memory(self) -> Stat | None:
        """Peak memory in MiB."""
        return _stat(self.memories)

    @property
    def size(self) -> int | None:
        return self.models[0].size

    def by_class(self, domains: Sequence[str]) -> list[float | None]:
        """Per class the mean over ``domains`` and seeds; None if the class never occurs."""
        columns = zip(*(model.domains[domain].by_class for model in self.models for domain in domains), strict=True)
        known = ([v for v in column if v is not None] for column in columns)
        return [fmean(values) if values else None for values in known]


@dataclass(frozen=True)
class Row:
    """One row of students. ``baseline``: trained without distillation, or the reference for gains in its group."""

    title: str
    group: str = ""
    baseline: bool = False
    place: PaperPlace | None = None  # where the paper prints this comparison
    paper: str = ""  # the row's name there; empty: not in the paper

    @property
    def full_title(self) -> str:
        """The title, preceded by its group."""
        return f"{self.group}: {self.title}" if self.group else self.title


@dataclass(frozen=True)
class Comparison:
    """Rows (x sweep values) x seeds. A row's numbers are ``arms[row, value]``, their runs ``runs[row, value, seed]``.

    Without a sweep the only value is an empty string. ``leads`` compare the best row of each group and value with the
    others, runner-up first; ``errors`` list the runs that have not finished.
    """

    rows: tuple[Row, ...]
    arms: dict[tuple[int, str], Arm]
    teachers: dict[str, Arm]
    runs: dict[tuple[int, str, int], Run]
    title: str = ""
    sweep: str = ""
    values: tuple[str, ...] = ("",)
    seeds: tuple[int, ...] = (0,)
    leads: tuple[Lead, ...] = ()
    errors: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)  # the table file, if any

    def __post_init__(self) -> None:
        for group in self.groups:
            for value in self.values:
                check_shared(
                    [run for (row, v, _), run in self.runs.items() if (self.rows[row].group, v) == (group, value)]
                )

    @property
    def first(self) -> Run | None:
        """The first run, which has everything that all runs share."""
        return next(iter(self.runs.values()), None)

    @property
    def metric(self) -> Metric:
        """The primary score."""
        return self.first.metric if self.first else Metric(label="")

    @property
    def unseen(self) -> tuple[str, ...]:
        return self.first.unseen if self.first else ()

    @property
    def corruptions(self) -> Corruptions | None:
        """The first model's scores on corrupted images: their names and severities are those of all others."""
        models = (model for run in self.runs.values() for _, model in run.models)
        return next((model.corruptions for model in models if model is not None and model.corruptions), None)

    @property
    def lines(self) -> tuple[int, ...]:
        """The row numbers, the teacher's first if there is one."""
        return (*((TEACHER,) if self.teachers else ()), *range(len(self.rows)))

    @property
    def groups(self) -> tuple[str, ...]:
        """The group headings in row order; one empty heading without groups."""
        return tuple(dict.fromkeys(row.group for row in self.rows))

    @property
    def last_value(self) -> str:
        """The last sweep value with a finished run."""
        return next((value for value in reversed(self.values) if any(v == value for _, v, _ in self.runs)), "")

    @property
    def shortcomings(self) -> tuple[str, ...]:
        """Reasons why the runs are too small for conclusions; empty if they are large enough."""
        steps = min((n for run in self.runs.values() if (n := run.fewest_steps) is not None), default=FEWEST_STEPS)
        images = min((n for run in self.runs.values() if (n := run.fewest_images) is not None), default=FEWEST_IMAGES)
        lines = []
        if steps < FEWEST_STEPS:
            lines.append(f"a stage has {steps} training steps (at least {FEWEST_STEPS} are needed)")
        if images < FEWEST_IMAGES:
            lines.append(f"an unseen domain has {images} test images (at least {FEWEST_IMAGES} are needed)")
        return tuple(lines)

    def arm(self, row: int, value: str) -> Arm | None:
        """The teacher's or a row's numbers at one sweep value."""
        return self.teachers.get(value) if row == TEACHER else self.arms.get((row, value))

    def title_of(self, row: int) -> str:
        """A row's title, or the teacher's."""
        return self.rows[row].title if row != TEACHER else next(iter(self.teachers.values())).title

    def mean(self, row: int, value: str = "") -> float | None:
        """A row's mean over the unseen domains."""
        arm = self.arm(row, value)
        return arm.mean_unseen.mean if arm and arm.mean_unseen else None

    def shown(self, row: int, value: str = "") -> float | None:
        """:meth:`mean` as displayed; rows that show the same number are tied."""
        mean = self.mean(row, value)
        return None if mean is None else round(self.metric.number(mean), self.metric.decimals)

    def ranked(self, group: str, value: str = "") -> list[int]:
        """A group's contenders with a mean over the unseen domains, best first; empty if there are shortcomings."""
        known = [row for row in self.contenders(group) if self.mean(row, value) is not None]
        return [] if self.shortcomings else sorted(known, key=lambda row: -(self.mean(row, value) or 0.0))

    def contenders(self, group: str) -> list[int]:
        """The rows of a group among which a best one is sought.

        Rows without any training compete only among themselves.
        """
        rows = [row for row, line in enumerate(self.rows) if line.group == group]
        trained = {row for (row, _, _), run in self.runs.items() if run.fewest_steps is not None}
        return [row for row in rows if row in trained] or rows

    def tops(self, value: str = "") -> list[list[int]]:
        """:meth:`ranked` for every group with scores, by their best rows; groups of students come before teachers'."""
        found = [ranked for group in self.groups if (ranked := self.ranked(group, value))]
        alone = {ranked[0]: self.arms[ranked[0], value].retention is None for ranked in found}
        return sorted(found, key=lambda ranked: (alone[ranked[0]], -(self.mean(ranked[0], value) or 0.0)))

    def baseline(self, row: int, value: str = "") -> int | None:
        """The reference row for gains of ``row``: the best baseline of its group; None for that baseline itself."""
        if row == TEACHER:
            return None
        group = self.rows[row].group
        found = [i for i, other in enumerate(self.rows) if other.baseline and other.group == group]
        best = max(found, key=lambda i: self.mean(i, value) or 0.0, default=None)
        return None if best == row else best

    def gain(self, row: int, value: str = "") -> float | None:
        """Mean over unseen domains minus the baseline's, in displayed units."""
        base = self.baseline(row, value)
        own, other = self.mean(row, value), None if base is None else self.mean(base, value)
        return None if own is None or other is None else self.metric.number(own - other)

    def lead(self, first: int, second: int, value: str = "") -> Lead | None:
        """The :class:`Lead` of one row over another, if it was computed."""
        return next((one for one in self.leads if (one.first, one.second, one.value) == (first, second, value)), None)

    def runner_ups(self) -> list[Lead]:
        """The leads of the best row of each group and value over its runner-up."""
        return list({(self.rows[one.first].group, one.value): one for one in reversed(self.leads)}.values())[::-1]

    def where(self, lead: Lead) -> str:
        """The group and the sweep value, if the table has them: ``F2L, 1/16``."""
        return ", ".join(part for part in (self.rows[lead.first].group, lead.value) if part)

    def sentence(self, lead: Lead) -> str:
        """One line to print below the table."""
        low, high = lead.bounds
        wide = f"{' to '.join(lead.wide)} over domains; " if lead.wide else ""
        seeds = f"{len(lead.seeds)} seeds" if len(lead.seeds) > 1 else "one seed"
        where = f"{where}: " if (where := self.where(lead)) else ""
        return (
            f"{where}{self.title_of(lead.first)} is ahead of {self.title_of(lead.second)} by {lead.points:.1f} "
            f"{self.metric.points} (95 % interval {low} to {high}; {wide}not ahead in {100 * lead.beaten:.1f} % of the "
            f"draws; paired bootstrap over the test images, {seeds})."
        )

    def runs_of(self, row: int, value: str) -> list[Run]:
        """A row's runs, by seed."""
        return [self.runs[key] for key in sorted(self.runs) if key[:2] == (row, value)]

    @property
    def places(self) -> tuple[PaperPlace, ...]:
        """Where the paper prints these comparisons."""
        return tuple(dict.fromkeys(row.place for row in self.rows if row.place is not None))


def collect(folders: Sequence[Path]) -> Comparison:
    """Read runs and group them by name; a :class:`UserError` if they cannot share a table."""
    if not folders:
        raise UserError("no run folder given; give one or more, for example runs/demo/gkd")
    runs = tuple(load_run(Path(folder)) for folder in folders)
    check_shared(runs)
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        group = groups.setdefault(run.name, {})
        if run.seed in group:
            raise UserError(
                f"{run.folder}: duplicate of run '{run.name}' with seed {run.seed} in {group[run.seed].folder}"
            )
        group[run.seed] = run
    teachers = _teachers(runs)
    rows, arms = [], {}
    titles = [next(iter(group.values())).title for group in groups.values()]
    for number, (name, group) in enumerate(groups.items()):
        own = [group[seed] for seed in sorted(group)]
        title = titles[number] if titles.count(titles[number]) == 1 else f"{titles[number]} ({name})"
        trained = own[0].fewest_steps is not None
        rows.append(Row(title, baseline=trained and not own[0].distilled, place=own[0].paper))
        arms[number, ""] = arm_of(title, own, teachers)
    return Comparison(
        rows=tuple(rows),
        arms=arms,
        teachers={"": Arm(teachers[0][1].title, *zip(*teachers, strict=True))} if teachers else {},
        runs={(number, "", s): run for number, group in enumerate(groups.values()) for s, run in group.items()},
        seeds=tuple(sorted({run.seed for run in runs})),
    )


def arm_of(title: str, runs: Sequence[Run], teachers: Sequence[tuple[int, ModelResult]]) -> Arm:
    """The students of ``runs``, one per seed; a run that has no teacher is compared with that of its seed among
    ``teachers`` (seed, teacher), or else the first.
    """
    return Arm(
        title,
        seeds=tuple(run.seed for run in runs),
        models=tuple(run.student for run in runs),
        retentions=tuple(_retention(run, teachers) for run in runs),
        memories=tuple(run.memory for run in runs),
    )


def picture_indices(runs: Sequence[Run], domain: str) -> tuple[int, ...]:
    """The indices of the images of ``domain`` that any run saved pictures of."""
    return tuple(dict.fromkeys(index for run in runs for index in run.pictures.domains.get(domain, ())))


def worst_images(runs: Sequence[Run], domain: str, count: int) -> list[tuple[int, float]]:
    """The ``count`` images of ``domain`` with the lowest score in any run, worst first: (image, lowest score)."""
    lowest: dict[int, float] = {}
    for index, score in (pair for run in runs for pair in run.pictures.worst.get(domain, ())):
        lowest[index] = min(score, lowest.get(index, score))
    return sorted(lowest.items(), key=lambda pair: pair[::-1])[:count]


def panels(titled: Sequence[tuple[str, Run]], teacher: str, domain: str, index: int) -> tuple[Panel, ...]:
    """Panels of one scene: image, ground truth, teacher (if saved), and the first run of every title."""
    name = f"{domain}-{index}.png"
    kept: dict[str, Run] = {}
    for title, run in titled:
        if index in run.pictures.kept(domain):
            kept.setdefault(title, run)
    if not kept:
        return ()
    folders = [run.folder / "pictures" for run in kept.values()]
    teachers = [run.folder / "pictures" / "teacher" / name for run in kept.values() if run.teacher is not None]
    return (
        Panel("Image", "image", folders[0] / "image" / name),
        Panel("Ground truth", "label", folders[0] / "truth" / name),
        *[Panel(teacher, "label", path) for path in teachers if path.is_file()][:1],
        *(Panel(title, "label", folder / "student" / name) for title, folder in zip(kept, folders, strict=True)),
    )


def _teachers(runs: Sequence[Run]) -> list[tuple[int, ModelResult]]:
    """(seed, teacher) of all teachers with distinct scores; they must all be the same network."""
    distinct: list[tuple[int, ModelResult]] = []
    first: Run | None = None
    for run in sorted(runs, key=lambda run: run.seed):
        if run.teacher is None:
            continue
        first = first or run
        assert first.teacher is not None
        if (run.teacher.title, run.teacher.parameters) != (first.teacher.title, first.teacher.parameters):
            raise UserError(
                f"{run.folder}: its teacher ({run.teacher.title}) differs from that of {first.folder} "
                f"({first.teacher.title}) in title or size; report runs with different teachers separately"
            )
        if all(run.teacher.domains != teacher.domains for _, teacher in distinct):
            distinct.append((run.seed, run.teacher))
    return distinct


def _retention(run: Run, teachers: Sequence[tuple[int, ModelResult]]) -> float | None:
    """Student / teacher on unseen domains; see :func:`arm_of`."""
    if run.teacher is not None or not teachers:
        return run.retention
    _, teacher = next((pair for pair in teachers if pair[0] == run.seed), teachers[0])
    if not teacher.mean_unseen or run.student.mean_unseen is None:
        return None
    return run.student.mean_unseen / teacher.mean_unseen


def _stat(values: Iterable[float | None]) -> Stat | None:
    """The measured values; None if one of them is missing."""
    listed = list(values)
    known = tuple(value for value in listed if value is not None)
    return Stat(known) if known and len(known) == len(listed) else None
