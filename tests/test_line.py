"""The line of an estimate against NumPy's fit, its left-out errors one by one, and its coverage on drawn points."""

from __future__ import annotations

import numpy as np
import pytest

from segdistill.estimation.line import COVERAGE, fit, least_squares


def drawn(seed: int, count: int, noise: float = 0.05):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.3, 0.9, count)
    return x, 0.8 * x - 0.1 + rng.normal(0, noise, count)


def fitted(x, y, groups):
    return fit(list(x), list(y), groups)


def test_least_squares_equals_polyfit():
    x, y = drawn(0, 30)
    assert least_squares(x, y) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert least_squares(np.ones(4), y[:4]) == pytest.approx((0, y[:4].mean()))


def test_errors_are_those_on_groups_that_the_line_has_not_seen():
    x, y = drawn(1, 12)
    domains, shifts = [str(i // 4) for i in range(12)], [str(i % 4) for i in range(12)]
    errors = []
    for names in (domains, shifts):
        for name in sorted(set(names)):
            out = np.array(names) == name
            errors += list(np.polyval(np.polyfit(x[~out], y[~out], 1), x[out]) - y[out])
    line = fitted(x, y, [domains, shifts])
    assert line.error == pytest.approx(np.abs(errors).mean())
    assert line.margin == pytest.approx(np.sort(np.abs(errors))[int(np.ceil(25 * COVERAGE)) - 1])


def test_a_way_with_one_group_leaves_nothing_out():
    x, y = drawn(2, 8)
    shifts = [str(i) for i in range(8)]
    assert fitted(x, y, [["one"] * 8, shifts]) == fitted(x, y, [shifts])


def test_the_interval_covers_what_it_says_on_points_of_the_same_kind():
    covered = []
    for seed in range(200):
        x, y = drawn(seed, 40)
        line = fitted(x[:30], y[:30], [[str(i) for i in range(30)]])
        covered += [low <= value <= high for at, value in zip(x[30:], y[30:], strict=True)
                    for low, high in [line.interval(at)]]  # fmt: skip
    assert np.mean(covered) == pytest.approx(COVERAGE, abs=0.03)


def test_values_stay_fractions_and_the_fitted_range_has_an_end():
    line = fit([0.2, 0.4, 0.6, 0.8], [0.0, 0.3, 0.7, 1.0], [list("abcd")])
    assert (line.at(2.0), line.at(-2.0)) == (1, 0)
    assert line.interval(2.0)[1] == 1
    assert [line.outside(x) for x in (0.0, 0.12, 0.5, 0.88, 0.9)] == [True, False, False, False, True]
