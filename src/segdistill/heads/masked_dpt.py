"""DPT with masked attention: the student of "Training a Student Expert via Semi-Supervised Foundation Model
Distillation" (arXiv 2604.03841; spec sskd, 2.5).

Reassembly and fusion: Ranftl et al., Vision Transformers for Dense Prediction, ICCV 2021 (arXiv 2103.13413); the fusion
blocks are those of transformers. The coarser three fused maps feed a masked-attention decoder (Mask2Former), the finest
one carries the masks; there is no pixel decoder. The authors' widths are not established: 52 M parameters with DINOv2-S
(theirs, as published), 81 M in their research code at width 384; the default, width 256 and FFN 1024, has 50 M.

Ours: the number of cells per level follows from the stride of the taps, so that hierarchical encoders and other patch
sizes give levels near strides 4, 8, 16 and 32; the fused maps have half of these.
"""

from __future__ import annotations

import math

from pydantic import Field
from torch import nn

from segdistill.heads.base import Maps
from segdistill.heads.pyramid import STRIDES, per_level
from segdistill.heads.queries import Queries, QueryConfig, QueryHead


class MaskedDPT(QueryHead):
    """Maps of four taps (or of one) -> queries, each with a class and a mask at about stride 2."""

    class Config(QueryConfig):
        """``neck_channels``: of the reassembled maps, fine to coarse. ``batch_norm``: in the fusion blocks."""

        decoder_feedforward: int = Field(1024, ge=1, le=2**16)
        neck_channels: tuple[int, int, int, int] = (96, 192, 384, 768)
        batch_norm: bool = True

    def __init__(self, config: Config, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        """``channels`` and ``strides`` (pixels per cell) of the taps, one per level or one for all."""
        super().__init__()
        self.config, self.strides, self.num_classes = config, tuple(strides), num_classes
        from segdistill.heads import mask2former_parts as parts  # transformers takes seconds to import

        levels, neck = len(STRIDES), config.neck_channels
        given = zip(per_level(tuple(channels), levels), per_level(self.strides, levels), neck, strict=True)
        self.reassemble = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, own, 1), _rescale(own, stride, level))
            for (wide, stride, own), level in zip(given, STRIDES, strict=True)
        )
        self.reduce = nn.ModuleList(nn.Conv2d(own, config.width, 3, padding=1, bias=False) for own in neck)
        self.fusion = parts.build_fusion(config.width, neck, batch_norm=config.batch_norm)
        self.transformer, self.criterion = parts.build_decoder(config, num_classes)
        self.classifier = nn.Linear(config.width, num_classes + 1)  # the last one: no object

    def readers(self) -> list[nn.Conv2d]:
        """The projections of the reassembly."""
        return [block[0] for block in self.reassemble]  # type: ignore[index]

    def decode(self, maps: Maps) -> Queries:
        """The queries' classes and masks, before the first layer and after each."""
        blocks = zip(per_level(maps, len(STRIDES)), self.reassemble, self.reduce, strict=True)
        *levels, pixels = self.fusion([reduce(reassemble(each)) for each, reassemble, reduce in blocks])
        return self.queries_of(levels, pixels)


def _rescale(channels: int, stride: int, level: int) -> nn.Module:
    """From ``stride`` to about ``level`` pixels per cell: by the nearest power of two, learned."""
    power = round(math.log2(stride / level))
    factor = 2 ** abs(power)
    if power > 0:
        return nn.ConvTranspose2d(channels, channels, factor, stride=factor)
    return nn.Conv2d(channels, channels, 3, stride=factor, padding=1) if power < 0 else nn.Identity()
