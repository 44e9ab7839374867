"""ISPRS Potsdam and Vaihingen: which tiles are for what, what their files are called, how they are cut (spec D.4)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

Box = tuple[int, int, int, int]
CLIP = 512

# The split of the benchmarks that GKD compares with: mmsegmentation's tools/dataset_converters/{potsdam,vaihingen}.py.
POTSDAM = {
    "train": (
        "2_10", "2_11", "2_12", "3_10", "3_11", "3_12", "4_10", "4_11", "4_12", "5_10", "5_11", "5_12",
        "6_10", "6_11", "6_12", "6_7", "6_8", "6_9", "7_10", "7_11", "7_12", "7_7", "7_8", "7_9",
    ),
    "val": (
        "5_15", "6_15", "6_13", "3_13", "4_14", "6_14", "5_14", "2_13", "4_15", "2_14", "5_13", "4_13", "3_14", "7_13",
    ),
}  # fmt: skip
VAIHINGEN = {
    "train": (
        "area1", "area11", "area13", "area15", "area17", "area21", "area23", "area26", "area28", "area3", "area30",
        "area32", "area34", "area37", "area5", "area7",
    ),
    "val": (
        "area6", "area24", "area35", "area16", "area14", "area22", "area10", "area4", "area2", "area20", "area8",
        "area31", "area33", "area27", "area38", "area12", "area29",
    ),
}  # fmt: skip

_POTSDAM_FILE = re.compile(r"(?:^|/)top_potsdam_(\d+_\d+)_(RGB|IRRG|label_noBoundary)\.tif$")
_VAIHINGEN_FILE = re.compile(r"(?:^|/)top_mosaic_09cm_(area\d+)(_noBoundary)?\.tif$")


def potsdam_tile(path: str) -> tuple[str, str] | None:
    """(tile, RGB | IRRG | label) of an official file's path, None for any other file."""
    match = _POTSDAM_FILE.search(path)
    return match and (match[1], "label" if match[2].startswith("label") else match[2])


def vaihingen_tile(path: str) -> tuple[str, str] | None:
    """(area, IRRG | label) of an official file's path, None for any other file."""
    match = _VAIHINGEN_FILE.search(path)
    return match and (match[1], "label" if match[2] else "IRRG")


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
