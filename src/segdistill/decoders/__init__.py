"""Decoders: the maps of an encoder's taps -> a loss on labels, and class scores per pixel.

Each has ``Config``, ``__init__(config, channels, stride, num_classes)``, ``loss(maps, labels) -> LossTerms`` and
``scores(maps, size) -> (B, K, H, W)``.
"""

from __future__ import annotations

from segdistill.decoders.mask2former import Mask2Former
from segdistill.decoders.semfpn import SemFPN


DECODERS: dict[str, type[SemFPN] | type[Mask2Former]] = {"semfpn": SemFPN, "mask2former": Mask2Former}
