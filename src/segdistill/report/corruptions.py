"""Corrupted images: every corruption by model as a table, and the primary score over the severity as small plots."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

from segdistill.report.charts import Panel, Plot, Shape, linear_ticks
from segdistill.report.table import Cell, Column, Line, Table, corruption_notes
from segdistill.report.views import Entry, View
from segdistill.results import TEACHER, Comparison, Corruptions, Stat

Pick = Callable[[Corruptions], float | None]


def corruption_table(found: Comparison) -> Table | None:
    """A line per corruption (mean over the severities) with a column per model; None without corrupted images.

    With a sweep, the models at its last value.
    """
    if (first := found.corruptions) is None:
        return None
    text, value, columns = found.metric.text, found.last_value, []
    arms = [(row, arm) for row in found.lines if (arm := found.arm(row, value)) and arm.corrupted(_clean) is not None]
    for row, _ in arms:
        title = found.title_of(row) if row == TEACHER else found.rows[row].full_title
        columns.append(Column(str(row), title, "corrupted"))
    picks: list[tuple[str, str, Pick]] = [("clean images", "", _clean), ("mPC", "", lambda one: one.mpc)]
    picks += [(label(name), family, _mean_of(name)) for family, names in first.families.items() for name in names]
    lines = []
    for title, group, pick in picks:
        stats = [arm.corrupted(pick) for _, arm in arms]
        lines.append(Line(title, tuple(_cell(stat, text) for stat in stats), group=group))
    unit = " in percent" if found.metric.unit == "%" else ""
    return Table(
        f"{found.metric.label}{unit} by corruption", "corruption", tuple(columns), tuple(lines), corruption_notes(found)
    )


def severity_panels(view: View) -> list[tuple[str, Plot]]:
    """(corruption, plot) of the mean of the common corruptions and of each one; severity 0 is the clean image.

    A line per model, its mean over the seeds; all plots have one scale.
    """
    known = [(entry, stat) for entry in view.entries if (stat := entry.arm.corrupted(_clean)) is not None]
    first = next((run.student.corruptions for *_, run in view.runs if run.student.corruptions), None)
    if first is None or not known:
        return []
    subjects = [(f"Mean of {len(first.common)} common", first.common)] if len(first.common) > 1 else []
    subjects += [(label(name), (name,)) for names in first.families.values() for name in names]
    levels = (0, *first.severities)
    curves = [(title, [(entry, points) for entry, _ in known if (points := _points(entry, names, levels))])
              for title, names in subjects]  # fmt: skip
    number = view.first.metric.number
    highest = max((number(y) for _, own in curves for _, points in own for _, y in points), default=0.0)
    area = Panel((320, 170), (0.0, float(levels[-1])), linear_ticks(0.0, highest))
    return [(title, _plot(view, title, own, area)) for title, own in curves]


def label(name: str) -> str:
    """``gaussian_noise`` -> ``gaussian noise``."""
    return name.replace("_", " ")


def _plot(view: View, title: str, curves: list[tuple[Entry, list[tuple[int, float]]]], area: Panel) -> Plot:
    metric, shapes = view.first.metric, []
    for entry, points in curves:
        text = ", ".join(f"{level} {metric.text(score)}" for level, score in points)
        places = tuple((area.x(level), area.y(metric.number(score))) for level, score in points)
        shapes.append(Shape(entry.color, f"{entry.title}: {text}", places, dots=places))
    marks = [(float(level), str(level) if level else "clean") for level in sorted({p for _, c in curves for p, _ in c})]
    about = f"{metric.label} over the severity of {title[:1].lower() + title[1:]}; "
    return area.plot("severity", about + "; ".join(shape.title for shape in shapes), marks, shapes)


def _points(entry: Entry, names: tuple[str, ...], levels: tuple[int, ...]) -> list[tuple[int, float]]:
    """(severity, score) where it was measured; the mean over ``names`` and the seeds."""
    found = []
    for level in levels:
        stats = [entry.arm.corrupted(lambda one, name=name, level=level: one.at(name, level)) for name in names]
        if all(stat is not None for stat in stats):
            found.append((level, fmean(stat.mean for stat in stats if stat is not None)))
    return found


def _clean(one: Corruptions) -> float | None:
    return one.clean


def _mean_of(name: str) -> Pick:
    return lambda one: one.mean(name)


def _cell(stat: Stat | None, text: Callable[[float], str]) -> Cell:
    if stat is None:
        return Cell()
    return Cell(text(stat.mean), stat.mean, stat.sd, f"± {text(stat.sd)}" if stat.sd is not None else "")
