"""From the maps of a plain ViT, all on the patch grid, to the levels that pyramid heads expect."""

from __future__ import annotations

from typing import TypeVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segdistill.config import UserError
from segdistill.decoders.base import Maps

T = TypeVar("T")


def per_level(taps: tuple[T, ...], levels: int) -> tuple[T, ...]:
    """What each level reads: the taps in their order, or the only tap everywhere. Any other number is an error."""
    if len(taps) not in (1, levels):
        raise UserError(f"the decoder has {levels} levels but is given {len(taps)} taps: choose {levels} taps or 1")
    return taps * (levels // len(taps))


def level_sizes(maps: Maps, stride: int, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """(h, w) of the levels with the given ``strides`` (pixels per cell) over the image that the first map covers."""
    height, width = (side * stride for side in maps[0].shape[-2:])
    return [(max(1, round(height / s)), max(1, round(width / s))) for s in strides]


def resize(features: Float[Tensor, "b c _h _w"], size: tuple[int, int]) -> Float[Tensor, "b c _p _q"]:
    """Bilinear, half-pixel centres, no antialias; no change where the size agrees already."""
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def feature_pyramid(maps: Maps, stride: int, strides: tuple[int, ...] = (4, 8, 16, 32)) -> list[Tensor]:
    """Levels, fine to coarse, with ``strides`` pixels per cell: level i is map i (or the only map) resized.

    Spec A.10: for patches of 16 pixels the factors are 4, 2, 1 and 0.5. ``stride`` is the pixels per cell of the
    first map, which for a plain ViT is the patch size of all of them; maps on other grids cover the same image.
    """
    sizes = level_sizes(maps, stride, strides)
    return [resize(features, size) for features, size in zip(per_level(maps, len(sizes)), sizes, strict=True)]
