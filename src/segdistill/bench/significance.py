"""Is the first row ahead of the second by more than the choice of test images explains?

Paired bootstrap (Efron and Tibshirani 1993; for scores of one test set Koehn 2004): the images of every unseen domain
are drawn with replacement, both rows are scored on the same draw, seed by seed, and the difference of the means over
the unseen domains is averaged over the seeds. The spread over training seeds stands in the table itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdistill.bench.result import TableResult
from segdistill.metrics import interval, resampled_mean
from segdistill.scoring import read_images


@dataclass(frozen=True)
class Lead:
    """How far ``first`` is ahead of ``second``, in points of the mean over unseen domains."""

    first: int
    second: int
    points: float
    interval: tuple[float, float]  # 95 %
    beaten: float  # share of the draws in which the first is not ahead
    seeds: tuple[int, ...]

    def sentence(self, result: TableResult) -> str:
        """One line for below the table."""
        rows = result.table.rows
        low, high = self.interval
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "one seed"
        return (
            f"{rows[self.first].title} is ahead of {rows[self.second].title} by {self.points:.1f} points "
            f"(95 % interval {low:.1f} to {high:.1f}; not ahead in {100 * self.beaten:.1f} % of the draws; "
            f"paired bootstrap over the test images, {seeds})."
        )


def lead(result: TableResult, first: int, second: int, value: str = "") -> Lead | None:
    """The difference of two rows over the seeds that both have; None where there is no such seed or too few images."""
    seeds = [s for s in result.table.seeds if {(first, value, s), (second, value, s)} <= result.runs.keys()]
    draws, points = [], []
    for seed in seeds:
        runs = [result.runs[row, value, seed] for row in (first, second)]
        images = [read_images(run.folder / "scores" / "student.npz") for run in runs]
        own, other = (resampled_mean(counts, result.unseen) for counts in images)
        draws.append(100 * (own - other))
        means = [run.student.mean_unseen for run in runs]
        if means[0] is None or means[1] is None:
            return None
        points.append(100 * (means[0] - means[1]))
    if not draws:
        return None
    samples = np.mean(draws, axis=0)
    bounds = interval(samples)
    if bounds is None:
        return None
    low, high = bounds
    return Lead(first, second, float(np.mean(points)), (low, high), float(np.mean(samples <= 0)), tuple(seeds))


def leads(result: TableResult) -> list[Lead]:
    """The best row of every group of rows against its runner-up; empty for a sweep, whose columns are many tables."""
    if result.table.sweep:
        return []
    found = []
    for group in dict.fromkeys(row.group for row in result.table.rows):
        scores = {
            number: entry.mean_unseen.mean
            for number, row in enumerate(result.table.rows)
            if row.group == group and (entry := result.entry(number, "")) and entry.mean_unseen
        }
        best = sorted(scores, key=lambda number: -scores[number])[:2]
        one = lead(result, best[0], best[1]) if len(best) == 2 else None
        if one is not None:
            found.append(one)
    return found
