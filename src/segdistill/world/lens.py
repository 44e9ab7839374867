"""Radiance to image: falling flakes and streaks, then lens and sensor."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from segdistill.world.dice import Dice
from segdistill.world.style import Style

F = np.float32
_LEVELS = 1024


def expose(radiance: np.ndarray, style: Style, key: tuple[int, ...]) -> np.ndarray:
    """(H, W, 3) uint8 image of (H, W, 3) float32 ``radiance``, which is overwritten. ``key`` seeds flakes and noise."""
    h, w, _ = radiance.shape
    if style["flakes"] > 0 or style["streaks"] > 0:
        _precipitation(radiance, style, Dice(*key, 1))
    if style["vignette"] > 0:
        u = np.linspace(-1, 1, w, dtype=np.float32)
        v = np.linspace(-1, 1, h, dtype=np.float32)
        radiance *= (1 - F(style["vignette"] * 0.5) * (u * u + (v * v)[:, None]))[..., None]
    if style["saturation"] != 1.0:
        grey = radiance @ np.array([0.3, 0.59, 0.11], dtype=np.float32)
        radiance -= grey[..., None]
        radiance *= F(style["saturation"])
        radiance += grey[..., None]
    if style["noise"] > 0:
        rng = np.random.default_rng([*key, 2])
        amount = rng.standard_normal((h, w, 3), dtype=np.float32)
        amount *= F(style["noise"])
        radiance += amount
    index = np.clip(radiance * F(_LEVELS / 2), 0, _LEVELS - 1, out=radiance).astype(np.intp)
    curves = _curves(style)
    image = np.empty((h, w, 3), dtype=np.uint8)
    for c in range(3):
        image[..., c] = curves[c].take(index[..., c])
    radius = style["blur"] * w / 1000
    if radius > 0.15:
        image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    return image


def _curves(style: Style) -> np.ndarray:
    """(3, 1024) uint8 response per channel for radiance in [0, 2): exposure, cast, gamma, contrast, soft shoulder."""
    light = np.arange(_LEVELS) * (2.0 / _LEVELS)
    out = np.empty((3, _LEVELS), dtype=np.uint8)
    for c in range(3):
        x = light * style["exposure"] * style.cast[c]
        x = np.where(x > 0.8, 0.8 + 0.2 * np.tanh((x - 0.8) / 0.2 * 0.8), x)
        x = np.clip(x, 0.0, 1.0) ** style["gamma"]
        x = 0.5 + (x - 0.5) * style["contrast"]
        out[c] = np.clip(np.rint(255 * x), 0, 255).astype(np.uint8)
    return out


def _precipitation(radiance: np.ndarray, style: Style, dice: Dice) -> None:
    """Blends flakes and streaks over the scene, in place. Positions and sizes are fractions of the image."""
    h, w, _ = radiance.shape
    image = Image.new("L", (w, h), 0)
    draw = ImageDraw.Draw(image)
    for _ in range(round(110 * style["flakes"])):
        x, y, size, tone = dice.unit() * w, dice.unit() * h, dice.unit(), dice.integer(120, 235)
        r = (0.0012 + 0.0055 * size**4) * w
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tone)
    slant = dice.uniform(-0.25, 0.25)
    for _ in range(round(120 * style["streaks"])):
        x, y, length, tone = dice.unit() * w, dice.unit() * h, dice.uniform(0.04, 0.16) * h, dice.integer(40, 120)
        width = max(1, round(0.003 * w * dice.unit()))
        draw.line((x, y, x + slant * length, y + length), fill=tone, width=width)
    veil = np.asarray(image, dtype=np.float32) * F(1 / 255)
    level = F(min(0.95, 0.12 + 0.75 * style["ambient"] + 0.3 * style["sun"] + 0.15 * math.sqrt(style["headlight"])))
    radiance += (level - radiance) * veil[..., None]
