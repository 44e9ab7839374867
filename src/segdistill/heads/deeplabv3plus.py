"""DeepLabV3+: Chen et al., Encoder-Decoder with Atrous Separable Convolution, ECCV 2018 (arXiv 1802.02611).

ASPP on the deepest map (torchvision's block: 1x1, three dilated 3x3, image pooling; a 1x1 projection), enlarged to
stride 4 and joined with the first map after a 1x1 convolution to 48 channels; two 3x3 convolutions and a classifier.
As in the CNN baselines of domain generalisation (RobustNet, SHADE; spec C.2) the convolutions are not separable, and an
auxiliary classifier (3x3, 1x1) reads the third map, ``layer3`` of a ResNet:

    L = CE(scores, labels) + 0.4 CE(auxiliary scores, labels)

The second of the four maps is not used. Ours: the dilations follow from the deepest map's stride (6, 12, 18 at stride
16, twice that at 8), dropout is per channel before both classifiers (0.1, as in mmsegmentation; 0.5 in torchvision's
block is left out), and the first map is resized where its stride is not 4.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from segdistill import criteria
from segdistill.config import UserError
from segdistill.heads.base import Head, HeadConfig, Maps, first
from segdistill.heads.pyramid import STRIDES, conv_block, level_sizes, per_level
from segdistill.heads.semfpn import ChannelDropout
from segdistill.ops import resize
from segdistill.processes import rank_and_size
from segdistill.types import LossTerms

STRIDE = 4  # of the logits


class Decoded(NamedTuple):
    """Class logits (B, K, h, w) at stride 4, and the map that the auxiliary classifier reads, if there is one."""

    logits: Float[Tensor, "b k _h _w"]
    third: Float[Tensor, "b _c _p _q"] | None


class DeepLabV3Plus(Head):
    """Maps of four taps (or of one) -> class logits at stride 4; training needs two images per pass (image pooling)."""

    class Config(HeadConfig):
        """``width``: channels of ASPP and decoder. ``low_width``: of the first map's branch."""

        width: int = Field(256, ge=1, le=8192)
        low_width: int = Field(48, ge=1, le=8192)
        dilations: tuple[Annotated[int, Field(ge=1, le=1024)], ...] | None = Field(
            None,
            min_length=1,
            max_length=16,
            description="of ASPP's 3x3 convolutions; None: 6, 12, 18 x 16 / stride",
        )
        auxiliary: float = Field(0.4, ge=0, le=1e6, description="weight of the third map's loss; 0: no such classifier")
        dropout: float = Field(0.1, ge=0, lt=1)

    def __init__(self, config: Config, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        """``channels`` and ``strides`` (pixels per cell) of the taps, one per level or one for all."""
        super().__init__()
        from torchvision.models.segmentation.deeplabv3 import ASPP

        self.config, self.strides, self.num_classes = config, tuple(strides), num_classes
        low, _, third, deep = per_level(tuple(channels), len(STRIDES))
        width = config.width
        self.aspp: Any = ASPP(deep, list(config.dilations or dilations_at(self.strides[-1])), width)
        self.aspp.project[3] = nn.Identity()  # its dropout
        self.low = conv_block(low, config.low_width, 1)
        self.fuse = nn.Sequential(conv_block(width + config.low_width, width, 3), conv_block(width, width, 3))
        self.classifier = nn.Sequential(ChannelDropout(config.dropout), nn.Conv2d(width, num_classes, 1))
        self.auxiliary = None
        if config.auxiliary:
            self.auxiliary = nn.Sequential(
                conv_block(third, 2 * width, 3), ChannelDropout(config.dropout), nn.Conv2d(2 * width, num_classes, 1)
            )

    @staticmethod
    def check_batch(images: int) -> None:
        """See :class:`Head`."""
        if images < 2:
            raise UserError(
                "deeplabv3plus cannot train on one image per pass, whose pooled map has no variance: "
                "raise batch, or lower accumulate"
            )

    def decode(self, maps: Maps) -> Decoded:
        """Logits at stride 4; the auxiliary classifier runs in the loss alone."""
        low, _, third, deep = per_level(maps, len(STRIDES))
        if self.training:
            self.check_batch(len(deep) * rank_and_size()[1])
        [size] = level_sizes(maps, self.strides, (STRIDE,))
        context = resize(self.aspp(deep), size)
        logits = self.classifier(self.fuse(torch.cat([context, resize(self.low(low), size)], dim=1)))
        return Decoded(logits, third if self.auxiliary is not None else None)

    def loss_of(self, decoded: Decoded, labels: Int[Tensor, "_b h w"]) -> LossTerms:
        """Cross-entropy of both classifiers at the labels' resolution (255: not labelled)."""
        count, height, width = labels.shape
        scores = resize(first(decoded.logits, count), (height, width))
        terms = {"cross_entropy": criteria.pixel_cross_entropy(scores, labels)}
        if self.auxiliary is not None and decoded.third is not None:
            scores = resize(self.auxiliary(first(decoded.third, count)), (height, width))
            terms["auxiliary"] = self.config.auxiliary * criteria.pixel_cross_entropy(scores, labels)
        return terms

    def logits_of(self, decoded: Decoded) -> Float[Tensor, "b k _h _w"]:
        """The classifier's output at stride 4."""
        return decoded.logits


def dilations_at(stride: int) -> tuple[int, int, int]:
    """The authors' dilations at ``stride`` pixels per cell: 6, 12, 18 at 16, 12, 24, 36 at 8; at least 1, 2, 3."""
    unit = max(1, round(6 * 16 / stride))
    return unit, 2 * unit, 3 * unit
