"""The answer in words, computed from the numbers: also when the favourite loses."""

from __future__ import annotations

from collections.abc import Sequence

from segdistill.report.compare import Arm, Comparison
from segdistill.report.table import millions, percent


def ranking(comparison: Comparison) -> list[Arm]:
    """The students with a mean over unseen domains, best first."""
    known = [(stat.mean, arm) for arm in comparison.arms if (stat := arm.mean_unseen) is not None]
    return [arm for _, arm in sorted(known, key=lambda pair: -pair[0])]


def headline(comparison: Comparison) -> str:
    """One sentence: which student holds best on unseen domains, how much of its teacher it keeps, at what size."""
    ranked = ranking(comparison)
    if not ranked:
        return "No unseen domain was measured, so nothing can be said about robustness."
    best = ranked[0]
    score, kept, size = _mean(best), best.retention, _size(comparison, best)
    level = [arm for arm in ranked[1:] if percent(_mean(arm)) == percent(score)]
    if level:
        names = _join([best.title, *(arm.title for arm in level)])
        return f"{names} are level on unseen domains, at {percent(score)} mIoU."
    if len(ranked) == 1:
        start = f"{best.title} reaches {percent(score)} mIoU on unseen domains"
    else:
        start = f"{best.title} holds best on unseen domains: {percent(score)} mIoU"
    if kept is None:
        return f"{start}{f', with {size}' if size else ''}."
    if kept.mean > 1:
        rest = f"{percent(kept.mean - 1)} % above its teacher"
    else:
        rest = f"{percent(kept.mean)} % of its teacher's"
    return f"{start}, {rest}{f', with {size}' if size else ''}."


def remarks(comparison: Comparison) -> list[str]:
    """What else a reader must know: the lead and whether every seed shows it, losers, the source, single seeds."""
    ranked = ranking(comparison)
    lines = []
    if len(ranked) > 1:
        lines.append(_lead(ranked))
        lines += _below_baseline(ranked)
        lines += _source_winner(comparison, ranked[0])
    if ranked and all(len(arm.seeds) == 1 for arm in ranked):
        lines.append("One seed each: differences of a point or two may be chance.")
    teacher = comparison.teacher
    if teacher is not None and len(teacher.seeds) > len(set(teacher.seeds)):
        lines.append("The teacher was measured anew in runs of one seed; retention is against each run's own.")
    missing = [arm.title for arm in comparison.arms if arm not in ranked]
    if missing and ranked:
        lines.append(f"Without a mean over unseen domains: {_join(missing)}.")
    return lines


def _lead(ranked: Sequence[Arm]) -> str:
    """By how much the best leads each other arm, and in how many of the shared seeds it leads the second."""
    best, second = ranked[0], ranked[1]
    gaps = [f"{_signed(_mean(best) - _mean(arm))} over {arm.title}" for arm in ranked[1:]]
    line = f"{best.title}: {_join(gaps)}"
    shared = [seed for seed in best.seeds if seed in second.seeds]
    if len(shared) > 1:
        pairs = [(_at(best, seed), _at(second, seed)) for seed in shared]
        wins = sum(one > other for one, other in pairs)
        how = "in each of" if wins == len(shared) else f"but in {wins} of"
        line += f"; ahead of {second.title} {how} {len(shared)} seeds"
    return line + "."


def _below_baseline(ranked: Sequence[Arm]) -> list[str]:
    """Arms that end below training without distillation (the arm named ``none``)."""
    names = [arm.name for arm in ranked]
    if "none" not in names:
        return []
    place = names.index("none")
    if place == 0:
        return ["No distilled student beats the student trained without distillation."]
    worse = [arm.title for arm in ranked[place + 1 :]]
    verb = "ends" if len(worse) == 1 else "end"
    return [f"{_join(worse)} {verb} below the student trained without distillation."] if worse else []


def _source_winner(comparison: Comparison, best: Arm) -> list[str]:
    """Where another arm is the best on a source domain."""
    lines = []
    for domain in comparison.source:
        scores = {arm.title: stat.mean for arm in comparison.arms if (stat := arm.score(domain)) is not None}
        if not scores or best.title not in scores:
            continue
        top = max(scores, key=lambda title: scores[title])
        if percent(scores[top]) != percent(scores[best.title]):
            gap = scores[top] - scores[best.title]
            lines.append(f"On the source domain ({domain}) {top} is {percent(gap)} ahead of {best.title}.")
    return lines


def _size(comparison: Comparison, arm: Arm) -> str | None:
    """``1.20 M parameters (22 % of the teacher's)``."""
    if arm.size is None:
        return None
    text = f"{millions(arm.size)} M parameters"
    teacher = comparison.teacher.size if comparison.teacher else None
    return f"{text} against the teacher's {millions(teacher)} M" if teacher else text


def _mean(arm: Arm) -> float:
    stat = arm.mean_unseen
    assert stat is not None
    return stat.mean


def _at(arm: Arm, seed: int) -> float:
    stat = arm.mean_unseen
    assert stat is not None
    return stat.values[arm.seeds.index(seed)]


def _signed(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _join(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
