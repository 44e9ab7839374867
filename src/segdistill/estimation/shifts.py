"""Labelled images that look otherwise: what the line of an estimate is fitted on beside the images as they are.

Each shift has two strengths and leaves the label as it is. Drawn numbers depend on the image's number alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from segdistill.ops import derive_seed

Pixels = NDArray[np.uint8]
Shift = Callable[[Pixels, float, np.random.Generator], NDArray[Any] | Pixels]


def darker(image: Pixels, strength: float, rng: np.random.Generator) -> NDArray[Any]:
    """Less light, and the noise that comes with it."""
    light = image.astype(np.float32) * (1 - 0.75 * strength)
    return light + rng.normal(0, 8 * strength, image.shape)


def veil(image: Pixels, strength: float, rng: np.random.Generator) -> NDArray[Any]:
    """A pale veil over everything, thicker at the top."""
    thickness = np.linspace(0.95, 0.55, len(image), dtype=np.float32)[:, None, None] * strength
    return image * (1 - thickness) + 205.0 * thickness


def blurred(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Out of focus: a Gaussian of up to 2 % of the shorter side."""
    radius = 0.02 * strength * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noisy(image: Pixels, strength: float, rng: np.random.Generator) -> NDArray[Any]:
    """Independent Gaussian noise in every value."""
    return image + rng.normal(0, 45 * strength, image.shape)


def faded(image: Pixels, strength: float, rng: np.random.Generator) -> NDArray[Any]:
    """Less colour and less contrast."""
    grey = image.mean(axis=2, keepdims=True)
    flat = image + (grey - image) * 0.9 * strength
    return flat.mean() + (flat - flat.mean()) * (1 - 0.6 * strength)


def tinted(image: Pixels, strength: float, rng: np.random.Generator) -> NDArray[Any]:
    """Another white balance, each image's own."""
    gains = np.exp(rng.normal(0, 0.45 * strength, 3))
    return image * gains


def compressed(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """JPEG of quality 30 down to 5."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=round(30 - 25 * strength))
    return np.asarray(Image.open(out))


SHIFTS: dict[str, Shift] = {
    "darker": darker,
    "veil": veil,
    "blurred": blurred,
    "noisy": noisy,
    "faded": faded,
    "tinted": tinted,
    "compressed": compressed,
}
STRENGTHS = (0.5, 1.0)


def apply(name: str, image: Pixels, strength: float, number: int) -> Pixels:
    """The ``number``-th image (H, W, 3) uint8 as the shift ``name`` shows it."""
    rng = np.random.default_rng(derive_seed("shift", name, number))
    shifted: NDArray[Any] = SHIFTS[name](image, strength, rng)
    return shifted if shifted.dtype == np.uint8 else np.rint(shifted).clip(0, 255).astype(np.uint8)
