"""Data sets of a user's own, in folders and in COCO's form, and label files of few bits that Pillow does not write."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from io import BytesIO

import numpy as np
import yaml
from PIL import Image

from tiny_sets import picture

H, W = 8, 12
HALVES = np.repeat(np.array([0, 1], np.uint8), H // 2)[:, None].repeat(W, axis=1)  # as many 0 as 1
SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]
RUNS = {"size": [H, W], "counts": [9, 4, 4, 4, 4, 4, H * W - 29]}  # three columns of four
COCO = {
    "images": [{"id": i, "file_name": f"{name}.jpg", "height": H, "width": W} for i, name in ((1, "a"), (2, "b"))],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": SQUARE, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 7, "segmentation": RUNS},
    ],
    "categories": [{"id": 1, "name": "car"}, {"id": 7, "name": "bus"}],
}


def encoded(array, kind="PNG", orientation=1, **more):
    """The array as a file's content, with an EXIF orientation unless it is 1."""
    exif = Image.Exif()
    exif[274] = orientation
    out = BytesIO()
    more |= {"exif": exif.tobytes()} if orientation != 1 else {}
    Image.fromarray(array).save(out, kind, **more)
    return out.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def folders(root, label, *, ending="png", image=None, **settings):
    """A set of two images with one label each; the description is ``settings``."""
    for split in ("train", "val"):
        for number in range(2):
            put(root / f"images/{split}/{number}.png", image or encoded(picture(number, (H, W))))
            put(root / f"labels/{split}/{number}.{ending}", label)
    put(root / "dataset.yaml", yaml.safe_dump(settings).encode())
    return root / "dataset.yaml"


def coco(root, *, change=lambda content: None, encode=lambda text: text.encode(), images=("a", "b")):
    """A set of two images with an object each; ``change`` edits the annotation file's content."""
    content = copy.deepcopy(COCO)
    change(content)
    for name in images:
        put(root / f"images/{name}.jpg", encoded(picture(1, (H, W)), "JPEG"))
    put(root / "train.json", encode(json.dumps(content)))
    settings = {"layout": "coco", "annotations": {"train": "train.json"}, "background": "ground"}
    put(root / "dataset.yaml", yaml.safe_dump(settings).encode())
    return root / "dataset.yaml"


def packed(values, bits):
    """Rows of samples, each row filled up to whole bytes."""
    shifts = np.arange(bits)[::-1]
    flat = (np.asarray(values)[..., None] >> shifts & 1).reshape(len(values), -1)
    return np.packbits(flat.astype(np.uint8), axis=1)


def grey_png(values, bits):
    """Grey PNG as its specification describes it; Pillow writes none of 2 or 4 bits."""
    height, width = np.shape(values)
    rows = b"".join(b"\0" + row.tobytes() for row in packed(values, bits))

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def grey_tiff(values, bits, photometric, **more):
    """Uncompressed grey TIFF with one strip, by its specification. photometric 0: 0 is white."""
    height, width = np.shape(values)
    strip = packed(values, bits).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(strip)}
    tags |= {int(number.removeprefix("tag_")): value for number, value in more.items()}
    entries = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)
