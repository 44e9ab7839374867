"""Turns the maps of an encoder into the levels of a feature pyramid.

The maps of a plain ViT are all on the patch grid and are resized; those of a hierarchical network already are levels.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from segdistill.config import UserError
from segdistill.heads.base import Maps
from segdistill.ops import resize

T = TypeVar("T")

STRIDES = (4, 8, 16, 32)
"""Pixels per cell of a feature pyramid's levels."""


def per_level(taps: tuple[T, ...], levels: int) -> tuple[T, ...]:
    """The input of each level: one tap per level, or the only tap for all. Any other number is an error."""
    if len(taps) not in (1, levels):
        raise UserError(f"the head has {levels} levels but is given {len(taps)} taps: choose {levels} taps or 1")
    return taps * (levels // len(taps))


def level_sizes(maps: Maps, strides: tuple[int, ...], levels: tuple[int, ...]) -> list[tuple[int, int]]:
    """(h, w) of ``levels`` (pixels per cell) for the image that the maps of ``strides`` cover."""
    covered = [
        (features.shape[-2] * stride, features.shape[-1] * stride)
        for features, stride in zip(maps, strides, strict=True)
    ]
    assert all(size == covered[0] for size in covered), f"maps of strides {strides} cover images of {covered}"
    height, width = covered[0]
    return [(_cells(height, level), _cells(width, level)) for level in levels]


def _cells(side: int, level: int) -> int:
    """``side / level``, rounded to the nearest integer (halves to the even one), at least 1.

    In integer arithmetic, since exporters trace it with symbols, which have no ``round``.
    """
    whole, rest = side // level, side % level
    rounded = whole + (2 * rest + whole % 2 + level - 1) // (2 * level)
    return max(1, rounded) if isinstance(side, int) else rounded


def feature_pyramid(maps: Maps, strides: tuple[int, ...], levels: tuple[int, ...] = STRIDES) -> list[Tensor]:
    """``levels``, fine to coarse, in pixels per cell: level i is map i (or the only map), resized where needed.

    Spec A.10: for patches of 16 pixels the factors are 4, 2, 1 and 0.5. ``strides`` are the maps' pixels per cell:
    the patch size of all of them for a plain ViT, 4 to 32 for a hierarchical network.
    """
    sizes = level_sizes(maps, strides, levels)
    return [resize(features, size) for features, size in zip(per_level(maps, len(sizes)), sizes, strict=True)]


def conv_block(inputs: int, width: int, kernel: int) -> nn.Sequential:
    """A convolution that keeps the size, batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())
