"""Decodes image files: pixels, label numbers, EXIF orientation. Damaged files are errors."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from segdistill.data.archives import BadSample

Array = NDArray[Any]

UNREADABLE = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    SyntaxError, TypeError, ValueError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
"""Exceptions of Pillow for damaged files and files that are not images."""

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
"""Supported formats, whatever the suffix; others run programs (EPS) or contain no pixels."""

PIXELS = 1 << 31
"""Most pixels of an image; larger ones would not fit into memory."""

UPRIGHT = 1
"""The EXIF orientation of an image that is stored upright."""

_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_LOSSY = {"JPEG": "JPEG", "MPO": "JPEG", "JPEG2000": "JPEG 2000", "AVIF": "AVIF"}
_LOSSY_TIFF = {6: "JPEG", 7: "JPEG", 34712: "JPEG 2000", 50001: "WebP"}
_SUBFILE, _ORIENTATION, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 274, 258, 259, 262, 339  # TIFF, EXIF
_WIDTH, _HEIGHT = 256, 257


@dataclass(frozen=True)
class Picture:
    """A decoded file. ``image`` has the pixels in the order in which they are stored."""

    image: Image.Image
    orientation: int  # EXIF's, 1 to 8
    depth: int  # bits per channel in the file
    inverted: bool  # 0 is white in the file, and Pillow has inverted it
    signed: bool
    lossy: str  # name of a lossy compression; empty: lossless
    low: Array | None  # the lower bytes of 16-bit channels, of which Pillow keeps the upper ones

    @property
    def wide(self) -> bool:
        """Whether its channels have more than 8 bits."""
        return self.depth == 16 or self.image.mode.startswith("I")

    def rgb(self, name: str) -> NDArray[np.uint8]:
        """(H, W, 3). Grey is repeated in three channels, 16 bits are cut to the upper 8, alpha is dropped, CMYK and
        palettes are converted; a floating-point image is an error that names the file ``name``.
        """
        if self.image.mode.startswith("I"):  # 16-bit grey, which Pillow gives as 16 or 32 bits
            grey = (np.clip(np.asarray(self.image), 0, 0xFFFF) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if self.image.mode == "F":
            raise BadSample(f"{name}: has floating-point values (F); expected an image of 8 or 16 bits")
        with _decoding(name):
            return np.array(_rgb(self.image))

    def numbers(self) -> Array:
        """The stored values: (H, W) or (H, W, channels)."""
        pixels = np.asarray(self.image)
        if self.low is not None:
            return pixels.astype(np.uint16) << 8 | self.low
        if self.image.mode not in ("1", "L"):
            return pixels
        if self.inverted:
            pixels = ~pixels
        if self.depth in (2, 4):  # Pillow stretches them to 0-255
            pixels = pixels // np.uint8(255 // (2**self.depth - 1))
        return pixels.view(np.int8) if self.signed and self.depth == 8 else pixels


def open_picture(content: bytes, name: str) -> Picture:
    """The decoded image file ``content``; a :class:`BadSample` that names ``name`` if it is damaged or not an image."""
    with _decoding(name, len(content)):
        image: Any = Image.open(BytesIO(content), formats=FORMATS)
        _stored(image, name)
        kind = str(image.format)
        tiff = kind == "TIFF"
        depth = content[24] if kind == "PNG" else _tag(image, _BITS, 1) if tiff else 8
        lossy = _LOSSY.get(kind, "")
        if tiff:
            lossy = _LOSSY_TIFF.get(_tag(image, _COMPRESSION, 1), "")
        elif kind == "WEBP" and _lossy_webp(content):
            lossy = "WebP"
        inverted = tiff and _tag(image, _PHOTOMETRIC, 0) == 0
        signed = tiff and _tag(image, _SAMPLE_FORMAT, 1) == 2
        orientation = _orientation(image) if tiff else UPRIGHT
        _need_one_image(image, name)
        image.load()
        if not tiff:
            orientation = _orientation(image)
        elif orientation != UPRIGHT:  # Pillow rotated it, and the rotated copy has lost the file's metadata
            image = image.transpose(_UNDO[orientation])
        return Picture(image, orientation, depth, inverted, signed, lossy, _low_bytes(image, content))


def stored_size(content: bytes, name: str) -> tuple[int, int]:
    """(H, W) of the image file ``content`` as its pixels are stored, from its header."""
    with _decoding(name, len(content)), Image.open(BytesIO(content), formats=FORMATS) as image:
        return _stored(image, name)


def upright_size(path: Path) -> tuple[int, int]:
    """(H, W) of the image file ``path`` turned upright, from its header; :class:`BadSample` if it is not an image."""
    name = str(path)
    size = path.stat().st_size if path.is_file() else 0
    with _decoding(name, size), Image.open(path, formats=FORMATS) as image:
        height, width = _stored(image, name)
        return (width, height) if _orientation(image) > 4 else (height, width)


def plain_jpeg(content: bytes) -> tuple[int, int] | None:
    """(H, W) of an upright JPEG file with three 8-bit channels; None for every other file. Only its header is read."""
    with suppress(*UNREADABLE):
        image: Any = Image.open(BytesIO(content), formats=("JPEG",))
        small = image.width * image.height <= PIXELS
        if image.format == "JPEG" and image.mode == "RGB" and small and _orientation(image) == UPRIGHT:
            return image.height, image.width
    return None


def open_image(content: bytes, name: str) -> Image.Image:
    """The decoded image of :func:`open_picture`."""
    return open_picture(content, name).image


def read_rgb(content: bytes, name: str) -> NDArray[np.uint8]:
    """The image file as (H, W, 3) RGB, in stored orientation."""
    return open_picture(content, name).rgb(name)


def turn(pixels: Array, orientation: int) -> Array:
    """``pixels`` (H, W, ...) turned upright according to the file's EXIF ``orientation``."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def turn_boxes(boxes: NDArray[np.float64], size: tuple[int, int], orientation: int) -> NDArray[np.float64]:
    """Boxes (N, 4) in an image of ``size`` (H, W) turned like its pixels by :func:`turn`."""
    left, top, right, bottom = boxes.T
    height, width = size
    if orientation in (5, 6, 7, 8):
        left, top, right, bottom, height, width = top, left, bottom, right, width, height
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        top, bottom = height - bottom, height - top
    return np.stack([left, top, right, bottom], axis=1)


@contextmanager
def _decoding(name: str, size: int = 0) -> Iterator[None]:
    """Lifts Pillow's size limit, silences its warnings, and turns its exceptions into one line."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # Pillow's guard against images larger than 179 megapixels; ours is PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF data and the like, which does not affect the pixels
            yield
    except BadSample:
        raise
    except (UnidentifiedImageError, KeyError):
        raise BadSample(f"{name}: is not a readable image ({size} bytes)") from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadSample(f"{name}: is damaged: {reason}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _rgb(image: Image.Image) -> Image.Image:
    """As RGB; a palette with transparency is converted to RGBA first, as Pillow requires."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _need_one_image(image: Any, name: str) -> None:
    """Refuse files with several pages or frames; previews and pyramid levels do not count."""
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if image.format == "TIFF":
        copies = 0
        for frame in range(1, frames):
            image.seek(frame)
            copies += _tag(image, _SUBFILE, 0) & 1
        frames -= copies
        image.seek(0)
    if frames > 1:
        raise BadSample(f"{name}: contains {frames} images; expected one image per file, so save them separately")


def _stored(image: Any, name: str) -> tuple[int, int]:
    """(H, W) as stored, whether or not Pillow gives that of a TIFF file upright; an error beyond :data:`PIXELS`."""
    tiff = image.format == "TIFF"
    height, width = (_tag(image, _HEIGHT, 0), _tag(image, _WIDTH, 0)) if tiff else (image.height, image.width)
    if width * height > PIXELS:
        raise BadSample(f"{name}: has {width} x {height} pixels; at most {PIXELS:,} can be read")
    return height, width


def _tag(image: Any, number: int, default: int) -> int:
    """A number in a TIFF file's directory; the first, if there is one per channel."""
    value = image.tag_v2.get(number, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; damaged EXIF data counts as none."""
    try:
        value = image.getexif().get(_ORIENTATION, UPRIGHT)
    except UNREADABLE:
        return UPRIGHT
    return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT


def _lossy_webp(content: bytes) -> bool:
    """Whether a WebP file is lossy: it has a chunk ``VP8 ``, alone, in an extended file or in a frame."""
    place = 12
    while place + 8 <= len(content):
        kind, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if kind == b"VP8 " or (kind == b"ANMF" and content[place + 24 : place + 28] == b"VP8 "):
            return True
        place += 8 + size + size % 2
    return False


def _low_bytes(image: Image.Image, content: bytes) -> Array | None:
    """The lower bytes of a PNG with several 16-bit channels, of which Pillow keeps the upper ones; else None."""
    if image.format != "PNG" or len(image.getbands()) == 1:
        return None
    probe: Any = Image.open(BytesIO(content), formats=("PNG",))  # not loaded yet, so that the unpacking can be changed
    raw = probe.tile[0][3]
    if not (isinstance(raw, str) and raw.endswith(";16B")):
        return None
    probe.tile = [tile._replace(args=raw.replace(";16B", ";16L")) for tile in probe.tile]
    return np.asarray(probe)
