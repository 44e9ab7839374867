"""Heads: the maps of an encoder's taps -> a loss on labels, and class scores per pixel."""

from __future__ import annotations

from segdistill.heads.base import Head, Maps
from segdistill.heads.mask2former import Mask2Former
from segdistill.heads.semfpn import SemFPN

HEADS: dict[str, type[SemFPN] | type[Mask2Former]] = {"semfpn": SemFPN, "mask2former": Mask2Former}

__all__ = ["HEADS", "Head", "Maps", "Mask2Former", "SemFPN"]
