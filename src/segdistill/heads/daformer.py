"""DAFormer's head (Hoyer et al., CVPR 2022, arXiv 2111.14887) and HRDA's scale attention (ECCV 2022, arXiv 2204.13132).

Each map is embedded linearly (256 channels), enlarged to stride 4 and joined with the others; four parallel
convolutions read the result (1x1, and depthwise separable 3x3 with dilations 6, 12, 18; no image pooling), a 3x3
bottleneck fuses them, and a classifier with channel dropout follows (spec C.4).

With ``two_scale`` the network sees an image twice, as :class:`segdistill.models.hrda.HRDA` says; the head then has a
scale attention: embeddings of its own, a 1x1 convolution, a classifier, and a sigmoid for every class (spec C.5).
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from segdistill import criteria
from segdistill.config import Config, Size, UserError
from segdistill.heads.base import Head, HeadConfig, Maps, first
from segdistill.heads.pyramid import STRIDES, conv_block, level_sizes, per_level
from segdistill.heads.semfpn import ChannelDropout
from segdistill.ops import resize
from segdistill.types import LossTerms

STRIDE = 4  # of the logits
ALIGNED = 2 * STRIDE
"""Pixels of a cell of the context's logits; corners of detail crops are multiples of it."""


class TwoScale(Config):
    """HRDA: context at half the image's size, detail crops at full size."""

    detail: Size = Field((512, 512), description="(H, W) of the detail crop, pixels; a smaller image is one crop")
    detail_weight: float = Field(
        0.1, ge=0, le=1, description="weight of the detail crop's own loss; the rest is the fused map's"
    )
    attention_width: int = Field(256, ge=1, le=8192, description="channels of the scale attention")

    def multiple(self, cell: int) -> int:
        """What the sides of images are multiples of, pixels, for an encoder of ``cell`` pixels per cell."""
        return math.lcm(cell, ALIGNED)

    def check(self, cell: int, height: int, width: int) -> None:
        """Raise a :class:`UserError` unless images of this size can be seen in two scales."""
        unit = self.multiple(cell)
        if any(side % unit for side in self.detail):
            raise UserError(f"two_scale.detail: {self.detail} is not divisible by {unit}: choose multiples of it")
        if height % unit or width % unit:
            raise UserError(
                f"image size {height} x {width} is not divisible by {unit}, as two scales of a patch of {cell} need: "
                f"choose multiples of {unit}"
            )


class Fused(NamedTuple):
    """The logits of a two-scale network.

    ``fused`` (B, K, h, w) at stride 4; ``details`` (crops, B, K, p, q) at stride 4, of crops of the image whose upper
    left ``corners`` are (y, x), pixels.
    """

    fused: Float[Tensor, "b k _h _w"]
    details: Float[Tensor, "n b k _p _q"]
    corners: tuple[tuple[int, int], ...]


Decoded = Float[Tensor, "b k _p _q"] | Fused


class DAFormer(Head):
    """Maps of four taps (or of one) -> class logits at stride 4."""

    class Config(HeadConfig):
        """``width``: channels of the embeddings and of the fusion."""

        width: int = Field(256, ge=1, le=8192)
        dilations: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field((1, 6, 12, 18), min_length=1, max_length=16)
        dropout: float = Field(0.1, ge=0, lt=1)
        two_scale: TwoScale | None = Field(None, description="HRDA's two scales; None: DAFormer, one scale")

    config: Config

    def __init__(self, config: Config, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        """``channels`` and ``strides`` (pixels per cell) of the taps, one per level or one for all."""
        super().__init__()
        self.config, self.strides, self.num_classes = config, tuple(strides), num_classes
        width, levels = config.width, per_level(tuple(channels), len(STRIDES))
        self.embed = _embeddings(levels, width)
        self.context = nn.ModuleList(_parallel(len(levels) * width, width, dilation) for dilation in config.dilations)
        self.fuse = conv_block(len(config.dilations) * width, width, 3)
        self.classifier = nn.Sequential(ChannelDropout(config.dropout), nn.Conv2d(width, num_classes, 1))
        self.attention = None
        if config.two_scale is not None:
            self.attention = ScaleAttention(levels, config.two_scale.attention_width, num_classes)

    def decode(self, maps: Maps) -> Float[Tensor, "b k _h _w"]:
        """Class logits at stride 4, of one scale."""
        joined = self._joined(self.embed, maps)
        return self.classifier(self.fuse(torch.cat([part(joined) for part in self.context], dim=1)))

    def attend(self, maps: Maps) -> Float[Tensor, "b k _h _w"]:
        """Trust in the detail, 0 to 1, per class and cell of the context's logits."""
        if self.attention is None:
            raise UserError("this daformer head has one scale: set head.two_scale to train one with scale attention")
        return self.attention(self._joined(self.attention.embed, maps))

    def _joined(self, embed: nn.ModuleList, maps: Maps) -> Float[Tensor, "b c _h _w"]:
        """All levels, embedded and enlarged to stride 4."""
        [size] = level_sizes(maps, self.strides, (STRIDE,))
        levels = zip(embed, per_level(maps, len(embed)), strict=True)
        return torch.cat([resize(layer(features), size) for layer, features in levels], dim=1)

    def loss_of(self, decoded: Decoded, labels: Int[Tensor, "_b h w"]) -> LossTerms:
        """Cross-entropy over the labelled pixels (255: not labelled), at the labels' resolution.

        Of two scales: (1 - detail_weight) times that of the fused map, and detail_weight times the mean of the crops'.
        """
        count, height, width = labels.shape
        scores = resize(first(self.logits_of(decoded), count), (height, width))
        fused = criteria.pixel_cross_entropy(scores, labels)
        if not isinstance(decoded, Fused):
            return {"cross_entropy": fused}
        assert self.config.two_scale is not None
        weight = self.config.two_scale.detail_weight
        high, wide = (STRIDE * side for side in decoded.details.shape[-2:])
        seen = torch.cat([labels[:, y : y + high, x : x + wide] for y, x in decoded.corners])
        logits = decoded.details[:, :count].flatten(0, 1)
        detail = criteria.pixel_cross_entropy(resize(logits, (high, wide)), seen)
        return {"cross_entropy": (1 - weight) * fused, "detail": weight * detail}

    def logits_of(self, decoded: Decoded) -> Float[Tensor, "b k _h _w"]:
        """The classifier's output, or the fused map, at stride 4."""
        return decoded.fused if isinstance(decoded, Fused) else decoded


class ScaleAttention(nn.Module):
    """Joined levels -> weights of the detail in [0, 1], one map per class."""

    def __init__(self, levels: tuple[int, ...], width: int, num_classes: int) -> None:
        super().__init__()
        self.embed = _embeddings(levels, width)
        self.fuse = conv_block(len(levels) * width, width, 1)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, joined: Float[Tensor, "b _c h w"]) -> Float[Tensor, "b k h w"]:
        """See the class."""
        return self.classifier(self.fuse(joined)).sigmoid()


def _embeddings(levels: tuple[int, ...], width: int) -> nn.ModuleList:
    """A linear layer per level, as a 1x1 convolution."""
    return nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in levels)


def _parallel(inputs: int, width: int, dilation: int) -> nn.Sequential:
    """1x1 for a dilation of 1; else depthwise 3x3 and 1x1, each with batch norm and ReLU."""
    if dilation == 1:
        return conv_block(inputs, width, 1)
    depthwise = nn.Conv2d(inputs, inputs, 3, padding=dilation, dilation=dilation, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.ReLU(), *conv_block(inputs, width, 1))
