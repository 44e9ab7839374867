"""Noise: Gaussian, shot (Poisson), impulse (salt and pepper) and speckle (multiplicative)."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from segdistill.data.corruptions.tools import levels, unit


def gaussian_noise(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Independent normal noise."""
    sd = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return levels(unit(image) + rng.standard_normal(image.shape, np.float32) * np.float32(sd))


def shot_noise(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Poisson noise of so many photons at full brightness."""
    photons = (60, 25, 12, 5, 3)[severity - 1]
    counts = rng.poisson((np.arange(256) * (photons / 255))[image])
    return levels(counts.astype(np.float32) / np.float32(photons))


def impulse_noise(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """A share of the values is black or white, with equal probability; each channel on its own."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    dice, out = rng.random(image.shape, np.float32), image.copy()
    out[dice < share / 2] = 0
    out[dice >= 1 - share / 2] = 255
    return out


def speckle_noise(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Normal noise in proportion to the value."""
    sd = (0.15, 0.2, 0.35, 0.45, 0.6)[severity - 1]
    return levels(unit(image) * (1 + rng.standard_normal(image.shape, np.float32) * np.float32(sd)))
