"""ISPRS Potsdam and Vaihingen: how their tiles are cut into clips (spec D.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator

Box = tuple[int, int, int, int]
CLIP = 512


def boxes(height: int, width: int, clip: int = CLIP) -> Iterator[Box]:
    """(left, top, right, bottom) of the clips of a tile, row by row: corners at multiples of ``clip``, the last ones
    shifted back to the border. A side shorter than ``clip`` is taken whole (ours; the converter's slices go wrong).
    """
    for top in _starts(height, clip):
        for left in _starts(width, clip):
            yield left, top, min(left + clip, width), min(top + clip, height)


def clip_name(tile: str, box: Box) -> str:
    """The converter's file name: ``2_10_0_512_512_1024.png``."""
    return f"{tile}_{'_'.join(map(str, box))}.png"


def _starts(length: int, clip: int) -> list[int]:
    count = max(1, math.ceil(length / clip))
    return [max(0, min(i * clip, length - clip)) for i in range(count)]
