"""Blur: of a lens, of frosted glass, of motion and of zooming while the shutter is open."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from scipy import fft, ndimage

from segdistill.data.corruptions.tools import blurred, levels, smeared, unit, zoomed


def gaussian_blur(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Gaussian blur; nothing is random."""
    return levels(blurred(unit(image), (1, 2, 3, 4, 6)[severity - 1]))


def defocus_blur(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Convolution with a disk with a soft edge; borders are mirrored. Nothing is random."""
    kernel = disk(*((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[severity - 1])
    (h, w, _), reach = image.shape, len(kernel) // 2
    padded = np.pad(unit(image), ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    size = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    response = fft.rfft2(kernel.astype(np.float32), size)[..., None]
    out = fft.irfft2(fft.rfft2(padded, size, axes=(0, 1)) * response, size, axes=(0, 1))
    return levels(np.ascontiguousarray(out[2 * reach : 2 * reach + h, 2 * reach : 2 * reach + w], np.float32))


def disk(radius: int, softness: float) -> Float[np.ndarray, "k k"]:
    """A disk of sum 1, then smoothed by a Gaussian of ``softness`` pixels on 3 x 3 (above radius 8: 5 x 5) pixels.

    Smoothing mirrors the kernel at its border, as for the published images; for radii 8 and 10, which touch the border,
    the sum becomes about 1.01.
    """
    reach = max(radius, 8)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    inside = (x**2 + y**2 <= radius**2).astype(float)
    inside /= inside.sum()
    half = 1 if radius <= 8 else 2
    weights = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * softness**2))
    weights /= weights.sum()
    for axis in (0, 1):
        inside = ndimage.correlate1d(inside, weights, axis, mode="mirror")
    return inside


def glass_blur(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Pixels take the value of a random neighbour, between two Gaussian blurs."""
    sigma, reach, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[severity - 1]
    first = levels(blurred(unit(image), sigma))
    for _ in range(rounds):
        first = _displaced(first, reach, rng)
    return levels(blurred(unit(first), sigma))


def _displaced(image: UInt8[np.ndarray, "H W 3"], reach: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Each inner pixel takes the value at an offset in [-reach, reach), from the last pixel to the first.

    As in the published images a neighbour's value is copied, not exchanged, so an offset to a later pixel takes the
    value which that one has received. Where the value comes from is found by following these offsets.
    """
    h, w, _ = image.shape
    if h <= 2 * reach or w <= 2 * reach:
        return image
    y, x = (axis.ravel() for axis in np.mgrid[reach + 1 : h - reach + 1, reach + 1 : w - reach + 1])
    source, inner = np.arange(h * w), np.zeros(h * w, bool)
    own = y * w + x
    inner[own] = True
    source[own] += rng.integers(-reach, reach, own.shape) * w + rng.integers(-reach, reach, own.shape)
    found, at = source.copy(), own
    at = at[(found[at] > at) & inner[found[at]]]  # their neighbours have received their values before them
    while len(at):
        before = found[at]
        found[at] = source[before]
        at = at[(found[at] > before) & inner[found[at]]]
    return image.reshape(h * w, 3)[found].reshape(image.shape)


def motion_blur(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Blur along a line within 45 degrees of the horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return levels(smeared(unit(image), radius, sigma, rng.uniform(-45, 45)))


def zoom_blur(image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """The mean of the image and its enlargements by 1 to 1.11, 1.16, 1.20, 1.24 or 1.30. Nothing is random."""
    stop, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[severity - 1]
    factors = np.arange(1, stop, step).tolist()  # 1.11 and 1.16 are among them, by rounding
    x = unit(image)
    total = x.copy()
    for factor in factors:
        total += zoomed(x, factor)
    return levels(total / np.float32(len(factors) + 1))
