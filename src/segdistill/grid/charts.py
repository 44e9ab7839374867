"""The table's own figures: scores along a sweep as inline SVG, leads with their intervals as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as e

from segdistill.grid.result import TEACHER, TableResult
from segdistill.grid.significance import Lead
from segdistill.grid.views import row_colors
from segdistill.report.charts import linear_ticks
from segdistill.report.compare import Stat
from segdistill.report.table import percent

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 280, 34, 14, 12, 26


@dataclass(frozen=True)
class Frame:
    """Places in the figure: values in their order from left to right, scores between ``low`` and ``high``."""

    values: tuple[str, ...]
    ticks: tuple[float, ...]

    def x(self, index: float | int) -> float:
        """Half a step of room at both ends."""
        return LEFT + (WIDTH - LEFT - RIGHT) * (index + 0.5) / len(self.values)

    def y(self, score: float | int) -> float:
        """Higher is better."""
        low, high = self.ticks[0], self.ticks[-1]
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (score - low) / (high - low))


def sweep_panels(result: TableResult) -> list[tuple[str, str]]:
    """(group, SVG) of every group that has scores, all on one scale."""
    stats = [stat for row in (TEACHER, *range(len(result.table.rows))) for _, stat in _line(result, row)]
    if not stats:
        return []
    ends = [end for stat in stats for end in (stat.mean - (stat.sd or 0), stat.mean + (stat.sd or 0))]
    low, high = max(min(ends), 0.0), max(max(ends), min(ends) + 0.01)
    room = Frame(result.values, tuple(linear_ticks(low, high)))
    panels = []
    for group in result.groups:
        rows = [number for number, row in enumerate(result.table.rows) if row.group == group]
        if any(_line(result, row) for row in rows):
            panels.append((group, _panel(result, rows, room)))
    return panels


def _panel(result: TableResult, rows: Sequence[int], room: Frame) -> str:
    """One line per row, the teacher dashed, whiskers of one standard deviation over the seeds."""
    colors, parts, spoken = row_colors(result), [], []
    for tick in room.ticks:
        y = f"{room.y(tick):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy=".32em" text-anchor="end">{100 * tick:g}</text>')
    for index, value in enumerate(room.values):
        parts.append(f'<text x="{room.x(index):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{e(value)}</text>')
    shown = [row for row in (TEACHER, *rows) if _line(result, row)]
    for place, row in enumerate(shown):
        shift = 0.05 * (place - (len(shown) - 1) / 2)  # whiskers side by side
        points = [(room.x(index + shift), stat) for index, stat in _line(result, row)]
        title = result.teachers[next(iter(result.teachers))].title if row == TEACHER else result.table.rows[row].title
        text = f"{title}: " + ", ".join(f"{room.values[i]} {percent(s.mean)}" for i, s in _line(result, row))
        parts.append(f'<g class="{colors[row]}"><title>{e(text)}</title>{_curve(points, room)}</g>')
        spoken.append(text)
    sweep = result.table.sweep
    label = f"mean mIoU over unseen domains by {sweep.title if sweep else ''}; {'; '.join(spoken)}"
    return (
        f'<svg class="sweep" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{e(label)}">{"".join(parts)}</svg>'
    )


def _curve(points: Sequence[tuple[float, Stat]], room: Frame) -> str:
    path = "L".join(f"{x:.1f} {room.y(stat.mean):.1f}" for x, stat in points)
    whiskers = "".join(
        f'<path class="whisker" d="M{x:.1f} {room.y(stat.mean - stat.sd):.1f}V{room.y(stat.mean + stat.sd):.1f}"/>'
        for x, stat in points
        if stat.sd
    )
    dots = "".join(f'<circle cx="{x:.1f}" cy="{room.y(stat.mean):.1f}" r="3.4"/>' for x, stat in points)
    return f'{whiskers}<path class="line" d="M{path}"/>{dots}'


def _line(result: TableResult, row: int) -> list[tuple[int, Stat]]:
    """(place, score) of every value at which the row has one."""
    entries = ((index, result.entry(row, value)) for index, value in enumerate(result.values))
    return [(index, entry.mean_unseen) for index, entry in entries if entry and entry.mean_unseen]


def lead_rows(found: Sequence[tuple[str, str, Lead]]) -> str:
    """(name, CSS class, lead): a dot at the difference on its 95 % interval, zero marked, one scale for all."""
    ends = [end for _, _, one in found for end in (*one.interval, one.points)]
    marks = linear_ticks(min(0.0, *ends), max(1.0, *ends))
    low, span = marks[0], marks[-1] - marks[0]

    def at(points: float | int) -> str:
        return f"{100 * (points - low) / span:.2f}%"

    grid = "".join(f'<q style="left:{at(mark)}"></q>' for mark in marks)
    rows = []
    for name, color, one in found:
        start, end = one.interval
        width = f"{100 * (end - start) / span:.2f}%"
        doubt = "" if one.settled else " open"
        rows.append(
            f'<div class="row {color}{doubt}"><span class="name">{name}</span><span class="track">{grid}'
            f'<s class="mark" style="left:{at(0)}"></s><u style="left:{at(start)};width:{width}"></u>'
            f'<b style="left:{at(one.points)}"></b></span><span class="value">{one.points:+.1f}'
            f"<small>[{', '.join(one.bounds)}]{'' if one.settled else ', may be chance'}</small></span></div>"
        )
    numbers = "".join(f'<q style="left:{at(mark)}">{mark:g}</q>' for mark in marks)
    foot = "<p>points of mean mIoU over unseen domains; the bar is the 95 % interval</p>"
    axis = f'<div class="row axis"><span class="name"></span><span class="track">{numbers}</span>{foot}</div>'
    return f'<div class="leads">{"".join(rows)}{axis}</div>'
