"""What a table says in words: which row is best, by how much, how sure that is; also when the favourite loses."""

from __future__ import annotations

from collections.abc import Sequence

from segdistill.grid.result import TableResult
from segdistill.grid.significance import Lead
from segdistill.report.compare import Arm
from segdistill.report.table import percent


def answer(result: TableResult, found: Sequence[Lead]) -> str:
    """One sentence on the best group of rows (with a sweep: on every group); ``found`` are the table's leads."""
    if not result.runs:
        return "No run of this table has finished."
    lines = group_answers(result, found)
    if not lines:
        return "No unseen domain was measured, so nothing can be said about robustness."
    return " ".join(lines) if result.table.sweep else lines[0]


def group_answers(result: TableResult, found: Sequence[Lead]) -> list[str]:
    """A sentence per group that was measured; without a sweep the group with the best row comes first."""
    if result.table.sweep:
        return [line for group in result.groups if (line := _sweep_answer(result, group))]
    tops = [(group, ranked) for group in result.groups if (ranked := result.ranked(group, ""))]
    tops.sort(key=lambda top: -_mean(result.entries[top[1][0], ""]))
    return [_prefix(group) + _answer(result, ranked, found) for group, ranked in tops]


def remarks(result: TableResult, found: Sequence[Lead]) -> list[str]:
    """What else must be said: the other groups, leads that may be chance, losers, single seeds."""
    lines = [] if result.table.sweep else group_answers(result, found)[1:]
    open_ = [one for one in found if not one.settled]
    if result.table.sweep and found:
        lines.append(
            f"The test images settle {len(found) - len(open_)} of {len(found)} leads over the runner-up "
            "(95 % interval of a paired bootstrap)."
        )
    lines += _below_baseline(result)
    if result.runs and len({seed for _, _, seed in result.runs}) == 1:
        lines.append("One seed each: differences of a point or two may be chance.")
    return lines


def _answer(result: TableResult, ranked: Sequence[int], found: Sequence[Lead]) -> str:
    """``X is best on unseen domains: 32.2 mIoU, 2.6 points ahead of Y (...); it keeps 91.5 % of its teacher's.``"""
    best = result.entries[ranked[0], ""]
    score, kept = percent(_mean(best)), best.retention
    end = "" if kept is None else f"; it keeps {percent(kept.mean)} % of its teacher's mIoU"
    if kept is not None and kept.mean > 1:
        end = f"; that is {percent(kept.mean - 1)} % above its teacher"
    if len(ranked) == 1:
        return f"{best.title} reaches {score} mIoU on unseen domains{end}."
    second = result.entries[ranked[1], ""]
    if percent(_mean(second)) == score:
        return f"{best.title} and {second.title} are level on unseen domains, at {score} mIoU."
    lead = next((one for one in found if (one.first, one.second) == tuple(ranked[:2])), None)
    gap = f"{100 * (_mean(best) - _mean(second)):.1f}"
    sure = ""
    if lead is not None:
        low, high = lead.bounds
        sure = f" (95 % interval {low} to {high}{'' if lead.settled else ', so it may be chance'})"
    return f"{best.title} is best on unseen domains: {score} mIoU, {gap} points ahead of {second.title}{sure}{end}."


def _sweep_answer(result: TableResult, group: str) -> str:
    """``X is best at all 4 values of labels, by 1.0 to 3.2 points.``"""
    assert result.table.sweep is not None
    wins: dict[str, int] = {}
    gaps = []
    for value in result.values:
        ranked = result.ranked(group, value)
        if ranked:
            best = result.table.rows[ranked[0]].title
            wins[best] = wins.get(best, 0) + 1
        if len(ranked) > 1:
            first, second = (_mean(result.entries[row, value]) for row in ranked[:2])
            gaps.append(100 * (first - second))
    if not wins:
        return ""
    order = sorted(wins, key=lambda title: -wins[title])
    total, name = sum(wins.values()), result.table.sweep.title
    places = f"{wins[order[0]]} of {total} values"
    if wins[order[0]] == total and total > 1:
        places = "both values" if total == 2 else f"all {total} values"
    others = "".join(f", {title} at {wins[title]}" for title in order[1:])
    ends = list(dict.fromkeys(f"{gap:.1f}" for gap in (min(gaps), max(gaps)))) if gaps else []
    by = f", by {' to '.join(ends)} points" if ends and not others else ""
    return f"{_prefix(group)}{order[0]} is best at {places} of {name}{others}{by}."


def _below_baseline(result: TableResult) -> list[str]:
    """One sentence for the rows of a group that end below its baseline, at the same values of the sweep."""
    below: dict[tuple[str, str, str], list[str]] = {}
    for row, config in enumerate(result.table.rows):
        base = result.baseline(row)
        gains = [(value, gain) for value in result.values if (gain := result.gain(row, value)) is not None]
        losses = [value for value, gain in gains if round(gain, 1) < 0]
        if base is None or not losses:
            continue
        where = f" at {', '.join(losses)}" if result.table.sweep else ""
        below.setdefault((config.group, result.table.rows[base].title, where), []).append(config.title)
    return [
        f"{_prefix(group)}{_listed(titles)} {'ends' if len(titles) == 1 else 'end'} below {base}{where}."
        for (group, base, where), titles in below.items()
    ]


def _listed(titles: Sequence[str]) -> str:
    return titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"


def _mean(arm: Arm) -> float:
    stat = arm.mean_unseen
    assert stat is not None
    return stat.mean


def _prefix(group: str) -> str:
    return f"{group}: " if group else ""
