"""The unseen domains as the axes of a radar: one outline per model, the best and the named ones in front."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from html import escape as e

from segdistill.report.answer import ranking
from segdistill.report.charts import everyone, share_ticks
from segdistill.report.compare import Arm, Comparison
from segdistill.report.table import percent

WIDTH, HEIGHT, RADIUS, MIDDLE = 480, 380, 150, (240, 192)
FEWEST = 3  # axes that make a shape
LONGEST = 14  # letters of an axis' name


def radar(comparison: Comparison, named: Collection[str] = ()) -> str:
    """mIoU on every unseen domain, zero in the middle; empty with fewer than three domains.

    The best student and the arms ``named`` stand out, the teacher is dashed, the others are thin.
    """
    domains = comparison.unseen
    entries = [(arm, color, _scores(arm, domains)) for arm, color in everyone(comparison)]
    known = [(arm, color, scores) for arm, color, scores in entries if scores]
    if len(domains) < FEWEST or not known:
        return ""
    step, top = share_ticks(max(max(scores) for _, _, scores in known))
    ranked = ranking(comparison)
    front = {arm.name for arm in ranked[:1]} | set(named)
    known.sort(key=lambda entry: (entry[0].name in front, entry[0] is comparison.teacher))  # later ones lie on top
    shapes = "".join(_outline(comparison, entry, top, front, ranked[:1]) for entry in known)
    label = f"Radar of mIoU on {', '.join(domains)}, 0 in the middle, {100 * top:g} at the rim: " + "; ".join(
        f"{arm.title} {' '.join(map(percent, scores))}" for arm, _, scores in known
    )
    return (
        f'<svg class="radar" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{e(label)}">'
        f"{_web(domains, step, top)}{shapes}{_scale(len(domains), step, top)}</svg>"
    )


def _outline(
    comparison: Comparison,
    entry: tuple[Arm, str, list[float]],
    top: float,
    front: Collection[str],
    best: Sequence[Arm],
) -> str:
    """A model's polygon, with dots where it is the best student's."""
    arm, color, scores = entry
    points = [_point(i, len(scores), score / top) for i, score in enumerate(scores)]
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    kind = "" if arm is comparison.teacher else " front" if arm.name in front else " back"
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in points) if arm in best else ""
    spoken = ", ".join(f"{domain} {percent(score)}" for domain, score in zip(comparison.unseen, scores, strict=True))
    return (
        f'<g class="{color}{kind}{" best" if dots else ""}"><title>{e(arm.title)}: {e(spoken)}</title>'
        f'<polygon points="{corners}"/>{dots}</g>'
    )


def _web(domains: Sequence[str], step: float, top: float) -> str:
    """Rings at round numbers, an axis and a name per domain."""
    count, parts = len(domains), []
    for ring in range(1, round(top / step) + 1):
        corners = (_point(i, count, ring * step / top) for i in range(count))
        parts.append(f'<path class="grid" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in corners)}Z"/>')
    for i, domain in enumerate(domains):
        x, y = _point(i, count, 1.0)
        parts.append(f'<path class="grid" d="M{MIDDLE[0]} {MIDDLE[1]}L{x:.1f} {y:.1f}"/>')
        tx, ty = _point(i, count, 1 + 14 / RADIUS)
        name = domain if len(domain) <= LONGEST else f"{domain[: LONGEST - 1]}…"
        side = (x - MIDDLE[0]) / RADIUS
        anchor = "middle" if abs(side) < 0.1 else "start" if side > 0 else "end"
        parts.append(f'<text class="axis" x="{tx:.1f}" y="{ty:.1f}" dy=".32em" text-anchor="{anchor}">{e(name)}</text>')
    return "".join(parts)


def _scale(count: int, step: float, top: float) -> str:
    """The rings' numbers, beside the first axis."""
    texts = []
    for ring in range(1, round(top / step) + 1):
        y = _point(0, count, ring * step / top)[1]
        texts.append(f'<text x="{MIDDLE[0] + 5}" y="{y + 11:.1f}">{100 * ring * step:g}</text>')
    return "".join(texts)


def _point(axis: int, axes: int, share: float) -> tuple[float, float]:
    """Where a share of the radius lies on an axis; the first points up, the others follow clockwise."""
    angle = 2 * math.pi * axis / axes
    return MIDDLE[0] + RADIUS * share * math.sin(angle), MIDDLE[1] - RADIUS * share * math.cos(angle)


def _scores(arm: Arm, domains: Sequence[str]) -> list[float]:
    """A mean per domain; empty where one is missing."""
    stats = [arm.score(domain) for domain in domains]
    return [stat.mean for stat in stats if stat is not None] if all(stats) else []
