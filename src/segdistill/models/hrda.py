"""HRDA's two-scale network: Hoyer et al., HRDA, ECCV 2022 (arXiv 2204.13132), section 3; spec C.5.

The network sees the whole image at half its size (context) and crops at full size (detail). One encoder and one head
serve both; the head's scale attention ``a``, computed from the context and set to 0 outside the crops, joins them:

    fused = up((1 - a) context) + up(a) detail        detail is 0 outside the crops; up: bilinear, factor 2

In training there is one crop per step, at a random place that is a multiple of 8 pixels and the same for all images of
the batch; in evaluation crops cover the image every half crop, and their logits are averaged where they overlap.
The image itself is what the recipe's augmentation or evaluation window gives (the authors': 1024 x 1024 of an image
of 2560 x 1440, detail 512 x 512).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segdistill.config import UserError
from segdistill.heads.daformer import ALIGNED, STRIDE, DAFormer, Fused, TwoScale
from segdistill.models.segmenter import Segmenter, positions
from segdistill.ops import maps, resize
from segdistill.types import Features

Corners = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TwoScaleFeatures(Features):
    """Features of the context, and of the ``detail``: crops one after the other, each of all images of the batch."""

    detail: Features | None = None
    corners: Corners = ()  # (y, x) of the crops, pixels
    cells: tuple[int, int] = (0, 0)  # (h, w) of the context's logits, without padding

    def part(self, *, rows: slice | list[int] = slice(None), taps: slice = slice(None)) -> TwoScaleFeatures:
        """The features of the given images and taps, in both scales."""
        own, detail = super().part(rows=rows, taps=taps), self.detail
        assert detail is not None
        count = len(detail.tokens[0]) // len(self.corners)
        images = range(count)[rows] if isinstance(rows, slice) else rows
        chosen = [image + crop * count for crop in range(len(self.corners)) for image in images]
        kept = detail.part(rows=chosen, taps=taps)
        return TwoScaleFeatures(own.tokens, own.cls, own.grid, own.grids, kept, self.corners, self.cells)

    def blank(self, count: int = 1) -> TwoScaleFeatures:
        """Zeros of the same shapes for ``count`` images, in both scales."""
        own, detail = super().blank(count), self.detail
        assert detail is not None
        kept = detail.blank(count * len(self.corners))
        return TwoScaleFeatures(own.tokens, own.cls, own.grid, own.grids, kept, self.corners, self.cells)


class HRDA(Segmenter):
    """A segmenter whose head is a :class:`DAFormer` with ``two_scale``."""

    head: Any

    @property
    def scales(self) -> TwoScale:
        """The head's settings of the two scales."""
        assert isinstance(self.head, DAFormer)
        assert self.head.config.two_scale is not None
        return self.head.config.two_scale

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest size (H, W) not below ``height`` x ``width`` that can be seen in two scales."""
        unit = self.scales.multiple(self.encoder.patch)
        size = (height + -height % unit, width + -width % unit)
        self.encoder.padded(*size)
        return size

    def crops(self, height: int, width: int) -> tuple[tuple[int, int], Corners]:
        """Size of the detail crops and their corners: one at random in training, else a cover of the image."""
        size = (min(self.scales.detail[0], height), min(self.scales.detail[1], width))
        if self.training:
            y, x = (
                ALIGNED * int(torch.randint((side - crop) // ALIGNED + 1, (1,), device="cpu"))
                for side, crop in zip((height, width), size, strict=True)
            )
            return size, ((y, x),)
        rows, columns = (
            positions(side, crop, max(ALIGNED, crop // 2 // ALIGNED * ALIGNED))
            for side, crop in zip((height, width), size, strict=True)
        )
        return size, tuple((y, x) for y in rows for x in columns)

    def whole_features(self, encoder: Any, images: Float[Tensor, "b 3 h w"]) -> Features:
        """The features of the context alone, by any encoder; padded as in ``Model.decoded`` if it is no whole cells."""
        height, width = (side // 2 for side in images.shape[-2:])
        half = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
        high, wide = encoder.padded(height, width)
        return encoder(F.pad(half, (0, wide - width, 0, high - height), mode="replicate"), self.taps)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> TwoScaleFeatures:
        """The features of both scales; without gradient if the encoder is frozen."""
        height, width = images.shape[-2:]
        self.scales.check(self.encoder.patch, height, width)
        (high, wide), corners = self.crops(height, width)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            context = self.whole_features(self.encoder, images)
            parts = [images[..., y : y + high, x : x + wide] for y, x in corners]
            detail = self.encoder(torch.cat(parts), self.taps)
        cells = (height // ALIGNED, width // ALIGNED)
        return TwoScaleFeatures(context.tokens, context.cls, context.grid, context.grids, detail, corners, cells)

    def decode(self, features: Features) -> Fused:
        """The logits of both scales, fused."""
        if not isinstance(features, TwoScaleFeatures) or features.detail is None:
            raise UserError("a two-scale head needs features of both scales: train it without a distillation term")
        context = maps(features)
        details = self.head.decode(maps(features.detail)).unflatten(0, (len(features.corners), -1))
        h, w = features.cells
        logits, attention = (part[..., :h, :w] for part in (self.head.decode(context), self.head.attend(context)))
        fused = fuse(logits, attention, details, features.corners)
        return Fused(fused, details, features.corners)


def fuse(
    context: Float[Tensor, "b k h w"],
    attention: Float[Tensor, "b k h w"],
    details: Float[Tensor, "n b k _p _q"],
    corners: Corners,
) -> Float[Tensor, "b k _u _v"]:
    """The fused logits (B, K, 2h, 2w); see the module's text. A cell is 8 pixels of ``context``, 4 of ``details``."""
    height, width = (2 * side for side in context.shape[-2:])
    high, wide = details.shape[-2:]
    canvas = context.new_zeros(*context.shape[:2], height, width, dtype=details.dtype)
    covered = context.new_zeros(height, width)
    for crop, corner in zip(details, corners, strict=True):
        y, x = (place // STRIDE for place in corner)
        canvas = canvas + F.pad(crop, (x, width - x - wide, y, height - y - high))
        covered[y : y + high, x : x + wide] += 1
    canvas = canvas / covered.clamp(min=1)
    attention = attention * (covered[::2, ::2] > 0)
    return resize((1 - attention) * context, (height, width)) + resize(attention, (height, width)) * canvas
