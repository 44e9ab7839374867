"""Image corruptions of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261) for images of any size.

``corrupt(image, "fog", 3, rng=draws(0, "fog", 3, "street"))`` is a pure function of its arguments. The strengths are
the published ones for photographs (those of ImageNet-C and Pascal-C). As in the published images, values are truncated
to 8 bits, not rounded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from segdistill.config import UserError, choose
from segdistill.data.corruptions import blur, digital, noise, weather

Corruption = Callable[[UInt8[np.ndarray, "H W 3"], int, np.random.Generator], UInt8[np.ndarray, "H W 3"]]
"""Takes an image, a severity and a generator; does not change the image."""

FAMILIES: dict[str, dict[str, Corruption]] = {
    "noise": {
        "gaussian_noise": noise.gaussian_noise,
        "shot_noise": noise.shot_noise,
        "impulse_noise": noise.impulse_noise,
    },
    "blur": {
        "defocus_blur": blur.defocus_blur,
        "glass_blur": blur.glass_blur,
        "motion_blur": blur.motion_blur,
        "zoom_blur": blur.zoom_blur,
    },
    "weather": {
        "snow": weather.snow,
        "frost": weather.frost,
        "fog": weather.fog,
        "brightness": digital.brightness,
    },
    "digital": {
        "contrast": digital.contrast,
        "elastic_transform": digital.elastic_transform,
        "pixelate": digital.pixelate,
        "jpeg_compression": digital.jpeg_compression,
    },
    "extra": {
        "speckle_noise": noise.speckle_noise,
        "gaussian_blur": blur.gaussian_blur,
        "spatter": weather.spatter,
        "saturate": digital.saturate,
    },
}
"""The 15 corruptions of the benchmark by family, and the four extra ones, which are for choosing settings."""

CORRUPTIONS: dict[str, Corruption] = {name: each for family in FAMILIES.values() for name, each in family.items()}

COMMON = tuple(name for name in CORRUPTIONS if name not in FAMILIES["extra"])
"""The 15 corruptions that the mean over corruptions (mPC) is defined on."""

GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(CORRUPTIONS),
    "common": COMMON,
    **{family: tuple(members) for family, members in FAMILIES.items()},
}
"""Names that stand for several corruptions."""

SEVERITIES = (1, 2, 3, 4, 5)

VERSION = 1
"""Part of the key of stored scores: increase it whenever a corruption gives other images."""


def draws(seed: int, corruption: str, severity: int, image: str) -> np.random.Generator:
    """The generator for one image: depends on the arguments alone, so every process makes the same image."""
    digest = hashlib.sha256(f"{corruption}\0{severity}\0{image}".encode()).digest()
    return np.random.default_rng([seed, *np.frombuffer(digest, "<u4").tolist()])


def corrupt(
    image: UInt8[np.ndarray, "H W 3"], corruption: str, severity: int, *, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """RGB ``image`` with a corruption of :data:`CORRUPTIONS` at a severity from 1 to 5."""
    function = choose("corruption", corruption, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise UserError(f"severity {severity} of {corruption}: allowed are whole numbers from 1 (least) to 5")
    return function(image, severity, rng)
