"""A line from what needs no labels to the mIoU, and how far off it is on domains that it was not fitted on.

In the manner of Agreement-on-the-Line (Baek et al., arXiv 2206.13089; Saxena et al., arXiv 2404.01542): models' and
domains' accuracies lie on a line over their agreement, which needs no labels. Here the points are one model's domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

COVERAGE = 0.9
SLACK = 0.15  # of the fitted range: how far outside of it the line is still read


@dataclass(frozen=True)
class Line:
    """``mIoU = slope x + intercept``, fitted for ``x`` from ``low`` to ``high``.

    ``error``: mean absolute error on points whose group was left out. ``margin``: half of an interval that is meant to
    cover :data:`COVERAGE`, from those errors.
    """

    slope: float
    intercept: float
    low: float
    high: float
    error: float
    margin: float

    def at(self, x: float) -> float:
        """The predicted mIoU, in [0, 1]."""
        return float(np.clip(self.slope * x + self.intercept, 0, 1))

    def interval(self, x: float) -> tuple[float, float]:
        """Around :meth:`at`, in [0, 1]."""
        return max(0.0, self.at(x) - self.margin), min(1.0, self.at(x) + self.margin)

    def outside(self, x: float) -> bool:
        """Whether ``x`` is too far from what was fitted."""
        slack = SLACK * (self.high - self.low)
        return not self.low - slack <= x <= self.high + slack


def fit(x: Sequence[float], y: Sequence[float], groups: Sequence[Sequence[str]]) -> Line:
    """The least-squares line through the points (x, y).

    ``groups`` are several ways to name each point's group (its domain, its shift). Of each way, every group that is not
    all points is left out once, and the errors on it are kept.
    """
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    slope, intercept = least_squares(xs, ys)
    errors = np.concatenate([_left_out(xs, ys, names) for names in groups if len(set(names)) > 1] or [np.empty(0)])
    count = len(errors)
    assert count, "two groups at least"
    rank = min(count, int(np.ceil((count + 1) * COVERAGE)))  # the conformal quantile
    margin = float(np.sort(np.abs(errors))[rank - 1])
    return Line(slope, intercept, float(xs.min()), float(xs.max()), float(np.abs(errors).mean()), margin)


def least_squares(x: Values, y: Values) -> tuple[float, float]:
    """Slope and intercept; a constant where all ``x`` are equal."""
    spread = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 0.0
    return slope, float(y.mean() - slope * x.mean())


def _left_out(x: Values, y: Values, names: Sequence[str]) -> Values:
    """Errors of each group's points by the line of the others."""
    errors = []
    for name in sorted(set(names)):
        out = np.array([each == name for each in names])
        slope, intercept = least_squares(x[~out], y[~out])
        errors.append(slope * x[out] + intercept - y[out])
    return np.concatenate(errors)
