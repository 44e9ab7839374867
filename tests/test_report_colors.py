"""The colours of the models: as many as the charts use, and apart for colour-blind readers too, in both themes."""

import itertools
import re
from importlib import resources

import numpy as np
import pytest

from segdistill.report.views import COLORS

# Machado, Oliveira, Fernandes 2009, severity 1, on linear RGB: no deficiency, protanopia, deuteranopia
SIGHTS = (
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
)
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color):
    c = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(color, sight):
    x = XYZ @ np.clip(sight @ linear(color), 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one, other):
    """CIE76, the smallest of the three kinds of sight."""
    return min(np.linalg.norm(lab(one, sight) - lab(other, sight)) for sight in SIGHTS)


def contrast(one, other):
    low, high = sorted(float(XYZ[1] @ linear(color)) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


def themes():
    css = resources.files("segdistill.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in css.split(":root {")[1:3]]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_every_two_models_differ_for_every_reader_and_from_the_page(theme):
    names = [*(f"a{i}" for i in range(COLORS)), "teacher"]
    worst = min(itertools.combinations(names, 2), key=lambda pair: distance(theme[pair[0]], theme[pair[1]]))
    assert distance(*(theme[name] for name in worst)) > 13, worst
    assert all(contrast(theme[name], theme["paper"]) > 2 for name in names)
    assert distance("#0072b2", "#7f68b5") < 2  # the pair that this test was written for


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_text_can_be_read_on_every_ground(theme):
    pairs = itertools.product(("ink", "soft", "faint"), ("paper", "card", "tint"))
    assert {pair: ratio for pair in pairs if (ratio := contrast(*(theme[name] for name in pair))) < 4.5} == {}
    assert contrast(theme["a0"], theme["paper"]) >= 4.5  # the word "unseen"
