"""A table's runs as the comparisons that the report's charts take: one per group of rows, in colours that agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from segdistill.grid.result import TEACHER, TableResult
from segdistill.report.charts import COLORS
from segdistill.report.compare import Comparison, check_shared

MANY = 12
"""Of a table with more rows than this, pictures and details show the best row of every group alone."""


@dataclass(frozen=True)
class View:
    """Rows that stand side by side; ``title`` is empty where there is nothing to tell them from."""

    title: str
    comparison: Comparison


def group_views(result: TableResult, value: str) -> list[View]:
    """Every group of rows at one value of the sweep; groups without a finished run are left out."""
    views = []
    for group in result.groups:
        rows = [number for number, row in enumerate(result.table.rows) if row.group == group]
        found = _compare(result, rows, value, full=False)
        views += [View(group, found)] if found else []
    return views


def detail_views(result: TableResult, value: str) -> list[View]:
    """As :func:`group_views`, with the value in the titles; of a long table one view of the best row of each group."""
    at = f"{result.table.sweep.title}: {value}" if result.table.sweep else ""
    if len(result.table.rows) <= MANY or len(result.groups) == 1:
        return [replace(view, title=", ".join(filter(None, (view.title, at)))) for view in group_views(result, value)]
    best = [ranked[0] for group in result.groups if (ranked := result.ranked(group, value))]
    found = _compare(result, best, value, full=True)
    return [View(", ".join(filter(None, ("The best row of each group", at))), found)] if found else []


def everything(result: TableResult) -> Comparison:
    """Every cell, for what needs no scores: environment, stages, recipes."""
    first = next(iter(result.runs.values()))
    titles = {
        (row, value): f"{result.table.rows[row].full_title}{f', {value}' if value else ''}"
        for row, value in result.entries
    }
    names = {key: str(number) for number, key in enumerate(titles)}
    return Comparison(
        classes=first.classes,
        colors=first.colors,
        source=first.source,
        unseen=first.unseen,
        validation=first.validation,
        teacher=None,
        arms=tuple(replace(result.entries[key], name=names[key], title=titles[key]) for key in titles),
        runs=tuple(
            replace(run, name=names[row, value], title=titles[row, value])
            for (row, value, _), run in sorted(result.runs.items())
        ),
    )


def last_value(result: TableResult) -> str:
    """The last value of the sweep at which a run finished."""
    return next((value for value in reversed(result.values) if any(v == value for _, v, _ in result.runs)), "")


def row_colors(result: TableResult) -> dict[int, str]:
    """CSS colour classes: rows of one title share theirs, the best title has the first; the teacher is neutral.

    A table with more titles than colours counts anew in every group.
    """
    rows = result.table.rows
    titles = list(dict.fromkeys(row.title for row in rows))
    if len(titles) > COLORS:
        places = [sum(other.group == row.group for other in rows[:number]) for number, row in enumerate(rows)]
    else:
        ranked = sorted(titles, key=lambda title: -_standing(result, title))
        places = [ranked.index(row.title) for row in rows]
    return {TEACHER: "teacher"} | {number: f"a{place % COLORS}" for number, place in enumerate(places)}


def _standing(result: TableResult, title: str) -> float:
    """Mean over all that rows of this title have reached."""
    means = [
        entry.mean_unseen.mean
        for (number, _), entry in result.entries.items()
        if result.table.rows[number].title == title and entry.mean_unseen
    ]
    return fmean(means) if means else 0.0


def _compare(result: TableResult, rows: Sequence[int], value: str, *, full: bool) -> Comparison | None:
    """These rows at one value; ``full`` titles name the group. Colours are the table's where they can differ."""
    title = {row: result.table.rows[row].full_title if full else result.table.rows[row].title for row in rows}
    entries = {row: entry for row in rows if (entry := result.entries.get((row, value)))}
    runs = tuple(
        replace(run, name=str(row), title=title[row])
        for (row, v, _), run in sorted(result.runs.items())
        if v == value and row in entries
    )
    if not runs:
        return None
    check_shared(runs)
    colors = row_colors(result)
    return Comparison(
        classes=runs[0].classes,
        colors=runs[0].colors,
        source=runs[0].source,
        unseen=runs[0].unseen,
        validation=runs[0].validation,
        teacher=result.teachers.get(value),
        arms=tuple(replace(entry, name=str(row), title=title[row]) for row, entry in entries.items()),
        runs=runs,
        hues={} if full else {str(row): colors[row] for row in entries},
    )
