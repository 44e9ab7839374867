"""Mask2Former: Cheng et al., Masked-attention Mask Transformer, CVPR 2022 (arXiv 2112.01527), for classes or instances.

The pixel decoder is that of transformers, on a simple feature pyramid of the encoder's taps (spec A.10). It runs in
float32 whatever the precision of the caller, as in the authors' code. The rest is :mod:`segdistill.heads.queries`.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from segdistill.heads.base import Maps
from segdistill.heads.pyramid import STRIDES, feature_pyramid, per_level
from segdistill.heads.queries import Queries, QueryConfig, QueryHead
from segdistill.ops import full_precision


class Mask2Former(QueryHead):
    """Maps of four taps (or of one) -> queries, each with a class and a mask at stride 4."""

    class Config(QueryConfig):
        """``encoder_*``: layers of the pixel decoder and the hidden width of their MLPs."""

        encoder_layers: int = Field(6, ge=1, le=100)
        encoder_feedforward: int = Field(1024, ge=1, le=2**16)

    def __init__(self, config: Config, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        """``channels`` and ``strides`` (pixels per cell) of the taps, one per level or one for all."""
        super().__init__()
        self.config, self.strides, self.num_classes = config, tuple(strides), num_classes
        from segdistill.heads import mask2former_parts as parts  # transformers takes seconds to import

        self.pixel_decoder, self.transformer, self.criterion = parts.build(
            config, per_level(tuple(channels), len(STRIDES)), num_classes
        )
        self.classifier = nn.Linear(config.width, num_classes + 1)  # the last one: no object

    def decode(self, maps: Maps) -> Queries:
        """The queries' classes and masks, before the first layer and after each."""
        with full_precision(maps[0]):
            levels = feature_pyramid(tuple(m.float() for m in maps), self.strides, STRIDES)
            pixels = self.pixel_decoder(levels, output_hidden_states=False, return_dict=True)
        return self.queries_of(pixels.multi_scale_features, pixels.mask_features)
