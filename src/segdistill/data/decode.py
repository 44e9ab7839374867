"""Image files as they are stored: pixels, label numbers, EXIF orientation. What is damaged is an error."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
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
"""What Pillow raises for a file that is damaged or no image."""

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
"""What is read, whatever the name's ending: others run programs (EPS) or have no pixels of their own."""

PIXELS = 1 << 31
"""An image with more is refused: no memory holds it."""

UPRIGHT = 1
"""The EXIF orientation of an image that is stored as it is seen."""

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


@dataclass(frozen=True)
class Picture:
    """A decoded file. ``image`` has the pixels in the order in which they are stored."""

    image: Image.Image
    orientation: int  # EXIF's, 1 to 8
    depth: int  # bits of a sample in the file
    inverted: bool  # 0 is white, and Pillow has turned it round
    signed: bool
    lossy: str  # the compression that does not keep every value; empty: there is none
    low: Array | None  # the lower bytes of 16-bit channels, of which Pillow keeps the upper ones

    @property
    def wide(self) -> bool:
        """Whether its samples have more than 8 bits."""
        return self.depth == 16 or self.image.mode.startswith("I")

    def rgb(self, name: str = "") -> NDArray[np.uint8]:
        """(H, W, 3). Grey becomes three equal channels, 16 bits become their upper 8, alpha is dropped, CMYK and
        palettes are converted; a fraction image is an error that names the file ``name``.
        """
        if self.image.mode.startswith("I"):  # 16-bit grey, which Pillow gives as 16 or 32 bits
            grey = (np.clip(np.asarray(self.image), 0, 0xFFFF) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if self.image.mode == "F":
            raise BadSample(f"{name}: holds fractions (F), where an image of 8 or 16 bits is expected")
        with _decoding(name):
            return np.array(_rgb(self.image))

    def numbers(self) -> Array:
        """The samples as the file has them: (H, W) or (H, W, channels)."""
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
    """The image file ``content``, decoded; :class:`BadSample` names the file ``name`` where it is damaged or none."""
    with _decoding(name, len(content)):
        image: Any = Image.open(BytesIO(content), formats=FORMATS)
        if image.width * image.height > PIXELS:
            raise BadSample(f"{name}: has {image.width} x {image.height} pixels; at most {PIXELS:,} can be read")
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
        elif orientation != UPRIGHT:  # Pillow has turned it, and its turned copy is no file any more
            image = image.transpose(_UNDO[orientation])
        return Picture(image, orientation, depth, inverted, signed, lossy, _low_bytes(image, content))


def open_image(content: bytes, name: str) -> Image.Image:
    """The decoded image of :func:`open_picture`."""
    return open_picture(content, name).image


def read_rgb(content: bytes, name: str) -> NDArray[np.uint8]:
    """The image file as (H, W, 3) RGB, as it is stored."""
    return open_picture(content, name).rgb(name)


def turn(pixels: Array, orientation: int) -> Array:
    """``pixels`` (H, W, ...) as they are seen, where the file's EXIF ``orientation`` says how they are stored."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


@contextmanager
def _decoding(name: str, size: int = 0) -> Iterator[None]:
    """Images of any size, no warnings, and one line for whatever Pillow raises."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # Pillow's guard against images larger than 179 megapixels; ours is PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF data and the like, which does no harm to the pixels
            yield
    except BadSample:
        raise
    except (UnidentifiedImageError, KeyError):
        raise BadSample(f"{name}: is no image that can be read ({size} bytes)") from None
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadSample(f"{name}: is damaged: {reason}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _rgb(image: Image.Image) -> Image.Image:
    """As RGB; a palette with transparency goes by RGBA, which Pillow asks for."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _need_one_image(image: Any, name: str) -> None:
    """Refuse several pages or frames; a preview and the smaller copies of a pyramid are no images of their own."""
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if image.format == "TIFF":
        copies = 0
        for frame in range(1, frames):
            image.seek(frame)
            copies += _tag(image, _SUBFILE, 0) & 1
        frames -= copies
        image.seek(0)
    if frames > 1:
        raise BadSample(f"{name}: holds {frames} images; a file of one image is expected, so save them one by one")


def _tag(image: Any, number: int, default: int) -> int:
    """A number of a TIFF file's directory; of several, one per channel, the first."""
    value = image.tag_v2.get(number, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; where its data is damaged there is none."""
    try:
        value = image.getexif().get(_ORIENTATION, UPRIGHT)
    except UNREADABLE:
        return UPRIGHT
    return value if isinstance(value, int) and UPRIGHT <= value <= 8 else UPRIGHT


def _lossy_webp(content: bytes) -> bool:
    """Whether a WebP file has a lossy image: chunk ``VP8 ``, alone, in an extended file, or in a frame of one."""
    place = 12
    while place + 8 <= len(content):
        kind, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        if kind == b"VP8 " or (kind == b"ANMF" and content[place + 24 : place + 28] == b"VP8 "):
            return True
        place += 8 + size + size % 2
    return False


def _low_bytes(image: Image.Image, content: bytes) -> Array | None:
    """Pillow keeps the upper byte of a PNG with several 16-bit channels; this is the lower one, else None."""
    if image.format != "PNG" or len(image.getbands()) == 1:
        return None
    probe: Any = Image.open(BytesIO(content), formats=("PNG",))  # not loaded: it still says how bytes are unpacked
    raw = probe.tile[0][3]
    if not (isinstance(raw, str) and raw.endswith(";16B")):
        return None
    probe.tile = [tile._replace(args=raw.replace(";16B", ";16L")) for tile in probe.tile]
    return np.asarray(probe)
