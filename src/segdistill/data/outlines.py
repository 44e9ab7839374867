"""Cityscapes' ``*_gtFine_polygons.json`` painted as instanceIds, with the rules of cityscapesscripts 2.3:

later polygons cover earlier ones; objects of a class with instances are numbered from 0 in their order and get
id * 1000 + number; ``...group`` labels and other classes get their plain id; deleted objects and negative ids are left
out; the rest is id 0.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segdistill.data.archives import BadSample
from segdistill.data.catalog.things import CITYSCAPES_NAMES, COUNTED

EACH = 1000
"""Numbers per class."""

LARGEST, FARTHEST = 1 << 27, 1 << 20
"""Most pixels of an image, and the farthest coordinate of a polygon; Cityscapes has 2^21 and less than 2^12."""


def painted(content: bytes, name: str) -> NDArray[np.int32]:
    """The instanceIds (H, W) of the polygons in ``content``; :class:`BadSample` names the file ``name``."""
    try:
        values = json.loads(content)
        height, width, entries = values["imgHeight"], values["imgWidth"], values["objects"]
    except (ValueError, RecursionError) as error:
        raise BadSample(f"{name}: is not valid JSON: {error}") from None
    except (KeyError, TypeError):
        raise BadSample(f"{name}: expected Cityscapes polygons: imgHeight, imgWidth and objects") from None
    sides = [side for side in (height, width) if isinstance(side, int) and side > 0]
    if len(sides) < 2 or height * width > LARGEST or not isinstance(entries, list):
        raise BadSample(f"{name}: imgHeight and imgWidth must be pixels and objects a list")
    image = Image.new("I", (width, height), 0)
    pen, counts = ImageDraw.Draw(image), dict.fromkeys(COUNTED, 0)
    for number, entry in enumerate(entries):
        label, corners = _entry(entry, f"{name}: object {number}")
        if entry.get("deleted"):
            continue
        group = label not in CITYSCAPES_NAMES
        kind = label.removesuffix("group") if group else label
        value = CITYSCAPES_NAMES.get(kind)
        if value is None:
            raise BadSample(f"{name}: object {number} has the unknown label '{label}'; allowed: Cityscapes' own")
        if kind in counts and not group:
            if counts[kind] == EACH:
                raise BadSample(f"{name}: more than {EACH} objects of '{kind}'")
            value, counts[kind] = value * EACH + counts[kind], counts[kind] + 1
        if value >= 0:
            pen.polygon(corners, fill=value)
    return np.asarray(image)


def _entry(entry: Any, where: str) -> tuple[str, list[tuple[float, float]]]:
    """Label and corners of one object."""
    try:
        label, corners = entry["label"], [(float(x), float(y)) for x, y in entry["polygon"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadSample(f"{where} has no label, or a polygon that is not a list of x and y") from None
    if not isinstance(label, str) or len(corners) < 2 or not (np.abs(corners) <= FARTHEST).all():
        raise BadSample(f"{where} needs a label and a polygon with at least two corners near the image")
    return label, corners
