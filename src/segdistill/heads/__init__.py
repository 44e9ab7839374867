"""Heads: the maps of an encoder's taps -> a loss on labels, and class scores per pixel or boxes."""

from __future__ import annotations

from segdistill.heads.base import Head, Maps
from segdistill.heads.daformer import DAFormer
from segdistill.heads.deeplabv3plus import DeepLabV3Plus
from segdistill.heads.eomt import EoMT
from segdistill.heads.faster_rcnn import FasterRCNN
from segdistill.heads.mask2former import Mask2Former
from segdistill.heads.masked_dpt import MaskedDPT
from segdistill.heads.semfpn import SemFPN

AnySegmenter = type[SemFPN] | type[Mask2Former] | type[MaskedDPT] | type[EoMT] | type[DeepLabV3Plus] | type[DAFormer]

HEADS: dict[str, AnySegmenter | type[FasterRCNN]] = {
    "semfpn": SemFPN,
    "mask2former": Mask2Former,
    "masked_dpt": MaskedDPT,
    "eomt": EoMT,
    "deeplabv3plus": DeepLabV3Plus,
    "daformer": DAFormer,
    "faster_rcnn": FasterRCNN,
}

__all__ = [
    "HEADS",
    "DAFormer",
    "DeepLabV3Plus",
    "EoMT",
    "FasterRCNN",
    "Head",
    "Maps",
    "Mask2Former",
    "MaskedDPT",
    "SemFPN",
]
