"""What a comparison says in words and in four numbers, computed from the scores: also when the favourite loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segdistill.report.table import millions
from segdistill.results import TEACHER, Comparison, Lead, Stat


@dataclass(frozen=True)
class Tile:
    """One number with what it is and a note; ``share`` fills a thin bar at 1."""

    label: str
    value: str
    unit: str
    note: str
    share: float | None = None


def headline(found: Comparison) -> str:
    """One sentence on the best row (with a sweep: on every group), or on what is missing for one."""
    if not found.runs:
        return "No run of this table has finished."
    if found.shortcomings:
        return f"Too short to compare: {'; '.join(found.shortcomings)}."
    lines = group_answers(found)
    if not lines and (line := _corrupted_answer(found)):
        return line
    if not lines:
        return "No unseen domain was measured, so nothing can be said about robustness."
    return " ".join(lines) if found.sweep else lines[0]


def _corrupted_answer(found: Comparison) -> str:
    """The row with the highest mPC; empty without one."""
    stats = {row: stat.mean for row in range(len(found.rows))
             if (arm := found.arm(row, found.last_value)) and (stat := arm.corrupted(lambda one: one.mpc))}  # fmt: skip
    if not stats:
        return ""
    best = max(stats, key=lambda row: stats[row])
    arm, metric = found.arm(best, found.last_value), found.metric
    kept = arm.corrupted(lambda one: one.rpc) if arm else None
    share = f", {100 * kept.mean:.1f} % of its score on clean images" if kept else ""
    who = "is best" if len(stats) > 1 else "was measured"
    return (
        f"{found.rows[best].full_title} {who} under corruption: mPC {metric.text(stats[best])} {metric.label}{share}."
    )


def group_answers(found: Comparison) -> list[str]:
    """A sentence per group that was measured; without a sweep the group with the best row comes first."""
    if found.sweep:
        return [line for group in found.groups if (line := _sweep_answer(found, group))]
    return [_prefix(found.rows[ranked[0]].group) + _answer(found, ranked) for ranked in found.tops()]


def remarks(found: Comparison) -> list[str]:
    """What else must be said: other groups, leads that may be chance, losers, the source, single seeds."""
    if found.shortcomings or not found.runs:
        return []
    lines = [] if found.sweep else group_answers(found)[1:]
    if found.sweep and (leads := found.runner_ups()):
        settled = sum(lead.settled for lead in leads)
        lines.append(
            f"{settled} of {len(leads)} leads over the runner-up are significant (95 % interval of a paired bootstrap "
            "over the test images)."
        )
    tops = [] if found.sweep else found.tops()
    for ranked in tops:
        lines += _seed_wins(found, ranked)
    lines += _below_baseline(found)
    lines += _source_winner(found, tops[0][0]) if tops else []
    if len({seed for _, _, seed in found.runs}) == 1:
        lines.append("One seed each: differences of a point or two may be chance.")
    teacher = found.teachers.get("")
    if teacher is not None and len(teacher.seeds) > len(set(teacher.seeds)):
        lines.append(
            "Runs with the same seed scored the teacher separately; retention is relative to each run's own teacher."
        )
    missing = [row.full_title for i, row in enumerate(found.rows) if (i, "") in found.arms and found.mean(i) is None]
    if missing and tops:
        lines.append(f"Without a mean over unseen domains: {_listed(missing)}.")
    return lines


def tiles(found: Comparison) -> list[Tile]:
    """The best row: score, lead over the next, gain over the baseline, share kept of the teacher, size.

    With a sweep the best row at each of its values.
    """
    if found.sweep:
        return [
            _score_tile(found, f"{found.sweep}: {value}", tops[0][0], value)
            for value in found.values
            if (tops := found.tops(value))
        ]
    if not (tops := found.tops()):
        return []
    best, *others = tops[0]
    metric, arm, teacher = found.metric, found.arms[best, ""], found.arm(TEACHER, "")
    parts = [_score_tile(found, "mean over unseen", best, "")]
    if others:
        lead, second = found.lead(best, others[0]), others[0]
        sure = "" if lead is None else f"; 95 % interval {' to '.join(lead.bounds)}"
        gap = f"+{metric.text(_mean(found, best) - _mean(found, second))}"
        note = f"{found.title_of(second)}, {metric.text(_mean(found, second))}{sure}"
        parts.append(Tile("ahead of the next", gap, metric.points, note))
    gain, base = found.gain(best), found.baseline(best)
    if gain is not None and base is not None and others[:1] != [base]:
        note = f"{found.title_of(base)}, {metric.text(_mean(found, base))}"
        parts.append(Tile("gain over the baseline", f"{gain:+.{metric.decimals}f}", metric.points, note))
    if arm.retention is not None and teacher is not None and teacher.mean_unseen is not None:
        note, kept = f"teacher: {metric.text(teacher.mean_unseen.mean)} {metric.label}", arm.retention.mean
        parts.append(Tile("retention", f"{100 * kept:.1f}", "%", note, min(kept, 1.0)))
    if arm.size is not None:
        whole = teacher.size if teacher is not None else None
        share = min(arm.size / whole, 1.0) if whole else None
        note = f"{100 * arm.size / whole:.0f} % of the teacher's {millions(whole)} M" if whole else ""
        parts.append(Tile("parameters", millions(arm.size), "M", note, share))
    return parts


def _score_tile(found: Comparison, label: str, row: int, value: str) -> Tile:
    """A row's mean over the unseen domains and how many seeds are behind it."""
    score, metric = _stat(found, row, value), found.metric
    seeds = f"± {metric.text(score.sd)} over {len(score.values)} seeds" if score.sd is not None else "one seed"
    return Tile(label, metric.text(score.mean), metric.label, f"{found.rows[row].full_title}, {seeds}")


def _answer(found: Comparison, ranked: Sequence[int]) -> str:
    """``X is best on unseen domains: 32.2 points, 2.6 ahead of Y (...); it keeps 91.5 % of its teacher's ...``."""
    best, metric = ranked[0], found.metric
    name, score = found.title_of(best), f"{metric.text(_mean(found, best))} {metric.label}"
    level = [row for row in ranked if found.shown(row) == found.shown(best)]
    if len(level) > 1:
        return f"{_listed([found.title_of(row) for row in level])} are level on unseen domains, at {score}."
    if len(ranked) == 1:
        return f"{name} reaches {score} on unseen domains{_kept(found, best)}."
    gap = metric.text(_mean(found, best) - _mean(found, ranked[1]))
    sure = _sure(found.lead(best, ranked[1]))
    second = found.title_of(ranked[1])
    return (
        f"{name} is best on unseen domains: {score}, {gap} {metric.points} ahead of {second}{sure}{_kept(found, best)}."
    )


def _sure(lead: Lead | None) -> str:
    if lead is None:
        return ""
    low, high = lead.bounds
    return f" (95 % interval {low} to {high}{'' if lead.settled else ', so it may be chance'})"


def _kept(found: Comparison, best: int) -> str:
    """How the best row compares with its teacher, in score and size."""
    arm, teacher = found.arms[best, ""], found.arm(TEACHER, "")
    size = "" if arm.size is None else f"{millions(arm.size)} M parameters"
    if size and teacher is not None and teacher.size:
        size += f" against the teacher's {millions(teacher.size)} M"
    if arm.retention is None:
        return f", with {size}" if size else ""
    if (kept := arm.retention.mean) > 1:
        rest = f"; that is {100 * (kept - 1):.1f} % above its teacher"
    else:
        rest = f"; it keeps {100 * kept:.1f} % of its teacher's {found.metric.label}"
    return f"{rest}{f', with {size}' if size else ''}"


def _sweep_answer(found: Comparison, group: str) -> str:
    """``X is best at all 4 values of labels, by 1.0 to 3.2 points.``"""
    wins: dict[str, int] = {}
    gaps = []
    for value in found.values:
        ranked = found.ranked(group, value)
        if ranked:
            best = found.title_of(ranked[0])
            wins[best] = wins.get(best, 0) + 1
        if len(ranked) > 1:
            gaps.append(_mean(found, ranked[0], value) - _mean(found, ranked[1], value))
    if not wins:
        return ""
    order = sorted(wins, key=lambda title: -wins[title])
    total = sum(wins.values())
    places = f"{wins[order[0]]} of {total} values"
    if wins[order[0]] == total and total > 1:
        places = "both values" if total == 2 else f"all {total} values"
    others = "".join(f", {title} at {wins[title]}" for title in order[1:])
    ends = list(dict.fromkeys(map(found.metric.text, (min(gaps), max(gaps))))) if gaps else []
    by = f", by {' to '.join(ends)} {found.metric.points}" if ends and not others else ""
    return f"{_prefix(group)}{order[0]} is best at {places} of {found.sweep}{others}{by}."


def _seed_wins(found: Comparison, ranked: Sequence[int]) -> list[str]:
    """In how many of the shared seeds the best leads the second."""
    if len(ranked) < 2:
        return []
    best, second = (found.arms[row, ""] for row in ranked[:2])
    shared = [seed for seed in best.seeds if seed in second.seeds]
    if len(shared) < 2:
        return []
    one, other = ({seed: model.mean_unseen or 0.0 for seed, model in zip(arm.seeds, arm.models, strict=True)}
                  for arm in (best, second))  # fmt: skip
    wins = sum(one[seed] > other[seed] for seed in shared)
    how = f"in each of {len(shared)} seeds" if wins == len(shared) else f"in {wins} of {len(shared)} seeds only"
    return [f"{found.rows[ranked[0]].full_title} is ahead of {second.title} {how}."]


def _below_baseline(found: Comparison) -> list[str]:
    """One sentence for the rows of a group that end below its baseline, at the same values of the sweep."""
    below: dict[tuple[str, str, str], list[str]] = {}
    for number, row in enumerate(found.rows):
        gains = ((value, found.gain(number, value)) for value in found.values)
        losses = [value for value, gain in gains if gain is not None and round(gain, found.metric.decimals) < 0]
        if losses and (base := found.baseline(number, losses[0])) is not None:
            where = f" at {', '.join(losses)}" if found.sweep else ""
            below.setdefault((row.group, found.title_of(base), where), []).append(row.title)
    return [
        f"{_prefix(group)}{_listed(titles)} {'ends' if len(titles) == 1 else 'end'} below {base}{where}."
        for (group, base, where), titles in below.items()
    ]


def _source_winner(found: Comparison, best: int) -> list[str]:
    """Where another ranked row is the best on a source domain."""
    lines, rows, metric = [], {best, *(row for ranked in found.tops() for row in ranked)}, found.metric
    for domain in found.first.source if found.first else ():
        scores = {row: round(metric.number(stat.mean), metric.decimals) for row in rows
                  if (arm := found.arm(row, "")) and (stat := arm.score(domain))}  # fmt: skip
        if best not in scores:
            continue
        top = max(scores, key=lambda row: scores[row])
        if (gap := scores[top] - scores[best]) > 0:
            lines.append(
                f"On the source domain ({domain}) {found.rows[top].full_title} is {gap:.{metric.decimals}f} "
                f"{metric.points} ahead of {found.rows[best].full_title}."
            )
    return lines


def _stat(found: Comparison, row: int, value: str = "") -> Stat:
    stat = found.arms[row, value].mean_unseen
    assert stat is not None
    return stat


def _mean(found: Comparison, row: int, value: str = "") -> float:
    return _stat(found, row, value).mean


def _listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _prefix(group: str) -> str:
    return f"{group}: " if group else ""
