"""Which models the charts and pictures show side by side, in consistent colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from segdistill.results import TEACHER, Arm, Comparison, Run, Stat

COLORS = 10  # .a0 to .a9 in page.css
MANY = 12
"""Of a table with more rows than this, pictures and details show the best row of every group alone."""


@dataclass(frozen=True)
class Entry:
    """A model of a chart: its row, title, CSS colour class and numbers."""

    row: int
    title: str
    color: str
    arm: Arm


@dataclass(frozen=True)
class View:
    """Rows at one value of the sweep; ``title`` is empty where there is nothing to tell them from."""

    title: str
    value: str
    entries: tuple[Entry, ...]  # the teacher first, if there is one
    runs: tuple[tuple[str, str, Run], ...]  # title, colour, run
    contend: frozenset[int] = frozenset()  # the rows among which a best one may be shown

    @property
    def first(self) -> Run:
        """The first run; all runs of a view share its settings."""
        return self.runs[0][2]

    @property
    def students(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.row != TEACHER)

    @property
    def teacher(self) -> Entry | None:
        return next((entry for entry in self.entries if entry.row == TEACHER), None)

    @property
    def domains(self) -> dict[str, str]:
        """Every domain and its role: ``source``, ``unseen`` or ``validation``."""
        return {name: role for role in ("source", "unseen", "validation") for name in getattr(self.first, role)}

    @property
    def means(self) -> list[tuple[Entry, Stat]]:
        """The models with a mean over the unseen domains."""
        return [(entry, stat) for entry in self.entries if (stat := entry.arm.mean_unseen) is not None]

    def scores(self, domain: str) -> list[tuple[Entry, Stat]]:
        """The models with a score on ``domain``."""
        return [(entry, stat) for entry in self.entries if (stat := entry.arm.score(domain)) is not None]

    @property
    def best(self) -> int | None:
        """The best student's row; None if the runs are too short to tell."""
        means = {entry.row: stat.mean for entry, stat in self.means if entry.row in self.contend}
        return max(means, key=lambda row: means[row]) if means else None

    def classes(self) -> tuple[list[tuple[str, str, list[tuple[Entry, float | None]], str]], list[str]]:
        """(name, colour, models with their scores, best text) over the unseen domains; and those that never occur."""
        metric, unseen = self.first.metric, self.first.unseen
        scores = [(entry, entry.arm.by_class(unseen)) for entry in self.entries] if metric.by_class and unseen else []
        cards, absent = [], []
        for index, name in enumerate(self.first.classes if scores else ()):
            values = [(entry, own[index]) for entry, own in scores]
            known = [value for entry, value in values if value is not None and entry.row in self.contend]
            best = metric.text(max(known)) if known and len(self.contend) > 1 else ""
            if all(value is None for _, value in values):
                absent.append(name)
            else:
                cards.append((name, hex_color(self.first.colors[index]), values, best))
        return cards, absent


def hex_color(color: Sequence[int]) -> str:
    """An RGB colour as CSS has it."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def group_views(found: Comparison) -> list[View]:
    """Every group of rows at the sweep's last value; groups without a finished run are left out."""
    numbered = list(enumerate(found.rows))
    views = (_view(found, group, [i for i, row in numbered if row.group == group]) for group in found.groups)
    return [view for view in views if view is not None]


def detail_views(found: Comparison) -> list[View]:
    """As :func:`group_views`; of a long table one view of the best row of each group."""
    if len(found.rows) <= MANY or len(found.groups) == 1:
        return group_views(found)
    best = [ranked[0] for group in found.groups if (ranked := found.ranked(group, found.last_value))]
    view = _view(found, "The best row of each group", best, full=True) if best else None
    return [view] if view else group_views(found)


def row_colors(found: Comparison) -> dict[int, str]:
    """CSS colour classes: rows of one title share theirs, the best title has the first; the teacher is neutral.

    A table with more titles than colours counts anew in every group.
    """
    titles = list(dict.fromkeys(row.title for row in found.rows))
    if len(titles) > COLORS:
        places = [sum(other.group == row.group for other in found.rows[:i]) for i, row in enumerate(found.rows)]
    else:
        ranked = sorted(titles, key=lambda title: -_standing(found, title))
        places = [ranked.index(row.title) for row in found.rows]
    return {TEACHER: "teacher"} | {i: f"a{place % COLORS}" for i, place in enumerate(places)}


def _standing(found: Comparison, title: str) -> float:
    """Mean over all that rows of this title have reached."""
    keys = [(i, value) for i, row in enumerate(found.rows) if row.title == title for value in found.values]
    means = [mean for key in keys if (mean := found.mean(*key)) is not None]
    return fmean(means) if means else 0.0


def _view(found: Comparison, title: str, rows: Sequence[int], *, full: bool = False) -> View | None:
    """These rows at the sweep's last value; ``full`` titles name the group, and each row has a colour of its own."""
    value = found.last_value
    shown = [row for row in rows if (row, value) in found.arms]
    if not shown:
        return None
    colors = {row: f"a{i % COLORS}" for i, row in enumerate(shown)} if full else row_colors(found)
    names = {row: found.rows[row].full_title if full else found.rows[row].title for row in shown}
    teacher = found.teachers.get(value)
    entries = [Entry(TEACHER, teacher.title, "teacher", teacher)] if teacher else []
    entries += [Entry(row, names[row], colors[row], found.arms[row, value]) for row in shown]
    at = f"{found.sweep}: {value}" if found.sweep else ""
    runs = tuple((names[row], colors[row], run) for row in shown for run in found.runs_of(row, value))
    contend = {row for group in found.groups for row in found.contenders(group)}.intersection(shown)
    contend = set() if found.shortcomings else contend
    return View(", ".join(filter(None, (title, at))), value, tuple(entries), runs, frozenset(contend))
