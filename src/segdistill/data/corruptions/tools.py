"""Shared parts of the corruptions: value ranges, blurs, zooming, fractal noise. Images are (H, W, 3), maps (H, W)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from scipy import ndimage

Real = float | int
ROOM = 1e-5
"""Added before truncation, so that rounding errors of float32 do not lower a value by one level."""


def unit(image: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Values in [0, 1]."""
    return image.astype(np.float32) * np.float32(1 / 255)


def levels(image: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Values in [0, 1] as 8 bits: clipped and truncated. ``image`` is overwritten."""
    image *= np.float32(255)
    image += np.float32(255 * ROOM)
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


def blurred(
    image: Float32[np.ndarray, "H W *c"], sigma: Real | tuple[Real, Real], mode: str = "nearest", truncate: Real = 4
) -> Float32[np.ndarray, "H W *c"]:
    """Gaussian blur of each channel; ``sigma`` in pixels, for both axes or for each."""
    both = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    for axis, width in enumerate(both):
        image = ndimage.gaussian_filter1d(image, width, axis=axis, mode=mode, truncate=truncate)
    return image


def zoomed(image: Float32[np.ndarray, "H W C"], factor: Real) -> Float32[np.ndarray, "H W C"]:
    """The middle of ``image``, enlarged by ``factor`` >= 1 (bilinear) and cut to the size of ``image``.

    The corner pixels of the middle part stay corner pixels of the enlargement, which is cut at its right and bottom.
    """
    h, w, _ = image.shape
    high, wide = math.ceil(h / factor), math.ceil(w / factor)
    top, left = (h - high) // 2, (w - wide) // 2
    part = torch.from_numpy(image[top : top + high, left : left + wide]).permute(2, 0, 1)[None]
    size = (max(h, round(high * factor)), max(w, round(wide * factor)))
    large = F.interpolate(part, size=size, mode="bilinear", align_corners=True)
    return large[0, :, :h, :w].permute(1, 2, 0).numpy()


def smeared(
    image: Float32[np.ndarray, "H W *c"], radius: int, sigma: Real, angle: Real
) -> Float32[np.ndarray, "H W *c"]:
    """Motion blur along ``angle`` (degrees; 0: to the left): 2 radius + 1 steps of a pixel, weights of half a Gaussian.

    Pixels beyond the border have the border's value.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    turn = math.radians(angle)
    offsets: dict[tuple[int, int], float] = {}
    for step, weight in zip(steps.tolist(), weights.tolist(), strict=True):
        place = (math.ceil(step * math.sin(turn) - 0.5), math.ceil(step * math.cos(turn) - 0.5))
        offsets[place] = offsets.get(place, 0.0) + weight
    reach, (h, w) = 2 * radius + 1, image.shape[:2]
    padded = np.pad(image, ((reach, reach), (reach, reach), *[(0, 0)] * (image.ndim - 2)), mode="edge")
    out, term = np.zeros_like(image), np.empty_like(image)
    for (y, x), weight in offsets.items():
        out += np.multiply(padded[reach + y : reach + y + h, reach + x : reach + x + w], np.float32(weight), out=term)
    return out


def fractal(h: int, w: int, decay: Real, rng: np.random.Generator) -> Float32[np.ndarray, "h w"]:
    """Plasma noise by the diamond-square algorithm on a torus, in [0, 1]; the top left part of a square of 2^n.

    Fournier, Fussell and Carpenter 1982. Each halving of the grid divides the noise by ``decay`` squared.
    """
    side = 1 << max(max(h, w) - 1, 1).bit_length()
    field = np.zeros((side, side), np.float32)
    step, height = side, 1.0

    def jitter(shape: tuple[int, ...]) -> Float32[np.ndarray, "a b"]:
        return (2 * rng.random(shape, np.float32) - 1) * np.float32(height)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        rows = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = (rows + np.roll(rows, -1, 1)) / 4 + jitter(corners.shape)
        middles = field[half::step, half::step]
        above = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        field[::step, half::step] = above / 4 + jitter(corners.shape)
        beside = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        field[half::step, ::step] = beside / 4 + jitter(corners.shape)
        step, height = half, height / decay**2
    field -= field.min()
    return field[:h, :w] / max(field.max(), np.float32(1e-12))
