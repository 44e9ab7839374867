"""Semantic FPN: Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019 (arXiv 1901.02446), section 3.1.

Deviations, for plain ViTs and for speed: the pyramid is a simple one (the taps resized to strides 4-32); every lateral
1x1 convolution runs on the tap's own grid, before the resizing, and carries a group norm, since raw block outputs
differ in scale by orders of magnitude; no 3x3 convolution between the top-down sum and the semantic branch.
"""

from __future__ import annotations

import math
from itertools import pairwise

from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from segdistill import criteria
from segdistill.config import Config
from segdistill.decoders.pyramid import Maps, level_channels, level_sizes, resize
from segdistill.types import LossTerms


class SemFPN(nn.Module):
    """Maps of the taps -> class logits at the finest level's stride, upsampled bilinearly to the asked size."""

    class Config(Config):
        """``width``: channels of all levels. ``strides``: pixels per cell of the levels, each twice the last one's.

        ``loss_stride``: the loss looks at every n-th label in both directions (ours; 1: at all of them).
        """

        width: int = Field(128, ge=1)
        strides: tuple[int, ...] = (4, 8, 16, 32)
        dropout: float = Field(0.1, ge=0, lt=1)
        loss_stride: int = Field(1, ge=1)

        @field_validator("strides")
        @classmethod
        def _doubling(cls, strides: tuple[int, ...]) -> tuple[int, ...]:
            if not strides or strides[0] < 1 or any(b != 2 * a for a, b in pairwise(strides)):
                raise ValueError("each stride must be twice the one before it, such as [4, 8, 16, 32]")
            return strides

    def __init__(self, config: Config, channels: tuple[int, ...], stride: int, num_classes: int) -> None:
        """``channels``: of the taps, one per level or one for all. ``stride``: pixels per cell of the first map."""
        super().__init__()
        self.config, self.stride, self.num_classes = config, stride, num_classes
        width = config.width
        per_level = level_channels(channels, len(config.strides))
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), _norm(width)) for c in per_level
        )
        self.branches = nn.ModuleList(_branch(width, max(1, level)) for level in range(len(config.strides)))
        self.dropout = nn.Dropout2d(config.dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def logits(self, maps: Maps) -> Float[Tensor, "b k _h _w"]:
        """Class logits at the finest level's stride."""
        sizes = level_sizes(tuple(maps[0].shape[-2:]), self.stride, self.config.strides)
        if len(maps) == 1:
            maps = maps * len(sizes)
        levels = [
            resize(lateral(features), size) for lateral, features, size in zip(self.laterals, maps, sizes, strict=True)
        ]
        for fine in range(len(levels) - 2, -1, -1):  # top-down
            levels[fine] = levels[fine] + resize(levels[fine + 1], sizes[fine])
        total = self._climb(0, levels[0], sizes)
        for level in range(1, len(levels)):
            total = total + self._climb(level, levels[level], sizes)
        return self.classifier(self.dropout(total))

    def _climb(self, level: int, features: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """One level through its convolutions, each followed by an upsampling to the next finer level."""
        for step, block in enumerate(self.branches[level]):
            features = resize(block(features), sizes[max(0, level - 1 - step)])
        return features

    def loss(self, maps: Maps, labels: Int[Tensor, "b h w"]) -> LossTerms:
        """Cross-entropy over the labelled pixels (255: not labelled), at the labels' resolution."""
        step = self.config.loss_stride
        labels = labels[:, ::step, ::step]
        return {"cross_entropy": criteria.pixel_cross_entropy(self.scores(maps, tuple(labels.shape[1:])), labels)}

    def scores(self, maps: Maps, size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """Class logits for images of ``size`` (h, w)."""
        return resize(self.logits(maps), size)

    def forward(self, maps: Maps, size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """:meth:`scores`."""
        return self.scores(maps, size)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, width), width)


def _branch(width: int, convolutions: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), _norm(width), nn.ReLU())
        for _ in range(convolutions)
    )
