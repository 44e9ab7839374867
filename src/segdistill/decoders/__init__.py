"""Decoders: the maps of an encoder's taps -> a loss on labels, and class scores per pixel."""

from __future__ import annotations

from segdistill.decoders.base import Decoder, Maps
from segdistill.decoders.mask2former import Mask2Former
from segdistill.decoders.semfpn import SemFPN

DECODERS: dict[str, type[SemFPN] | type[Mask2Former]] = {"semfpn": SemFPN, "mask2former": Mask2Former}

__all__ = ["DECODERS", "Decoder", "Maps", "Mask2Former", "SemFPN"]
