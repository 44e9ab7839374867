"""Is the first row ahead of the second by more than the choice of test images explains?

Paired bootstrap (Efron and Tibshirani 1993; for scores of one test set Koehn 2004): the images of every unseen domain
are drawn with replacement, both rows are scored on the same draw, seed by seed, and the difference of the means over
the unseen domains is averaged over the seeds. The spread over training seeds stands in the table itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdistill.grid.result import TableResult
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
    value: str = ""  # of the sweep

    @property
    def settled(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.interval[0] > 0 or self.interval[1] < 0

    @property
    def bounds(self) -> tuple[str, str]:
        """The interval's ends with one decimal; what rounds to zero has no sign."""
        low, high = (f"{round(end, 1) + 0.0:.1f}" for end in self.interval)
        return low, high

    def where(self, result: TableResult) -> str:
        """The group and the sweep's value, where the table has them: ``F2L, 1/16``."""
        return ", ".join(part for part in (result.table.rows[self.first].group, self.value) if part)

    def sentence(self, result: TableResult) -> str:
        """One line for below the table."""
        rows = result.table.rows
        low, high = self.bounds
        seeds = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "one seed"
        where = f"{where}: " if (where := self.where(result)) else ""
        return (
            f"{where}{rows[self.first].title} is ahead of {rows[self.second].title} by {self.points:.1f} points "
            f"(95 % interval {low} to {high}; not ahead in {100 * self.beaten:.1f} % of the draws; "
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
    return Lead(first, second, float(np.mean(points)), (low, high), float(np.mean(samples <= 0)), tuple(seeds), value)


def leads(result: TableResult) -> list[Lead]:
    """The best row of every group of rows against its runner-up, at every value of a sweep."""
    return [found[0] for group in result.groups for value in result.values if (found := _over(result, group, value, 1))]


def leads_over_all(result: TableResult, group: str, value: str) -> list[Lead]:
    """The best row of a group against each other one of it, the runner-up first."""
    return _over(result, group, value, len(result.table.rows))


def _over(result: TableResult, group: str, value: str, count: int) -> list[Lead]:
    """The best row against the next ``count`` ones."""
    ranked = result.ranked(group, value)
    found = (lead(result, ranked[0], other, value) for other in ranked[1 : 1 + count])
    return [one for one in found if one is not None]
