"""Semantic FPN: Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019 (arXiv 1901.02446), section 3.1.

Deviations, for plain ViTs and for speed: a simple pyramid (taps at other strides than 4-32 are resized); each lateral
1x1 convolution runs on the tap's own grid, before resizing, followed by a group norm, since the scales of raw block
outputs differ by orders of magnitude; no 3x3 convolution between the top-down sum and the semantic branch.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated

from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn

from segdistill import criteria
from segdistill.heads.base import Head, HeadConfig, Maps, first
from segdistill.heads.pyramid import level_sizes, per_level
from segdistill.ops import resize
from segdistill.processes import own_rows, share
from segdistill.types import LossTerms


class SemFPN(Head):
    """Maps of the taps -> class logits at the finest level's stride, upsampled bilinearly to the requested size."""

    class Config(HeadConfig):
        """``width``: channels of all levels. ``strides``: pixels per cell of the levels, each twice the last one's."""

        width: int = Field(128, ge=1, le=8192)
        strides: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (4, 8, 16, 32)
        dropout: float = Field(0.1, ge=0, lt=1)

        @field_validator("width")
        @classmethod
        def _divisible(cls, width: int) -> int:
            if width % _groups(width):
                raise ValueError("not divisible into groups of the group norm; choose a multiple of 4")
            return width

        @field_validator("strides")
        @classmethod
        def _doubling(cls, strides: tuple[int, ...]) -> tuple[int, ...]:
            if not strides or any(b != 2 * a for a, b in pairwise(strides)):
                raise ValueError("each stride must be twice the one before it, such as [4, 8, 16, 32]")
            return strides

    def __init__(self, config: Config, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        """``channels`` and ``strides`` (pixels per cell) of the taps, one per level or one for all."""
        super().__init__()
        self.config, self.strides, self.num_classes = config, tuple(strides), num_classes
        width = config.width
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), _norm(width))
            for c in per_level(tuple(channels), len(config.strides))
        )
        self.branches = nn.ModuleList(
            nn.ModuleList(_block(width) for _ in range(max(1, level))) for level in range(len(config.strides))
        )
        self.dropout = ChannelDropout(config.dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def readers(self) -> list[nn.Conv2d]:
        """The lateral convolutions."""
        return [lateral[0] for lateral in self.laterals]  # type: ignore[index]

    def decode(self, maps: Maps) -> Float[Tensor, "b k _h _w"]:
        """Class logits at the finest level's stride."""
        sizes = level_sizes(maps, self.strides, self.config.strides)
        read = zip(self.laterals, per_level(maps, len(sizes)), sizes, strict=True)
        levels = [resize(lateral(features), size) for lateral, features, size in read]
        for fine in range(len(levels) - 2, -1, -1):  # top-down
            levels[fine] = levels[fine] + resize(levels[fine + 1], sizes[fine])
        total = self._climb(0, levels[0], sizes)
        for level in range(1, len(levels)):
            total = total + self._climb(level, levels[level], sizes)
        return self.classifier(self.dropout(total))

    def _climb(self, level: int, features: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """One level through its convolutions, each followed by an upsampling to the next finer level."""
        branch = self.branches[level]
        assert isinstance(branch, nn.ModuleList)
        for step, block in enumerate(branch):
            features = resize(block(features), sizes[max(0, level - 1 - step)])
        return features

    def loss_of(self, decoded: Float[Tensor, "b k _p _q"], labels: Int[Tensor, "_b h w"]) -> LossTerms:
        """Cross-entropy over the labelled pixels (255: not labelled), at the labels' resolution."""
        count, height, width = labels.shape
        scores = self.scores_of(first(decoded, count), (height, width))
        return {"cross_entropy": criteria.pixel_cross_entropy(scores, labels)}

    def logits_of(self, decoded: Float[Tensor, "b k _h _w"]) -> Float[Tensor, "b k _h _w"]:
        """The classifier's output as it is, before any upsampling."""
        return decoded


class ChannelDropout(nn.Dropout2d):
    """Channel dropout that drops the same channels for any number of processes and micro-batches."""

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """As ``nn.Dropout2d``, with random numbers drawn for the samples of the whole batch."""
        size = share()[1]
        if size == 1 or not self.training or self.p == 0:
            return super().forward(features)
        batch, channels = features.shape[:2]
        kept = features.new_empty(batch * size, channels, 1, 1).bernoulli_(1 - self.p)
        return features * own_rows(kept.div_(1 - self.p))


def _groups(width: int) -> int:
    """At most 32 groups, of at least 4 channels: a coarse level of a small image is a single cell."""
    return math.gcd(32, max(1, width // 4))


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(_groups(width), width)


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), _norm(width), nn.ReLU())
