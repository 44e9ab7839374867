"""Label files -> maps of trainIds, by the record's encoding. A value that the encoding lacks is an error."""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from segdistill.data.archives import BadSample, Store
from segdistill.data.catalog import Encoding
from segdistill.data.index import Item

UNKNOWN = 254
"""Marks what a table lacks; so a label space has at most 254 classes."""

UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)
"""What Pillow raises for a file that is damaged or no image."""

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
        """The map (H, W) of trainIds in the file ``content``; :class:`BadSample` names the file ``name``."""
        numbers = self._colors(content, name) if self.encoding.colors else self._numbers(content, name)
        decoded = self._lookup[numbers]
        if (decoded == UNKNOWN).any():
            raise BadSample(f"{name}: {self._strange(numbers[decoded == UNKNOWN])}")
        return decoded

    def _colors(self, content: bytes, name: str) -> Array:
        with open_image(content, name) as image:
            pixels = np.asarray(_rgb(image)).astype(np.int32)
        return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]

    def _numbers(self, content: bytes, name: str) -> Array:
        with open_image(content, name) as image:
            bands, mode, pixels = len(image.getbands()), image.mode, np.asarray(image)
            low = _low_bytes(image, content)
        if low is not None:
            pixels = pixels.astype(np.uint16) << 8 | low
        if self.encoding.channel is not None and bands > self.encoding.channel and bands > 1:
            pixels = pixels[..., self.encoding.channel]
        elif bands > 1:
            raise BadSample(f"{name}: is a picture with {bands} channels ({mode}), where class numbers are expected")
        elif self.encoding.channel is not None:
            raise BadSample(f"{name}: has one channel ({mode}), the number is expected in a file with three")
        if pixels.dtype.kind == "f":
            raise BadSample(f"{name}: holds fractions ({mode}), where class numbers are expected")
        if pixels.dtype.itemsize > 2 and (pixels.min(initial=0) < 0 or pixels.max(initial=0) > 0xFFFF):
            raise BadSample(f"{name}: has values beyond 0-65535, where class numbers are expected")
        return pixels.astype(np.uint16)

    def _strange(self, values: Array) -> str:
        """What stands in a label and not in the table."""
        found = [int(value) for value in np.unique(values)]
        what = "colour" if self.encoding.colors else "id"
        shown = ", ".join(_value(value, colors=bool(self.encoding.colors)) for value in found[:3])
        shown += ", ..." if len(found) > 3 else ""
        allowed = f"{len(self._table)} colours" if self.encoding.colors else ranges(self._table)
        return f"unknown {what} {shown} at {values.size} pixels; the table has {allowed}"


def open_image(content: bytes, name: str) -> Image.Image:
    """The image file ``content``, decoded; :class:`BadSample` where it is damaged or none."""
    try:
        image = Image.open(BytesIO(content))
        image.load()
    except UnidentifiedImageError:
        raise BadSample(f"{name}: is no image that can be read ({len(content)} bytes)") from None
    except UNREADABLE as error:
        raise BadSample(f"{name}: is damaged: {error}") from None
    return image


def read_rgb(content: bytes, name: str) -> NDArray[np.uint8]:
    """The image file as (H, W, 3) RGB. Grey becomes three equal channels, 16 bits become their upper 8, alpha is
    dropped, CMYK and palettes are converted; a fraction image is an error.
    """
    with open_image(content, name) as image:
        return as_rgb(image, name)


def as_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """A Pillow image as :func:`read_rgb` gives it."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow gives as 16 or 32 bits
        grey = (np.clip(np.asarray(image), 0, 0xFFFF) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise BadSample(f"{name}: holds fractions (F), where an image of 8 or 16 bits is expected")
    return np.array(_rgb(image))


def read_pair(
    store: Store, item: Item, read_label: LabelReader | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """One image (H, W, 3) and, where there is a reader, its label (H, W); :class:`BadSample` where they are damaged or
    do not fit each other.
    """
    image = read_rgb(store.read(item.image), f"{store}: {item.image}")
    if read_label is None or item.label is None:
        return image, None
    label = read_label(store.read(item.label), f"{store}: {item.label}")
    if label.shape != image.shape[:2]:
        sizes = " and ".join(f"{h} x {w}" for h, w in (label.shape, image.shape[:2]))
        raise BadSample(f"{store}: {item.label} and its image have different sizes: {sizes} (height x width)")
    return image, label


def ranges(numbers: Iterable[int]) -> str:
    """``0-18, 255`` for the sorted numbers."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def _rgb(image: Image.Image) -> Image.Image:
    """As RGB; a palette with transparency goes by RGBA, which Pillow asks for."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _value(value: int, *, colors: bool) -> str:
    return f"({value >> 16}, {value >> 8 & 255}, {value & 255})" if colors else str(value)


def _low_bytes(image: Image.Image, content: bytes) -> Array | None:
    """Pillow keeps the upper byte of a PNG with several 16-bit channels; this is the lower one, else None."""
    probe: Any = Image.open(BytesIO(content))  # not loaded yet: it still says how its bytes are unpacked
    raw = probe.tile[0][3] if image.format == "PNG" and len(image.getbands()) > 1 else None
    if not (isinstance(raw, str) and raw.endswith(";16B")):
        return None
    probe.tile = [tile._replace(args=raw.replace(";16B", ";16L")) for tile in probe.tile]
    return np.asarray(probe)
