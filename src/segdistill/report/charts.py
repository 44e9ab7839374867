"""The page's figures: bars and dots as HTML (they reflow on a phone), curves as inline SVG. Colours come from CSS."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as e

from segdistill.report.answer import ranking
from segdistill.report.compare import Arm, Comparison
from segdistill.report.runs import Step
from segdistill.report.table import percent

COLORS = 10  # .a0 to .a9 in page.css
POINTS = 160  # of a curve; longer logs are averaged in bins
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 200, 44, 12, 10, 24


@dataclass(frozen=True)
class Curve:
    """One run's line: (step, value) points, named by its arm and drawn in its colour."""

    label: str
    color: str
    points: tuple[tuple[float, float], ...]


def arm_colors(comparison: Comparison) -> dict[str, str]:
    """The CSS class of each arm, the best first where the comparison has none of its own; ``teacher`` is neutral."""
    ranked = ranking(comparison)
    order = ranked + [arm for arm in comparison.arms if arm not in ranked]
    own = comparison.hues or {arm.name: f"a{i % COLORS}" for i, arm in enumerate(order)}
    return {"teacher": "teacher"} | own


def everyone(comparison: Comparison) -> list[tuple[Arm, str]]:
    """The teacher (if any) and the arms with their CSS colour classes, in the table's order."""
    colors = arm_colors(comparison)
    teacher = [(comparison.teacher, "teacher")] if comparison.teacher else []
    return teacher + [(arm, colors[arm.name]) for arm in comparison.arms]


def legend(entries: Sequence[tuple[Arm, str]]) -> str:
    """Colour chips with titles."""
    return chips((arm.title, color) for arm, color in entries)


def chips(entries: Iterable[tuple[str, str]]) -> str:
    """(title, CSS colour class) as a list."""
    items = "".join(f'<li class="{color}"><i></i>{e(title)}</li>' for title, color in entries)
    return f'<ul class="legend">{items}</ul>'


def mean_bars(comparison: Comparison) -> str:
    """Mean over unseen domains: one bar per model, each seed a dot, the teacher a line through all."""
    entries = [(arm, color, stat) for arm, color in everyone(comparison) if (stat := arm.mean_unseen) is not None]
    if not entries:
        return ""
    step, top = share_ticks(max(value for _, _, stat in entries for value in stat.values))
    teacher = comparison.teacher.mean_unseen if comparison.teacher else None
    line = f'<s class="mark" style="left:{at(teacher.mean, top)}"></s>' if teacher else ""
    rows = []
    for arm, color, stat in entries:
        dots = "".join(
            f'<b style="left:{at(value, top)}" title="seed {seed}: {percent(value)}"></b>'
            for seed, value in zip(arm.seeds, stat.values, strict=True)
        )
        spread = f"<small> ± {percent(stat.sd)}</small>" if stat.sd is not None else ""
        rows.append(
            f'<div class="row {color}"><span class="name">{e(arm.title)}</span>'
            f'<span class="track">{grid(step, top)}<i style="width:{at(stat.mean, top)}"></i>'
            f"{'' if arm is comparison.teacher else line}{dots if len(stat.values) > 1 else ''}</span>"
            f'<span class="value">{percent(stat.mean)}{spread}</span></div>'
        )
    return f'<div class="bars">{"".join(rows)}{axis(step, top, "mIoU, mean over unseen domains")}</div>'


def domain_dots(comparison: Comparison) -> str:
    """mIoU domain by domain: one line per domain, one dot per model."""
    entries = everyone(comparison)
    stats = {(a.name, d): s for a, _ in entries for d in comparison.domains if (s := a.score(d)) is not None}
    if not stats:
        return ""
    step, top = share_ticks(max(stat.mean for stat in stats.values()))
    rows = []
    for domain in comparison.domains:
        known = [(arm, color, stats[arm.name, domain].mean) for arm, color in entries if (arm.name, domain) in stats]
        dots = "".join(
            f'<b class="{color}" style="left:{at(value, top)}" title="{e(arm.title)}: {percent(value)}"></b>'
            for arm, color, value in known
        )
        values = [value for _, _, value in known]
        span = ""
        if values:
            span = f'<u style="left:{at(min(values), top)};width:{at(max(values) - min(values), top)}"></u>'
        role = role_of(comparison, domain)
        rows.append(
            f'<div class="row {role}"><span class="name">{e(domain)}<small>{role}</small></span>'
            f'<span class="track">{grid(step, top)}{span}{dots}</span></div>'
        )
    return f'<div class="dots">{"".join(rows)}{axis(step, top, "mIoU")}</div>'


ROLES = ("source", "unseen", "validation")


def role_of(comparison: Comparison, domain: str) -> str:
    """``source``, ``unseen`` or ``validation``."""
    return next(role for role in ROLES if domain in getattr(comparison, role))


def class_bars(comparison: Comparison) -> str:
    """IoU of every class over the unseen domains, models side by side; classes that never occur are named below."""
    entries = everyone(comparison)
    scores = {arm.name: arm.class_iou(comparison.unseen) for arm, _ in entries}
    cards, absent = [], []
    for index, name in enumerate(comparison.classes):
        values = {arm.name: scores[arm.name][index] for arm, _ in entries}
        if all(value is None for value in values.values()):
            absent.append(name)
            continue
        best = max((v for arm in comparison.arms if (v := values[arm.name]) is not None), default=None)
        rows = "".join(_class_row(arm.title, color, values[arm.name], best) for arm, color in entries)
        swatch = "#{:02x}{:02x}{:02x}".format(*comparison.colors[index])
        cards.append(f'<li><h3><i style="background:{swatch}"></i>{e(name)}</h3>{rows}</li>')
    note = f'<p class="note">Never seen in these domains: {e(", ".join(absent))}.</p>' if absent else ""
    return f'<ul class="classes">{"".join(cards)}</ul>{note}'


def _class_row(title: str, color: str, value: float | None, best: float | None) -> str:
    shown = "–" if value is None else percent(value)
    strong = value is not None and best is not None and color != "teacher" and shown == percent(best)
    return (
        f'<div class="{color}" title="{e(title)}: {shown}"><span><i style="width:{at(value or 0, 1)}"></i></span>'
        f"<em>{f'<strong>{shown}</strong>' if strong else shown}</em></div>"
    )


def curve_panels(comparison: Comparison) -> list[tuple[str, str]]:
    """(title, SVG) per stage's loss, then the probe and every diagnostic that was logged."""
    colors = arm_colors(comparison)
    kinds: dict[tuple[bool, str, str], list[Curve]] = {}
    place: dict[str, str] = {}  # a stage's title -> its latest number in any run
    for run in comparison.runs:
        series: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for step in run.metrics:
            title = stage_title(step.stage)
            place[title] = max(place.get(title, ""), step.stage)
            for kind, value in _values(step):
                series.setdefault((step.stage, kind), []).append((float(step.step), value))
        for (stage, kind), points in series.items():
            key = (kind != "loss", stage_title(stage), kind)
            kinds.setdefault(key, []).append(Curve(run.title, colors[run.name], _thin(points)))
    ordered = sorted(kinds, key=lambda key: (key[0], place[key[1]]))  # losses first, then as the stages follow
    return [(f"{stage}: {kind}", curve_svg(kinds[late, stage, kind], kind)) for late, stage, kind in ordered]


def stage_title(stage: str) -> str:
    """``01-domain_agnostic`` -> ``domain agnostic``."""
    number, _, rest = stage.partition("-")
    return (rest if number.isdigit() and rest else stage).replace("_", " ")


def curve_svg(curves: Sequence[Curve], kind: str) -> str:
    """Lines over steps; the height is logarithmic where a loss spans more than a factor of 20."""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    log = kind == "loss" and min(ys) > 0 and max(ys) / min(ys) > 20
    level = math.log10 if log else float
    ticks = _log_ticks(min(ys), max(ys)) if log else linear_ticks(min(0.0, *ys), max(ys))
    low, high = level(min(ticks[0], *ys)), level(max(ticks[-1], *ys))
    right = max(max(xs), 1.0)

    def x_of(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / right

    def y_of(y: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (level(y) - low) / ((high - low) or 1))

    parts = []
    for tick in ticks:
        y = f"{y_of(tick):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy=".32em" text-anchor="end">{tick:g}</text>')
    for tick in linear_ticks(0.0, right):
        if tick <= right:
            parts.append(f'<text x="{x_of(tick):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{tick:g}</text>')
    for curve in curves:
        path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in curve.points)
        dot = len(curve.points) == 1
        end = f'<circle cx="{x_of(curve.points[0][0]):.1f}" cy="{y_of(curve.points[0][1]):.1f}" r="3"/>' if dot else ""
        parts.append(f'<g class="{curve.color}"><title>{e(curve.label)}</title><path d="M{path}"/>{end}</g>')
    names = ", ".join(dict.fromkeys(curve.label for curve in curves))
    label = f"{kind} over steps{', logarithmic' if log else ''}: {names}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{e(label)}">{"".join(parts)}</svg>'


def _values(step: Step) -> list[tuple[str, float]]:
    """The numbers of a log line that are worth a curve."""
    pairs = [("loss", step.loss), ("probe mIoU", step.probe)]
    pairs += [(name.replace("_", " "), value) for name, value in (step.diagnostics or {}).items()]
    return [(name, value) for name, value in pairs if value is not None]


def _thin(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """At most ``POINTS`` points: the means of equal bins."""
    size = math.ceil(len(points) / POINTS)
    bins = (points[i : i + size] for i in range(0, len(points), size))
    return tuple((sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins)


def _nice(span: float, count: int) -> float:
    """The step of 1, 2, 2.5 or 5 times a power of ten that cuts ``span`` into about ``count``."""
    raw = max(span, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, about five of them."""
    step = _nice(high - low, 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    return [10.0**i for i in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def share_ticks(highest: float) -> tuple[float, float]:
    """Distance and end of a share's axis that starts at zero."""
    step = _nice(highest, 5)
    return step, min(math.ceil(highest / step - 1e-9) * step, 1.0) or 1.0


def at(value: float | int, top: float | int) -> str:
    """A place or a length on a track that ends at ``top``, as CSS has it."""
    return f"{100 * value / top:.2f}%"


def grid(step: float, top: float) -> str:
    """The lines behind a track."""
    return "".join(f'<q style="left:{at(i * step, top)}"></q>' for i in range(round(top / step) + 1))


def axis(step: float, top: float, label: str) -> str:
    """The numbers below the tracks (percent) and what they are."""
    marks = "".join(f'<q style="left:{at(i * step, top)}">{100 * i * step:g}</q>' for i in range(round(top / step) + 1))
    return f'<div class="row axis"><span class="name"></span><span class="track">{marks}</span><p>{label}</p></div>'
