"""Changes of values, geometry and coding: brightness, contrast, saturation, elastic warp, pixels, JPEG."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image

from segdistill.data.corruptions.tools import blurred, levels, unit


def brightness(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """The value of HSV is raised; hue and saturation stay. Nothing is random."""
    x = unit(image)
    value = x.max(axis=2, keepdims=True)
    raised = np.minimum(value + np.float32((0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]), 1)
    return levels(np.where(value > 0, x * (raised / np.maximum(value, 1e-6)), raised).astype(np.float32))


def saturate(image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """The saturation of HSV is scaled and shifted, and grey becomes red (hue 0). Nothing is random."""
    scale, shift = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[severity - 1]
    x = unit(image)
    value = x.max(axis=2, keepdims=True)
    spread = value - x.min(axis=2, keepdims=True)
    before = spread / np.maximum(value, 1e-6)
    after = np.clip(before * scale + shift, 0, 1)
    chroma = np.where(
        spread > 0, (value - x) / np.maximum(spread, 1e-6), np.array([0, 1, 1], np.float32)
    )  # 0 where highest
    return levels((value * (1 - after * chroma)).astype(np.float32))


def contrast(image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Each channel is drawn towards its mean. Nothing is random."""
    x = unit(image)
    means = x.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    return levels((x - means) * np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]) + means)


def elastic_transform(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """Every pixel moves by smoothed uniform noise: at most 0.5 % of the height before smoothing, times a strength."""
    h, w, _ = image.shape
    strength, most = 250 * (0.05, 0.065, 0.085, 0.1, 0.12)[severity - 1], 0.005 * h
    moves = [
        strength * most * blurred(2 * rng.random((h, w), np.float32) - 1, (0.01 * h, 0.01 * w), "reflect", 3)
        for _ in range(2)
    ]
    x = (2 * (np.arange(w, dtype=np.float32) + moves[0]) + 1) / w - 1
    y = (2 * (np.arange(h, dtype=np.float32)[:, None] + moves[1]) + 1) / h - 1
    grid = torch.from_numpy(np.stack([x, y], axis=-1).astype(np.float32))[None]
    source = torch.from_numpy(unit(image)).permute(2, 0, 1)[None]
    moved = F.grid_sample(source, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return levels(np.ascontiguousarray(moved[0].permute(1, 2, 0).numpy()))


def pixelate(image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Shrunk by means of boxes and enlarged by repetition. Nothing is random."""
    share, (h, w, _) = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1], image.shape
    small = Image.fromarray(image).resize((max(1, int(w * share)), max(1, int(h * share))), Image.Resampling.BOX)
    return np.array(small.resize((w, h), Image.Resampling.NEAREST))


def jpeg_compression(
    image: UInt8[np.ndarray, "H W 3"], severity: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    """JPEG of low quality, as Pillow writes it. Nothing is random."""
    coded = BytesIO()
    Image.fromarray(image).save(coded, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.array(Image.open(coded).convert("RGB"))
