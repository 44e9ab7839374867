"""Corruptions: pure functions of seed, image name, corruption and severity; equal to an independent implementation.

What is not random equals the oracle up to one level of 255. What is random has the same mean and the same spread of its
change, within what so few draws can tell.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from segdistill import world
from segdistill.config import UserError
from segdistill.data.corruptions import COMMON, CORRUPTIONS, FAMILIES, SEVERITIES, corrupt, draws
from segdistill.data.corruptions.tools import fractal, smeared, zoomed
from segdistill.data.corruptions.weather import crystals

SURE = (
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate",
)  # fmt: skip
RANDOM = {name: 16 if name in ("fog", "spatter") else 6 for name in CORRUPTIONS if name not in (*SURE, "frost")}
"""Number of draws; the plasma of fog differs most from draw to draw."""


@pytest.fixture(scope="module")
def oracle():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a library of years ago
        from imagecorruptions import corrupt as theirs

        yield lambda image, name, severity: theirs(image, corruption_name=name, severity=severity)


@pytest.fixture(scope="module")
def street() -> np.ndarray:
    return world.render("clear", "test", 0, size=(72, 128)).image


def ours(image: np.ndarray, name: str, severity: int, draw: int = 0) -> np.ndarray:
    return corrupt(image, name, severity, rng=draws(draw, name, severity, "street"))


def test_fifteen_are_common_and_four_extra() -> None:
    assert (len(COMMON), len(CORRUPTIONS), len(FAMILIES["extra"])) == (15, 19, 4)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", SURE)
def test_what_is_not_random_equals_the_oracle(name: str, severity: int, oracle, street: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (51, 67, 3)).astype(np.uint8)
    for image in (street, noise):
        change = np.abs(ours(image, name, severity).astype(int) - oracle(image, name, severity))
        assert change.max() <= 1, "one level, where rounding falls the other way"
        assert change.mean() < 0.25


@pytest.mark.parametrize("severity", [2, 5])
@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_changes_images_as_the_oracle_does(name, severity, oracle, street) -> None:
    np.random.seed(severity)

    def changes(function) -> np.ndarray:
        found = [function(draw).astype(float) - street for draw in range(RANDOM[name])]
        return np.array([(change.mean(), change.std()) for change in found])

    mine, theirs = (
        changes(lambda draw: ours(street, name, severity, draw)),
        changes(lambda draw: oracle(street, name, severity)),
    )
    error = np.sqrt((mine.var(0, ddof=1) + theirs.var(0, ddof=1)) / RANDOM[name])
    assert (np.abs(mine.mean(0) - theirs.mean(0)) <= 4 * error + 0.05 * theirs.mean(0)[1] + 0.05).all()


def test_drawn_frost_is_as_bright_and_as_rough_as_the_photographs() -> None:
    folder = resources.files("imagecorruptions") / "frost"
    photographs = [
        np.asarray(Image.open(str(file)).convert("RGB"), float) for file in folder.iterdir() if "frost" in file.name
    ]
    drawn = [255.0 * crystals(300, 500, np.random.default_rng(draw)) for draw in range(8)]
    for measure in (np.mean, lambda pane: pane.std((0, 1)).mean()):
        low, high = min(map(measure, photographs)), max(map(measure, photographs))
        assert all(low <= measure(pane) <= high for pane in drawn)
    assert np.mean([pane.mean((0, 1)) for pane in drawn], axis=0).argmax() == 2, "bluish, as most of them are"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_depends_on_seed_name_corruption_and_severity_alone(name: str, street: np.ndarray) -> None:
    before = street.copy()
    first = corrupt(street, name, 3, rng=draws(0, name, 3, "a"))
    assert np.array_equal(first, corrupt(street, name, 3, rng=draws(0, name, 3, "a")))
    assert np.array_equal(before, street), "the image itself is not changed"
    others = [corrupt(street, name, 3, rng=draws(*key)) for key in ((1, name, 3, "a"), (0, name, 3, "b"))]
    assert all(np.array_equal(first, other) == (name in SURE) for other in others)


def test_other_processes_draw_the_same_noise() -> None:
    code = "from segdistill.data.corruptions import draws; print(draws(3, 'fog', 2, 'game/000001').integers(10**9))"
    apart = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(apart) == draws(3, "fog", 2, "game/000001").integers(10**9)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_higher_severities_change_images_more(name: str, street: np.ndarray) -> None:
    if name == "saturate":  # its first two levels take colour away, its last three add it
        return _saturates(street)
    levels = (1, 2, 3) if name == "spatter" else (1, 3, 5)  # from 4 on it is mud, not water

    def each(severity: int, draw: int) -> np.ndarray:
        return corrupt(street, name, severity, rng=draws(draw, name, 0, "the same draw at every severity"))

    changes = [
        np.mean([np.abs(each(severity, draw) - street.astype(float)).mean() for draw in range(4)])
        for severity in levels
    ]
    assert changes == sorted(changes)
    assert changes[0] > 0.2


def _saturates(image: np.ndarray) -> None:
    spread = [(lambda x: (x.max(2) - x.min(2)).mean())(ours(image, "saturate", s).astype(float)) for s in SEVERITIES]
    assert spread[1] < spread[0] < np.ptp(image.astype(float), axis=2).mean() < spread[2] < spread[3] < spread[4]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (33, 17)])
def test_images_of_any_size(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            for each in (image, np.zeros_like(image)):
                assert ours(each, name, severity).shape == image.shape


def test_unknown_corruptions_and_severities_are_one_line(street: np.ndarray) -> None:
    with pytest.raises(UserError, match="unknown corruption 'fogg': did you mean 'fog'"):
        ours(street, "fogg", 1)
    with pytest.raises(UserError, match="severity 6 of fog: allowed are whole numbers from 1"):
        ours(street, "fog", 6)


def test_parts() -> None:
    point = np.zeros((21, 21, 1), np.float32)
    point[10, 10] = 1
    line = smeared(point, 3, 2.0, 0.0)[..., 0]
    weights = np.exp(-(np.arange(7) ** 2) / 8)
    assert line[10, 4:11] == pytest.approx((weights / weights.sum())[::-1], abs=1e-6)
    assert line.sum() == pytest.approx(1, abs=1e-6)
    assert line[10].sum() == pytest.approx(1, abs=1e-6)
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32)[:, None, None], (1, 64, 1))
    assert zoomed(ramp, 2.0)[:, 0, 0] == pytest.approx(np.linspace(16 / 63, 47 / 63, 64), abs=1e-6)
    field = fractal(40, 100, 2, np.random.default_rng(0))
    assert field.shape == (40, 100)
    assert 0 <= field.min() < field.max() <= 1
