"""The results table: columns, cells, best marks and intervals. :mod:`.formats` renders it."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Literal

from segdistill.papers import PaperPlace
from segdistill.results import TEACHER, Arm, Comparison, Run, Stat

Group = Literal["source", "unseen", "mean", "corrupted", "validation", "cost", "paper", "text"]
Value = float | int | str | None
Number = Stat | float | int | None

DASH = "–"
HEADS: dict[Group, str] = {
    "source": "source",
    "unseen": "unseen domains",
    "corrupted": "corrupted images",
    "validation": "validation, not unseen",
    "cost": "cost",
    "paper": "the paper",
}


@dataclass(frozen=True)
class Column:
    """``key`` is the machine's name, ``title`` the reader's; ``group`` says what kind of evidence it is.

    ``of`` is the number of a row of the comparison, ``show`` its text; the best of a ``ranked`` column is marked.
    """

    key: str
    title: str
    group: Group = "text"
    of: Callable[[int], Number] = lambda row: None
    show: Callable[[float], str] = str
    ranked: bool = False


@dataclass(frozen=True)
class Cell:
    """``number`` and ``spread`` as shown; ``value`` and ``sd`` as measured, None where they were not."""

    number: str = DASH
    value: Value = None
    sd: float | int | None = None
    spread: str = ""
    best: bool = False

    @property
    def text(self) -> str:
        """Number and spread."""
        return f"{self.number} {self.spread}".rstrip()


@dataclass(frozen=True)
class Line:
    """One row of the table; ``row`` is its number in the comparison, None where it has none."""

    title: str
    cells: tuple[Cell, ...]
    row: int | None = None
    group: str = ""
    seeds: tuple[int, ...] = ()

    @property
    def role(self) -> str:
        return "teacher" if self.row == TEACHER else "student"


@dataclass(frozen=True)
class Table:
    """``lines[i].cells[j]`` belongs to ``columns[j]``; ``first`` is the head above the titles."""

    caption: str
    first: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    @property
    def heads(self) -> list[tuple[str, Group, int]]:
        """(head, group, columns below it) of every run of columns of one kind, where there are several kinds."""
        spans = [(HEADS.get(group, ""), group, len(list(run))) for group, run in groupby(c.group for c in self.columns)]
        return spans if len(spans) > 1 else []

    @property
    def starts(self) -> set[int]:
        """The columns at which another kind begins."""
        return {0 if not i else sum(count for *_, count in self.heads[:i]) for i in range(len(self.heads))}

    @property
    def bodies(self) -> list[tuple[str, list[Line]]]:
        """The lines under the heading of their group."""
        return [(group, list(lines)) for group, lines in groupby(self.lines, key=lambda line: line.group)]


def main_table(found: Comparison) -> Table:
    """Teacher and students against domains, or against the values of a sweep, with cost and the paper's numbers.

    ``best`` marks the best students of a group of rows (ties included) where it has several: by shown value, on source
    and unseen domains, their mean, and retention; never on validation domains, where things were chosen, and never
    where the runs are too short to say anything.
    """
    measured = [*(_sweep_columns(found) if found.sweep else _domain_columns(found)), *_paper_columns(found)]
    lines = []
    for row in found.lines:
        cells = tuple(_cell(found, one, row) for one in measured)
        arms = [arm for value in found.values if (arm := found.arm(row, value))]
        title = found.title_of(row)
        if row == TEACHER and not title.startswith("Teacher"):
            title = f"Teacher: {title}"
        group = "" if row == TEACHER else found.rows[row].group
        lines.append(Line(title, cells, row, group, tuple(dict.fromkeys(s for arm in arms for s in arm.seeds))))
    if not found.shortcomings:
        contend = {row for group in found.groups for row in found.contenders(group)}
        lines = _mark_best(lines, contend, [one.ranked for one in measured])
    return Table(
        caption=f"{found.metric.label}{' in percent' if found.metric.unit == '%' else ''}",
        first=found.sweep or "model",
        columns=tuple(measured),
        lines=tuple(lines),
        notes=tuple(_notes(found, measured, lines)),
    )


def cost_table(found: Comparison) -> Table:
    """Training time at every value of a sweep, peak memory and size."""
    columns = [Column(value, value, "cost", _of(found, "seconds", value), duration) for value in found.values]
    columns.append(Column("memory", "peak MiB", "cost", _of(found, "memory", found.last_value), _whole))
    columns.append(Column("parameters", "parameters (M)", "cost", _of(found, "size", found.last_value), millions))
    lines = (Line(found.title_of(row), tuple(_cell(found, one, row) for one in columns), row) for row in found.lines)
    return Table("Training time and memory", found.sweep, tuple(columns), tuple(lines))


def stage_table(found: Comparison) -> Table:
    """Steps, images per second and time of every stage, means over the seeds."""
    lines = []
    for row, value in found.arms:
        runs = found.runs_of(row, value)
        for stage in runs[0].stages:
            times = [s.seconds for run in runs for s in run.stages if s.name == stage.name and s.seconds is not None]
            speeds = [
                step.images_per_s
                for run in runs
                for step in run.log
                if stage_title(step.stage) == stage_title(stage.name) and step.images_per_s is not None
            ]
            numbers = ((stage.steps, _whole), (fmean(speeds) if speeds else None, _whole),
                       (fmean(times) if times else None, duration))  # fmt: skip
            cells = [Cell(stage_title(stage.name), stage.name), Cell(stage.type or DASH, stage.type)]
            cells += [Cell() if number is None else Cell(show(number), number) for number, show in numbers]
            lines.append(Line(", ".join(filter(None, (found.rows[row].full_title, value))), tuple(cells), row))
    heads = [Column(name, name) for name in ("stage", "type")]
    heads += [Column(name, name, "cost") for name in ("steps", "images/s", "time")]
    return Table("Run time per stage", "model", tuple(heads), tuple(lines))


def paper_table(place: PaperPlace) -> Table:
    """One group of rows of a table of the paper, all that it prints."""
    block = place.block_of()
    lines = (
        Line(
            f"{row.name}, {row.arch}" if row.arch else row.name,
            tuple(Cell() if score is None else Cell(f"{score:.1f}", score) for score in row.scores),
            TEACHER if row.role == "teacher" else None,
        )
        for row in block.rows
    )
    return Table(place.caption, "model", tuple(Column(name, name, "paper") for name in block.columns), tuple(lines))


def _of(found: Comparison, pick: str | Callable[[Arm], Stat | None], value: str) -> Callable[[int], Number]:
    """A number of the arms at one value, by its name or by a function."""

    def number(row: int) -> Number:
        arm = found.arm(row, value)
        return None if arm is None else getattr(arm, pick) if isinstance(pick, str) else pick(arm)

    return number


def _domain_columns(found: Comparison) -> list[Column]:
    """Source, unseen domains, their mean, gain over the baseline, retention; validation apart; cost."""
    if (first := found.first) is None:
        return []
    text = found.metric.text

    def domains(names: Sequence[str], group: Group, *, ranked: bool) -> list[Column]:
        return [Column(d, d, group, _of(found, lambda arm, d=d: arm.score(d), ""), text, ranked=ranked) for d in names]

    shown = first.beside

    def beside(names: Sequence[str], group: Group, head: str) -> list[Column]:
        scores = shown if names else ()
        of = [(one, _of(found, lambda arm, key=one.key: arm.other(key, names), "")) for one in scores]
        return [Column(f"{head} {m.key}", f"{head} {m.label}", group, pick, m.text, ranked=True) for m, pick in of]

    columns = [*domains(first.source, "source", ranked=True)]
    columns += [column for name in first.source for column in beside((name,), "source", name)]
    columns += domains(first.unseen, "unseen", ranked=True)
    if first.unseen:
        columns.append(Column("mean_unseen", "mean unseen", "mean", _of(found, "mean_unseen", ""), text, ranked=True))
    columns += beside(first.unseen, "mean", "mean unseen")
    if any(row.baseline for row in found.rows) and any(found.gain(row) is not None for row in range(len(found.rows))):
        columns.append(Column("gain", "gain", "mean", found.gain, lambda gain: f"{gain:+.{found.metric.decimals}f}"))
    if found.teachers:
        of = _of(found, "retention", "")
        columns.append(
            Column("retention", "retention (%)", "mean", of, lambda share: f"{100 * share:.1f}", ranked=True)
        )
    columns += _corrupted_columns(found)
    columns += domains(first.validation, "validation", ranked=False)
    columns.append(Column("parameters", "parameters (M)", "cost", _of(found, "size", ""), millions))
    columns.append(Column("seconds", "seconds", "cost", _of(found, "seconds", ""), _seconds))
    if any(arm.memory for arm in found.arms.values()):
        columns.append(Column("memory", "peak MiB", "cost", _of(found, "memory", ""), _whole))
    return columns


def _corrupted_columns(found: Comparison) -> list[Column]:
    """Clean images, mPC and rPC, where any model was scored on corrupted images."""
    if found.corruptions is None:
        return []

    def column(key: str, title: str, show: Callable[[float], str]) -> Column:
        of = _of(found, lambda arm: arm.corrupted(lambda one: getattr(one, key)), "")
        return Column(key, title, "corrupted", of, show, ranked=True)

    text = found.metric.text
    return [column("clean", "clean", text), column("mpc", "mPC", text),
            column("rpc", "rPC (%)", lambda share: f"{100 * share:.1f}")]  # fmt: skip


def _sweep_columns(found: Comparison) -> list[Column]:
    """The mean over the unseen domains at each value of the sweep."""
    text = found.metric.text
    return [Column(v, v, "unseen", _of(found, "mean_unseen", v), text, ranked=True) for v in found.values]


def _paper_columns(found: Comparison) -> list[Column]:
    """The paper's numbers beside ours: one per value of a sweep, else its last column, the average.

    None where the paper has no such table, or where its columns are not the sweep's.
    """
    heads = {tuple(title.split("/")[-1] for title in place.block_of().columns) for place in found.places}
    if len(heads) != 1 or not any(row.paper for row in found.rows):
        return []
    (all_heads,) = heads
    shown = all_heads if found.sweep else all_heads[-1:]
    if found.sweep and len(shown) != len(found.values):
        return []

    def score(row: int, back: int) -> float | None:
        if row == TEACHER:
            lines = [line for place in found.places for line in place.block_of().rows if line.role == "teacher"]
            return lines[0].scores[back] if lines else None
        config = found.rows[row]
        return config.place.block_of().row(config.paper).scores[back] if config.place and config.paper else None

    return [
        Column(f"paper:{head}", f"paper: {head}", "paper", lambda row, i=i: score(row, i - len(shown)), "{:.1f}".format)
        for i, head in enumerate(shown)
    ]


def _cell(found: Comparison, one: Column, row: int) -> Cell:
    """The number of a row in a column, not marked yet."""
    number = one.of(row)
    if number is None:
        return Cell()
    if not isinstance(number, Stat):
        return Cell(one.show(number), number)
    spread = f"± {one.show(number.sd)}" if number.sd is not None else ""
    arm = found.arm(row, "")
    if one.key == "mean_unseen" and arm and arm.mean_unseen_interval and not (spread or found.shortcomings):
        spread = f"[{', '.join(map(one.show, arm.mean_unseen_interval))}]"
    return Cell(one.show(number.mean), number.mean, number.sd, spread)


def _mark_best(lines: list[Line], contend: Set[int], ranked: Sequence[bool]) -> list[Line]:
    """``lines`` with the best cells of the rows that contend marked, group by group."""
    marked = []
    for line in lines:
        rivals = [other for other in lines if other.group == line.group and other.row in contend]
        cells = []
        for j, cell in enumerate(line.cells):
            known = [other.cells[j] for other in rivals if isinstance(other.cells[j].value, float | int)]
            top = max(known, key=lambda other: other.value, default=None)  # type: ignore[arg-type, return-value]
            best = ranked[j] and line.row in contend and len(rivals) > 1 and top is not None
            cells.append(replace(cell, best=bool(best and top and cell.number == top.number)))
        marked.append(replace(line, cells=tuple(cells)))
    return marked


def _notes(found: Comparison, measured: Sequence[Column], lines: Sequence[Line]) -> list[str]:
    """What the table's columns and marks are."""
    keys, metric = {one.key for one in measured}, found.metric
    unit = " in percent" if metric.unit == "%" else ""
    notes = [f"{metric.label}{unit}." if not found.sweep
             else f"Mean {metric.label}{unit} over {', '.join(found.unseen)}."]  # fmt: skip
    if found.shortcomings:
        notes.append("Nothing is marked and no interval is given: the runs are too short.")
    elif any(cell.best for line in lines for cell in line.cells):
        notes.append(f"Bold: the best student of a column{' in its group' if len(found.groups) > 1 else ''}.")
    if any(len(line.seeds) > 1 for line in lines):
        notes.append("With several seeds: mean ± standard deviation over the seeds.")
    if any(cell.spread.startswith("[") for line in lines for cell in line.cells):
        notes.append("In brackets: 95 % interval of a bootstrap over the images.")
    if "gain" in keys:
        used = (found.baseline(row) for row in range(len(found.rows)))
        bases = dict.fromkeys(found.rows[row].title for row in used if row is not None)
        notes.append(f"Gain: {metric.points} above {', '.join(bases)} in the mean over unseen domains.")
    if "retention" in keys and found.unseen:
        notes.append("Retention: the student's mean over unseen domains divided by its teacher's.")
    if "seconds" in keys:
        notes.append("Seconds: training of all the row's own stages.")
    if "mpc" in keys:
        notes += corruption_notes(found)
    if any(one.group == "validation" for one in measured):
        notes.append("Validation domains were used to choose settings; they count neither as unseen nor in any mean.")
    notes += summaries(found)
    if any(one.group == "paper" for one in measured):
        notes.append("The paper's numbers come from different data, networks and schedules.")
    return notes


def corruption_notes(found: Comparison) -> tuple[str, ...]:
    """What was corrupted, and what mPC and rPC are."""
    first = found.corruptions
    if first is None:
        return ()
    count = len(first.common)
    levels = ", ".join(map(str, first.severities))
    several = f"mean of {', '.join(first.domains)}" if len(first.domains) > 1 else first.domains[0]
    lines = [f"Corrupted images: {first.images:,} of {several}, severities {levels}, seed {first.seed}."]
    if count:
        part = "the 15 common corruptions" if count == 15 else f"{count} of the 15 common corruptions"
        lines.append(f"mPC: mean over {part} and the severities; rPC = mPC / clean.")
    return tuple(lines)


def summaries(found: Comparison) -> list[str]:
    """What stages measured, one line each."""
    stages = [stage for _, run in shared_runs(found) for stage in run.stages if "summary" in stage.facts]
    return list(dict.fromkeys(f"{stage_title(each.name).capitalize()}: {each.facts['summary']}." for each in stages))


def stage_title(stage: str) -> str:
    """``01-domain_agnostic`` -> ``domain agnostic``."""
    number, _, rest = stage.partition("-")
    return (rest if number.isdigit() and rest else stage).replace("_", " ")


def millions(value: float | int) -> str:
    """A count in millions, two significant decimals below ten."""
    return f"{value / 1e6:.2f}" if value < 1e7 else f"{value / 1e6:.1f}"


def duration(seconds: float | int) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def shared_runs(found: Comparison) -> list[tuple[str, Run]]:
    """Every run with its row's title, for what needs no scores."""
    return [(", ".join(filter(None, (found.rows[row].full_title, value))), run)
            for (row, value, _), run in sorted(found.runs.items())]  # fmt: skip


def _seconds(value: float | int) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _whole(value: float | int) -> str:
    return f"{value:,.0f}"
