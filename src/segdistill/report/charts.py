"""The page's figures as plain data that its templates draw: axes of bars and dots in HTML, plots as inline SVG.

Colours are CSS classes; every figure carries a label with its numbers for readers who do not see it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from segdistill.report.table import stage_title
from segdistill.report.views import View, row_colors
from segdistill.results import TEACHER, Comparison, Lead, Metric, Stat, Step

POINTS = 160  # of a curve; longer logs are averaged in bins
LONGEST = 14  # letters of a radar's axis
FEWEST = 3  # axes that make a radar

Real = float | int
Point = tuple[Real, Real]


@dataclass(frozen=True)
class Axis:
    """Round numbers along a track, as shown; ``scale`` makes a stored value one of them."""

    ticks: tuple[Real, ...]
    scale: Real = 1.0

    def at(self, value: Real) -> str:
        """A place as CSS has it."""
        return f"{100 * (self.scale * value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0]):.2f}%"

    def tick(self, number: Real) -> str:
        """The place of a number as shown."""
        return self.at(number / self.scale)

    def width(self, low: Real, high: Real) -> str:
        """A length as CSS has it."""
        return f"{100 * self.scale * (high - low) / (self.ticks[-1] - self.ticks[0]):.2f}%"


def score_axis(metric: Metric, stats: Sequence[Stat], *, seeds: bool = False) -> Axis:
    """From zero to the highest of the means, or of all ``seeds``."""
    highest = max(max(stat.values) if seeds else stat.mean for stat in stats)
    return Axis(linear_ticks(0.0, metric.number(highest)), metric.number(1.0))


@dataclass(frozen=True)
class Shape:
    """A line or, ``closed``, an outline, with dots and whiskers (x, low, high)."""

    color: str
    title: str
    points: tuple[Point, ...]
    closed: bool = False
    dots: tuple[Point, ...] = ()
    whiskers: tuple[tuple[Real, Real, Real], ...] = ()

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.points) + "Z" * self.closed


@dataclass(frozen=True)
class Text:
    """A number or a name in a plot; ``anchor`` as in SVG."""

    x: Real
    y: Real
    text: str
    anchor: str = "middle"
    kind: str = "tick"


@dataclass(frozen=True)
class Plot:
    """An SVG figure; ``grid`` are paths."""

    kind: str
    size: tuple[int, int]
    label: str
    grid: tuple[str, ...]
    texts: tuple[Text, ...]
    shapes: tuple[Shape, ...]


@dataclass(frozen=True)
class Panel:
    """The plotting area of an SVG figure, linear or logarithmic upwards."""

    size: tuple[int, int]
    ends: Point  # x
    ticks: tuple[Real, ...]  # y, as shown
    log: bool = False

    LEFT, RIGHT, TOP, BOTTOM = 44, 14, 12, 26

    def x(self, value: Real) -> Real:
        """Pixels from the left."""
        low, high = self.ends
        return self.LEFT + (self.size[0] - self.LEFT - self.RIGHT) * (value - low) / ((high - low) or 1)

    def y(self, value: Real) -> Real:
        """Pixels from the top."""
        low, high, level = (math.log10(v) if self.log else v for v in (self.ticks[0], self.ticks[-1], value))
        return self.TOP + (self.size[1] - self.TOP - self.BOTTOM) * (1 - (level - low) / ((high - low) or 1))

    def plot(self, kind: str, label: str, marks: Sequence[tuple[Real, str]], shapes: Sequence[Shape]) -> Plot:
        """The figure with its grid and its numbers; ``marks`` are the texts along x."""
        right, bottom = self.size[0] - self.RIGHT, self.size[1] - 8
        grid = tuple(f"M{self.LEFT} {self.y(tick):.1f}H{right}" for tick in self.ticks)
        texts = [Text(self.LEFT - 6, self.y(tick), f"{tick:g}", "end") for tick in self.ticks]
        texts += [Text(self.x(x), bottom, text) for x, text in marks]
        return Plot(kind, self.size, label, grid, tuple(texts), tuple(shapes))


def lead_panels(found: Comparison) -> list[tuple[str, Axis, list[tuple[str, str, str, Lead]]]]:
    """(heading, axis, [(name, note, colour, lead)]): the best row of each group against the others.

    With a sweep against the runner-up at every value.
    """
    colors, panels = row_colors(found), {}
    for one in found.runner_ups() if found.sweep else found.leads:
        best, other = found.rows[one.first], found.title_of(one.second)
        if found.sweep:
            title, row = "", (found.where(one), f"{best.title} over {other}", colors[one.first], one)
        else:
            title, row = f"{best.full_title} ahead of", (other, "", colors[one.second], one)
        panels.setdefault(title, []).append(row)
    ends = {title: [end for *_, one in rows for end in (*one.interval, one.points)] for title, rows in panels.items()}
    return [(t, Axis(linear_ticks(min(0.0, *ends[t]), max(1.0, *ends[t]))), rows) for t, rows in panels.items()]


def curve_panels(view: View) -> list[tuple[str, Plot]]:
    """(title, plot) per stage's loss, then every diagnostic that was logged; one line per run."""
    kinds: dict[tuple[bool, str, str], list[Shape]] = {}
    place: dict[str, str] = {}  # a stage's title -> its latest number in any run
    for title, color, run in view.runs:
        series: dict[tuple[str, str], list[Point]] = {}
        for step in run.log:
            name = stage_title(step.stage)
            place[name] = max(place.get(name, ""), step.stage)
            for kind, value in _logged(step):
                series.setdefault((step.stage, kind), []).append((float(step.step), value))
        for (stage, kind), points in series.items():
            key = (kind != "loss", stage_title(stage), kind)
            kinds.setdefault(key, []).append(Shape(color, f"{title}, seed {run.seed}", _thin(points)))
    ordered = sorted(kinds, key=lambda key: (key[0], place[key[1]]))  # losses first, then as the stages follow
    return [(f"{stage}: {kind}", curve(kinds[late, stage, kind], kind)) for late, stage, kind in ordered]


def curve(lines: Sequence[Shape], kind: str) -> Plot:
    """Lines over steps; the height is logarithmic where a loss spans more than a factor of 20."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    log = kind == "loss" and min(ys) > 0 and max(ys) / min(ys) > 20
    ticks = _log_ticks(min(ys), max(ys)) if log else linear_ticks(min(0.0, *ys), max(ys))
    area = Panel((360, 200), (0.0, max(*xs, 1.0)), ticks, log)
    shapes = []
    for line in lines:
        points = tuple((area.x(x), area.y(y)) for x, y in line.points)
        shapes.append(Shape(line.color, line.title, points, dots=points if len(points) == 1 else ()))
    marks = [(x, f"{x:,g}" if x < 1e4 else f"{x / 1000:g}k") for x in linear_ticks(0.0, area.ends[1])
             if x <= area.ends[1] and x == round(x)]  # fmt: skip
    names = ", ".join(dict.fromkeys(line.title.rpartition(",")[0] for line in lines))
    return area.plot("curve", f"{kind} over steps{', logarithmic' if log else ''}: {names}", marks, shapes)


def sweep_panels(found: Comparison) -> list[tuple[str, Plot]]:
    """(group, plot) of every group that has scores, all on one scale: a line per row, the teacher dashed.

    Whiskers are one standard deviation over the seeds.
    """
    number = found.metric.number
    stats = [stat for value in found.values for row in (TEACHER, *range(len(found.rows)))
             if (arm := found.arm(row, value)) and (stat := arm.mean_unseen)]  # fmt: skip
    if not stats or not found.sweep:
        return []
    low = max(min(stat.mean - (stat.sd or 0) for stat in stats), 0.0)
    high = max(max(stat.mean + (stat.sd or 0) for stat in stats), low + 0.01)
    area = Panel((420, 280), (-0.5, len(found.values) - 0.5), linear_ticks(number(low), number(high)))
    panels = []
    for group in found.groups:
        rows = [row for row, line in enumerate(found.rows) if line.group == group]
        if any(found.mean(row, value) is not None for row in rows for value in found.values):
            panels.append((group, _sweep(found, [TEACHER, *rows], area)))
    return panels


def _sweep(found: Comparison, rows: Sequence[int], area: Panel) -> Plot:
    number, colors, shapes = found.metric.number, row_colors(found), []
    for place, row in enumerate(rows):
        shift = 0.05 * (place - (len(rows) - 1) / 2)  # whiskers side by side
        known = [(i + shift, value, stat) for i, value in enumerate(found.values)
                 if (arm := found.arm(row, value)) and (stat := arm.mean_unseen)]  # fmt: skip
        if not known:
            continue
        points = tuple((area.x(x), area.y(number(stat.mean))) for x, _, stat in known)
        whiskers = tuple(
            (area.x(x), area.y(number(stat.mean - stat.sd)), area.y(number(stat.mean + stat.sd)))
            for x, _, stat in known
            if stat.sd
        )
        text = ", ".join(f"{value} {found.metric.text(stat.mean)}" for _, value, stat in known)
        shapes.append(Shape(colors[row], f"{found.title_of(row)}: {text}", points, dots=points, whiskers=whiskers))
    label = f"mean {found.metric.label} over unseen domains by {found.sweep}; "
    label += "; ".join(shape.title for shape in shapes)
    return area.plot("sweep", label, list(enumerate(found.values)), shapes)


def radar(view: View, named: Collection[int] = (), *, radius: int = 150, middle: Point = (240.0, 192.0)) -> Plot | None:
    """The score on every unseen domain, zero in the middle; None with fewer than three domains.

    The best student and the rows ``named`` stand out, the teacher is dashed, the others are thin.
    """
    domains, metric = view.first.unseen, view.first.metric
    known = []
    for entry in view.entries:
        stats = [stat for domain in domains if (stat := entry.arm.score(domain)) is not None]
        if len(stats) == len(domains):
            known.append((entry, [metric.number(stat.mean) for stat in stats]))
    if len(domains) < FEWEST or not known:
        return None
    ticks = linear_ticks(0.0, max(max(scores) for _, scores in known))
    best = view.best
    known.sort(key=lambda one: (one[0].row in named or one[0].row == best, one[0].row == TEACHER))  # later ones on top

    def point(place: int, value: Real) -> Point:
        """On an axis; the first points up, the others follow clockwise."""
        angle, share = 2 * math.pi * place / len(domains), value / ticks[-1]
        return middle[0] + radius * share * math.sin(angle), middle[1] - radius * share * math.cos(angle)

    shapes = []
    for entry, scores in known:
        points = tuple(point(place, score) for place, score in enumerate(scores))
        kind = "" if entry.row == TEACHER else " front" if entry.row in named or entry.row == best else " back"
        kind += " best" if entry.row == best else ""
        text = ", ".join(f"{d} {score:.{metric.decimals}f}" for d, score in zip(domains, scores, strict=True))
        dots = points if entry.row == best else ()
        shapes.append(Shape(entry.color + kind, f"{entry.title}: {text}", points, closed=True, dots=dots))
    rings, end = ticks[1:], ticks[-1]
    grid = [Shape("", "", tuple(point(i, ring) for i in range(len(domains))), closed=True).path for ring in rings]
    grid += [Shape("", "", (middle, point(i, end))).path for i in range(len(domains))]
    texts = [Text(middle[0] + 5, point(0, ring)[1] + 11, f"{ring:g}", "start") for ring in rings]
    for place, domain in enumerate(domains):
        x, y = point(place, end * (1 + 14 / radius))
        side = (x - middle[0]) / radius
        anchor = "middle" if abs(side) < 0.1 else "start" if side > 0 else "end"
        name = domain if len(domain) <= LONGEST else f"{domain[: LONGEST - 1]}…"
        texts.append(Text(x, y, name, anchor, "axis"))
    label = f"Radar of {metric.label}, 0 in the middle, {end:g} at the rim; "
    label += "; ".join(shape.title for shape in shapes)
    return Plot("radar", (480, 380), label, tuple(grid), tuple(texts), tuple(shapes))


def linear_ticks(low: Real, high: Real) -> tuple[Real, ...]:
    """Round numbers from at most ``low`` to at least ``high``, about five of them."""
    raw = (high - low or 1.0) / 4  # equal ends: one unit
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(i * step, 10) for i in range(first, max(last, first + 1) + 1))


def _log_ticks(low: Real, high: Real) -> tuple[Real, ...]:
    return tuple(10.0**i for i in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1))


def _logged(step: Step) -> list[tuple[str, Real]]:
    """The numbers of a log line that are worth a curve."""
    pairs = [("loss", step.loss), *((name.replace("_", " "), v) for name, v in (step.diagnostics or {}).items())]
    return [(name, value) for name, value in pairs if value is not None]


def _thin(points: Sequence[Point]) -> tuple[Point, ...]:
    """At most ``POINTS`` points: the means of equal bins."""
    size = math.ceil(len(points) / POINTS)
    bins = (points[i : i + size] for i in range(0, len(points), size))
    return tuple((sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins)
