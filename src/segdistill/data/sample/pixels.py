"""Arrays as image files in the formats of data sets; the same pixels give the same bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Palette = Sequence[Sequence[int]] | NDArray[np.uint8]


def png(array: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """(H, W) or (H, W, 3) uint8, or (H, W) uint16, as PNG."""
    return _saved(Image.fromarray(array), "PNG")


def png_indexed(label: NDArray[np.uint8], palette: Palette) -> bytes:
    """(H, W) uint8 indices as a palettised PNG; indices beyond ``palette`` are shown black."""
    image = Image.fromarray(label)  # mode L
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    image.putpalette(colors.ravel().tolist())  # now mode P, pixels unchanged
    return _saved(image, "PNG")


def png_rgb16(array: NDArray[np.uint16]) -> bytes:
    """(H, W, 3) uint16 as PNG with 16 bits per channel, which Pillow can neither write nor read.

    PNG specification, sections 5 and 9: signature, header (colour type 2), one compressed block of rows that each
    open with filter type 0, end; numbers are big-endian.
    """
    height, width, _ = array.shape
    rows = np.zeros((height, 1 + 6 * width), np.uint8)
    rows[:, 1:] = array.astype(">u2").view(np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    body = [struct.pack(">I", len(data)) + kind + data + _crc(kind + data) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def jpeg(array: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 as JPEG."""
    return _saved(Image.fromarray(array), "JPEG", quality=95)


def tiff(array: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 as uncompressed TIFF."""
    return _saved(Image.fromarray(array), "TIFF")


def _saved(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))
