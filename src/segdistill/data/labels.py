"""Reads label files as maps of trainIds, using the record's encoding, and images with their labels.

Values that the encoding lacks are errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdistill.data.archives import BadSample, Store
from segdistill.data.catalog import Encoding
from segdistill.data.decode import UPRIGHT, Picture, open_picture, turn, turn_boxes
from segdistill.data.index import Item
from segdistill.objects import Objects

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

    def read(self, store: Store, name: str) -> Drawing:
        """The content of the label file ``name``."""
        named = f"{store}: {name}"
        picture = open_picture(store.read(name), named)
        return Drawing(self.decode(picture, named), picture.orientation)

    def __call__(self, content: bytes, name: str) -> NDArray[np.uint8]:
        """The map (H, W) of trainIds in the file ``content``, as stored; :class:`BadSample` names ``name``."""
        return self.decode(open_picture(content, name), name)

    def decode(self, picture: Picture, name: str) -> NDArray[np.uint8]:
        """The map (H, W) of trainIds in an open file."""
        self._exact(picture, name)
        channel = self.encoding.channel
        numbers = color_numbers(picture, name) if self.encoding.colors else class_numbers(picture, name, channel)
        decoded = self._lookup[numbers]
        if (decoded == UNKNOWN).any():
            raise BadSample(f"{name}: {self._strange(numbers[decoded == UNKNOWN])}")
        return decoded

    def _exact(self, picture: Picture, name: str) -> None:
        """An error for files whose compression changes values."""
        if picture.lossy:
            raise BadSample(
                f"{name}: has lossy compression ({picture.lossy}), which changes labels; write labels as PNG"
            )

    def _strange(self, values: Array) -> str:
        """A line about values of a label that the table lacks."""
        found = [int(value) for value in np.unique(values)]
        what = "colour" if self.encoding.colors else "id"
        shown = ", ".join(_value(value, colors=bool(self.encoding.colors)) for value in found[:3])
        shown += ", ..." if len(found) > 3 else ""
        allowed = f"{len(self._table)} colours" if self.encoding.colors else ranges(self._table)
        return f"unknown {what} {shown} at {values.size} pixels; the table has {allowed}"


@dataclass(frozen=True)
class Drawing:
    """The content of a label file as stored: classes (H, W), EXIF orientation, and the objects if it has them."""

    label: NDArray[np.uint8]
    orientation: int = UPRIGHT
    objects: Objects | None = None

    def turned(self, orientation: int) -> Drawing:
        """Turned upright according to the EXIF ``orientation``."""
        if orientation == UPRIGHT or self.objects is None:
            return replace(self, label=turn(self.label, orientation))
        ids = turn(self.objects.ids.transpose(1, 2, 0), orientation).transpose(2, 0, 1)
        void = None if self.objects.void is None else turn(self.objects.void, orientation)
        boxes = None if self.objects.boxes is None else turn_boxes(self.objects.boxes, self.objects.size, orientation)
        objects = replace(self.objects, ids=np.ascontiguousarray(ids), void=void, boxes=boxes)
        return replace(self, label=turn(self.label, orientation), objects=objects)


@dataclass(frozen=True)
class Pair:
    """One image (H, W, 3) and, where there is one, its label (H, W) with the objects of data sets that have them."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    wide: bool  # the file has 16 bits
    objects: Objects | None = None


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
    drawn = read_label.read(store, item.label)
    if upright:
        drawn = _upright(drawn, image.shape[:2], turned, named)
    image = turn(image, turned)
    if drawn.label.shape != image.shape[:2]:
        sizes = " and ".join(f"{h} x {w}" for h, w in (drawn.label.shape, image.shape[:2]))
        note = "" if picture.orientation == UPRIGHT else f"; the image's EXIF orientation is {picture.orientation}"
        raise BadSample(f"{named} and its image have different sizes: {sizes} (height x width){note}")
    return Pair(image, drawn.label, picture.wide, drawn.objects)


def _upright(drawn: Drawing, stored: tuple[int, ...], orientation: int, name: str) -> Drawing:
    """The label turned like its image, whose ``stored`` size and EXIF ``orientation`` are given.

    A label without orientation may have been drawn on the stored or on the turned pixels. If the two sizes differ, its
    size tells which; otherwise it is an error.
    """
    own = drawn.orientation
    if own == orientation:
        return drawn.turned(own)
    if own == UPRIGHT and orientation > 4 and stored[0] != stored[1]:  # from 5 on height and width are swapped
        return drawn.turned(orientation) if drawn.label.shape == stored else drawn
    raise BadSample(
        f"{name} and its image have different EXIF orientations: {own} and {orientation} ({UPRIGHT}: upright); "
        "save both without it, turned the same way"
    )


def color_numbers(picture: Picture, name: str) -> Array:
    """The colours (H, W) of a label, each as one number: red, green and blue of 8 bits."""
    pixels = picture.rgb(name).astype(np.int32)
    return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]


def class_numbers(picture: Picture, name: str, channel: int | None = None) -> Array:
    """The numbers (H, W) of a label, of one channel if the file has several; :class:`BadSample` names ``name``."""
    bands, mode, pixels = len(picture.image.getbands()), picture.image.mode, picture.numbers()
    if channel is not None and bands > channel and bands > 1:
        pixels = pixels[..., channel]
    elif bands > 1:
        raise BadSample(f"{name}: is a picture with {bands} channels ({mode}); expected class numbers")
    elif channel is not None:
        raise BadSample(f"{name}: has one channel ({mode}); expected a file with three")
    if pixels.dtype.kind == "f":
        raise BadSample(f"{name}: has floating-point values ({mode}); expected class numbers")
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > 0xFFFF:
        raise BadSample(f"{name}: has values beyond 0-65535; expected class numbers")
    return pixels.astype(np.uint16)


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
