"""Weather: snow, frost, fog and spatter."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8
from scipy import ndimage

from segdistill.data.corruptions.tools import blurred, fractal, levels, smeared, unit, zoomed

GREY = np.array([0.299, 0.587, 0.114], np.float32)
WATER = np.array([175, 238, 238], np.float32) / np.float32(255)
MUD = np.array([63, 42, 20], np.float32) / np.float32(255)


def snow(image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Falling flakes, smeared by the wind, over an image with lifted darks."""
    mean, sd, zoom, least, radius, sigma, share = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[severity - 1]
    x = unit(image)
    flakes = rng.standard_normal((*x.shape[:2], 1), np.float32) * np.float32(sd) + np.float32(mean)
    flakes = zoomed(flakes, zoom)[..., 0]
    flakes = np.clip(np.where(flakes < least, np.float32(0), flakes), 0, 1)
    flakes = np.rint(smeared(flakes, radius, sigma, rng.uniform(-135, -45)) * 255).astype(np.float32) / 255
    pale = np.maximum(x, (x @ GREY)[..., None] * np.float32(1.5) + np.float32(0.5))
    return levels(np.float32(share) * x + np.float32(1 - share) * pale + (flakes + np.rot90(flakes, 2))[..., None])


def fog(image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Plasma noise is added, and the sum is scaled back to the image's highest value."""
    strength, decay = ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[severity - 1]
    x = unit(image)
    highest = float(x.max())
    veil = np.float32(strength) * fractal(image.shape[0], image.shape[1], decay, rng)[..., None]
    return levels((x + veil) * np.float32(highest / (highest + strength)))


def frost(image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Crystals on the lens: a weighted sum with :func:`crystals`.

    The published images blend photographs of frost in, which are not ours to distribute; brightness and contrast of the
    drawn ones are within the range of those photographs, their shapes are not the same.
    """
    own, other = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[severity - 1]
    return levels(np.float32(own) * unit(image) + np.float32(other) * crystals(image.shape[0], image.shape[1], rng))


def crystals(h: int, w: int, rng: np.random.Generator) -> Float32[np.ndarray, "h w 3"]:
    """A drawn pane of frost: ridges of smeared plasma noise in a few directions, on a bluish ground, in [0, 1].

    Mean between 0.35 and 0.8, standard deviation of about 0.13.
    """
    veins = np.zeros((h, w), np.float32)
    for turn in rng.uniform(0, 180, 3):
        field = fractal(h, w, 1.35, rng)
        ridges = 1 - np.abs(2 * (field - field.mean()) / max(field.std(), np.float32(1e-6)))
        veins = np.maximum(veins, smeared(np.clip(ridges, 0, 1), 6, 6, turn))
    veins += np.float32(0.6) * fractal(h, w, 1.6, rng)
    veins = (veins - veins.mean()) / max(veins.std(), np.float32(1e-6))
    ground = rng.uniform(0.35, 0.8)
    tint = np.array([-0.05, 0.01, 0.04], np.float32)
    return np.clip(np.float32(ground) + tint + np.float32(0.13) * veins[..., None], 0, 1)


def spatter(image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Drops of water (severities 1 to 3) or mud on the lens.

    Deviation: the rims of the drops are their outlines, where the published images take Canny's edges of them.
    """
    mean, sd, sigma, least, strength = (
        (0.65, 0.3, 4, 0.69, 0.6),
        (0.65, 0.3, 3, 0.68, 0.6),
        (0.65, 0.3, 2, 0.68, 0.5),
        (0.65, 0.3, 1, 0.65, 1.5),
        (0.67, 0.4, 1, 0.65, 1.5),
    )[severity - 1]
    x = unit(image)
    liquid = blurred(rng.standard_normal(x.shape[:2], np.float32) * np.float32(sd) + np.float32(mean), sigma)
    drops = liquid >= least
    if severity >= 4:
        cover = blurred(drops.astype(np.float32), strength)
        cover = np.where(cover < 0.8, np.float32(0), cover)[..., None]
        return levels(x * (1 - cover) + MUD * cover)
    shine = np.where(drops, liquid, np.float32(0)) * _relief(drops)
    return levels(x + np.float32(strength / max(float(shine.max()), 1e-6)) * shine[..., None] * WATER)


def _relief(drops: np.ndarray) -> Float32[np.ndarray, "H W"]:
    """Light on the drops in 0 to 255: an emboss filter of the equalised distance to their outlines, below 20 pixels."""
    outline = drops ^ ndimage.binary_erosion(drops, border_value=1)
    distance = np.full(drops.shape, 20.0)
    if outline.any():
        distance = np.minimum(np.asarray(ndimage.distance_transform_edt(~outline)), 20)
    heights = ndimage.uniform_filter(distance.astype(np.float32), 3, mode="mirror").astype(np.uint8)
    counts = np.bincount(heights.ravel(), minlength=256)
    below = counts.cumsum() - counts[heights.min()]
    equal = np.rint(below * (255 / max(heights.size - int(counts[heights.min()]), 1))).clip(0, 255)
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
    lit = ndimage.correlate(equal.astype(np.float32)[heights], kernel, mode="mirror").clip(0, 255)
    return np.rint(ndimage.uniform_filter(lit, 3, mode="mirror")).astype(np.float32)
