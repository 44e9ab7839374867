"""Is one row ahead of another by more than the choice of test images explains?

Paired bootstrap (Efron and Tibshirani 1993; Koehn 2004 for scores on one test set): the images of every unseen domain
are drawn with replacement, both rows are scored on the same draw, seed by seed, and the difference of their means over
the unseen domains is averaged over the seeds. The spread over training seeds is shown in the table itself. With at
least ``DOMAINS`` unseen domains, a second interval draws the domains as well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segdistill.metrics.base import interval, redrawn_mean, resampled_domains
from segdistill.results import Comparison, Lead
from segdistill.results.run import Run
from segdistill.runs.score import read_samples

DOMAINS = 4
"""Fewer unseen domains than these are not drawn: there are too few different draws."""

Samples = dict[Path, NDArray[np.float64]]
"""Resampled scores (domains, draws) by run folder, so that each run is resampled only once."""


def leads(found: Comparison) -> tuple[Lead, ...]:
    """The best row of every group against each other row of it, runner-up first, for every value of a sweep."""
    samples: Samples = {}
    pairs = (
        (ranked[0], other, value)
        for group in found.groups
        for value in found.values
        if (ranked := found.ranked(group, value))
        for other in ranked[1:]
    )
    return tuple(one for pair in pairs if (one := lead(found, *pair, samples=samples)) is not None)


def lead(found: Comparison, first: int, second: int, value: str = "", *, samples: Samples) -> Lead | None:
    """The difference of two rows over their common seeds; None without such seeds or with too few images."""
    seeds = [run.seed for run in found.runs_of(first, value) if (second, value, run.seed) in found.runs]
    draws, points = [], []
    for seed in seeds:
        one, other = (found.runs[row, value, seed] for row in (first, second))
        if one.student.mean_unseen is None or other.student.mean_unseen is None:
            return None
        draws.append(_samples(one, one.unseen, samples) - _samples(other, one.unseen, samples))
        points.append(one.student.mean_unseen - other.student.mean_unseen)
    if not draws:
        return None
    by_domain, number = np.mean(draws, axis=0), found.metric.number
    drawn = by_domain.mean(axis=0)
    if (bounds := interval(drawn)) is None:
        return None
    low, high = map(number, bounds)
    share = float(np.mean(drawn <= 0))
    wide = interval(redrawn_mean(by_domain)) if len(by_domain) >= DOMAINS else None
    domains = None if wide is None else (number(wide[0]), number(wide[1]))
    return Lead(first, second, number(float(np.mean(points))), (low, high), share, tuple(seeds), value, domains)


def _samples(run: Run, unseen: tuple[str, ...], samples: Samples) -> NDArray[np.float64]:
    if run.folder not in samples:
        images = read_samples(run.folder / "scores" / "student.npz", run.task)
        samples[run.folder] = resampled_domains(images, unseen)
    return samples[run.folder]
