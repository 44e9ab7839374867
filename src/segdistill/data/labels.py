"""Reads label files as maps of trainIds, using the record's encoding, and images with their labels.

Values that the encoding lacks are errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.data.archives import BadSample, Store
from segdistill.data.catalog import Encoding
from segdistill.data.decode import UPRIGHT, Picture, open_picture, turn
from segdistill.data.index import Item

UNKNOWN = 254
"""Marks values that the table lacks; so a label space has at most 254 classes."""

Array = NDArray[Any]


class LabelReader:
    """Decodes label files of one :class:`Encoding` with a lookup table."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        table = {red << 16 | green << 8 | blue: to for (red, green, blue), to in encoding.colors.items()}
        self._table = table or dict(encoding.ids)
        self._lookup = np.full(1 << (24 if table else 16), UNKNOWN, np.uint8)
        self._lookup[list(self._table)] = list(self._table.values())

    def __call__(self, content: bytes, name: str) -> NDArray[np.uint8]:
        """The map (H, W) of trainIds in the file ``content``, as stored; :class:`BadSample` names ``name``."""
        return self.decode(open_picture(content, name), name)

    def decode(self, picture: Picture, name: str) -> NDArray[np.uint8]:
        """The map (H, W) of trainIds in an open file."""
        if picture.lossy:
            raise BadSample(
                f"{name}: has lossy compression ({picture.lossy}), which changes labels; write labels as PNG"
            )
        numbers = self._colors(picture) if self.encoding.colors else self._numbers(picture, name)
        decoded = self._lookup[numbers]
        if (decoded == UNKNOWN).any():
            raise BadSample(f"{name}: {self._strange(numbers[decoded == UNKNOWN])}")
        return decoded

    def _colors(self, picture: Picture) -> Array:
        pixels = picture.rgb().astype(np.int32)
        return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]

    def _numbers(self, picture: Picture, name: str) -> Array:
        bands, mode, pixels = len(picture.image.getbands()), picture.image.mode, picture.numbers()
        if self.encoding.channel is not None and bands > self.encoding.channel and bands > 1:
            pixels = pixels[..., self.encoding.channel]
        elif bands > 1:
            raise BadSample(f"{name}: is a picture with {bands} channels ({mode}); expected class numbers")
        elif self.encoding.channel is not None:
            raise BadSample(f"{name}: has one channel ({mode}); expected a file with three")
        if pixels.dtype.kind == "f":
            raise BadSample(f"{name}: has floating-point values ({mode}); expected class numbers")
        if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 0xFFFF:
            raise BadSample(f"{name}: has values beyond 0-65535; expected class numbers")
        return pixels.astype(np.uint16)

    def _strange(self, values: Array) -> str:
        """A line about values of a label that the table lacks."""
        found = [int(value) for value in np.unique(values)]
        what = "colour" if self.encoding.colors else "id"
        shown = ", ".join(_value(value, colors=bool(self.encoding.colors)) for value in found[:3])
        shown += ", ..." if len(found) > 3 else ""
        allowed = f"{len(self._table)} colours" if self.encoding.colors else ranges(self._table)
        return f"unknown {what} {shown} at {values.size} pixels; the table has {allowed}"


@dataclass(frozen=True)
class Pair:
    """One image (H, W, 3) and, where there is one, its label (H, W)."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    wide: bool  # the file has 16 bits


def read_pair(store: Store, item: Item, read_label: LabelReader | None, *, upright: bool = False) -> Pair:
    """One image and, with a reader, its label; :class:`BadSample` if they are damaged or do not fit each other.

    ``upright``: both are turned according to their EXIF orientation.
    """
    name = f"{store}: {item.image}"
    picture = open_picture(store.read(item.image), name)
    image, turned = picture.rgb(name), picture.orientation if upright else UPRIGHT
    if read_label is None or item.label is None:
        return Pair(turn(image, turned), None, picture.wide)
    named = f"{store}: {item.label}"
    drawn = open_picture(store.read(item.label), named)
    label = read_label.decode(drawn, named)
    if upright:
        label = _upright(label, drawn.orientation, image.shape[:2], turned, named)
    image = turn(image, turned)
    if label.shape != image.shape[:2]:
        sizes = " and ".join(f"{h} x {w}" for h, w in (label.shape, image.shape[:2]))
        note = "" if picture.orientation == UPRIGHT else f"; the image's EXIF orientation is {picture.orientation}"
        raise BadSample(f"{named} and its image have different sizes: {sizes} (height x width){note}")
    return Pair(image, label, picture.wide)


def _upright(label: Array, own: int, stored: tuple[int, ...], orientation: int, name: str) -> Array:
    """The label turned like its image, whose ``stored`` size and EXIF ``orientation`` are given.

    A label without orientation may have been drawn on the stored or on the turned pixels. If the two sizes differ, its
    size tells which; otherwise it is an error.
    """
    if own == orientation:
        return turn(label, own)
    if own == UPRIGHT and orientation > 4 and stored[0] != stored[1]:  # from 5 on height and width are swapped
        return turn(label, orientation) if label.shape == stored else label
    raise BadSample(
        f"{name} and its image have different EXIF orientations: {own} and {orientation} ({UPRIGHT}: upright); "
        "save both without it, turned the same way"
    )


def ranges(numbers: Iterable[int]) -> str:
    """``0-18, 255`` for the sorted numbers."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def _value(value: int, *, colors: bool) -> str:
    return f"({value >> 16}, {value >> 8 & 255}, {value & 255})" if colors else str(value)
