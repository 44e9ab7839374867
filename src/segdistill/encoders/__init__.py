"""Encoders: networks of timm that return the features which heads and distillation read.

======================= =========================================================================
:mod:`.table`           ``ENCODERS``: the encoders with a name of their own
:mod:`.anytimm`         every other backbone of timm, as ``timm:<name>``: its record is derived
:mod:`.record`          ``EncoderRecord``: the facts about one encoder
:mod:`.world`           the convolutional stem of the world's own encoders
:mod:`.mit`             MiT, the encoder of SegFormer
:mod:`.rein`            Rein's learnt tokens between the blocks of a frozen ViT
:mod:`.walks`           images -> tokens of the taps, for plain ViTs, SAM's, and everything else
:mod:`.encoder`         ``Encoder`` and its settings
======================= =========================================================================

The table and the records need no torch; the modules that build networks are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segdistill.encoders.record import EncoderRecord
from segdistill.encoders.table import ENCODERS

if TYPE_CHECKING:
    from segdistill.encoders.anytimm import record_of
    from segdistill.encoders.encoder import Encoder, EncoderConfig, build_encoder, outline

__all__ = [
    "ENCODERS", "Encoder", "EncoderConfig", "EncoderRecord", "build_encoder", "outline", "record_of",
]  # fmt: skip

HOMES = {
    "record_of": "anytimm",
    "Encoder": "encoder",
    "EncoderConfig": "encoder",
    "build_encoder": "encoder",
    "outline": "encoder",
}


def __getattr__(name: str) -> Any:
    """Import the names that need torch on first use."""
    if name not in HOMES:
        raise AttributeError(f"module 'segdistill.encoders' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"segdistill.encoders.{HOMES[name]}"), name)
