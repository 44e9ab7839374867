"""Reads Pascal VOC's XML annotations: the boxes of one image.

Their numbers count pixels from 1 and include the last one, so the box (xmin, ymin, xmax, ymax) covers
(xmin - 1, ymin - 1, xmax, ymax) in coordinates from the image's corner. Difficult objects are crowds: neither learned
nor counted. An image without objects is a valid negative example.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from segdistill.config import nearest
from segdistill.data.archives import BadSample, Store
from segdistill.data.catalog import IGNORE
from segdistill.data.decode import PIXELS, Picture
from segdistill.data.labels import Drawing, LabelReader
from segdistill.objects import Objects

CORNERS = ("xmin", "ymin", "xmax", "ymax")
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """The content of one file: ``size`` (H, W) of its image, and of each object its class, its box and a flag."""

    size: tuple[int, int]
    names: list[str]
    boxes: list[Box]  # left, top, right, bottom in pixels from the image's corner
    difficult: list[bool]
    image: str  # the name that it states; may be empty


class BoxReader(LabelReader):
    """Decodes annotations whose classes are the names of an encoding; every pixel of their class maps is ignored."""

    def read(self, store: Store, name: str) -> Drawing:
        """The boxes in the annotation ``name``."""
        objects = self.boxes(store.read(name), f"{store}: {name}")
        return Drawing(np.full(objects.size, IGNORE, np.uint8), objects=objects)

    def decode(self, picture: Picture, name: str) -> NDArray[np.uint8]:
        """Pictures have no boxes."""
        raise BadSample(f"{name}: is a picture; expected Pascal VOC's XML")

    def boxes(self, content: bytes, name: str) -> Objects:
        """The objects of the annotation ``content``, in its order; :class:`BadSample` names ``name``."""
        found, known = annotation(content, name), self.encoding.names
        for number, kind in enumerate(found.names, 1):
            if kind not in known:
                hint = f"{nearest(kind, known)}allowed: {', '.join(known)}"
                raise BadSample(f"{name}: object {number}: unknown class '{kind[:40]}': {hint}")
        return Objects.of_boxes(found.boxes, [known[kind] for kind in found.names], found.difficult, found.size)


def annotation(content: bytes, name: str) -> Annotation:
    """What the file ``name`` says; a :class:`BadSample` if it is no annotation, or a box is impossible."""
    try:
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise BadSample(f"{name}: is not readable XML: {error}") from None
    if root.tag != "annotation":
        raise BadSample(f"{name}: is not Pascal VOC's XML: its root is '{root.tag[:40]}', not 'annotation'")
    height, width = (int(_number(root, f"size/{side}", name)) for side in ("height", "width"))
    if not (height > 0 and width > 0 and height * width <= PIXELS):
        raise BadSample(f"{name}: an image of {height} x {width} pixels (height x width)")
    found = Annotation((height, width), [], [], [], (root.findtext("filename") or "").strip())
    for number, entry in enumerate(root.findall("object"), 1):
        where = f"{name}: object {number}"
        found.names.append((entry.findtext("name") or "").strip())
        found.boxes.append(_box(entry, (height, width), where))
        found.difficult.append(_flag(entry, where))
    return found


def _box(entry: ElementTree.Element, size: tuple[int, int], where: str) -> Box:
    """The box of an object, which must share pixels with the image of ``size`` (H, W)."""
    left, top, right, bottom = (_number(entry, f"bndbox/{corner}", where) for corner in CORNERS)
    left, top = left - 1, top - 1
    shown = f"({left + 1:g}, {top + 1:g}, {right:g}, {bottom:g})"
    if right <= left or bottom <= top:
        raise BadSample(f"{where}: its box {shown} has no area: xmax is below xmin, or ymax below ymin")
    if right <= 0 or bottom <= 0 or left >= size[1] or top >= size[0]:
        raise BadSample(f"{where}: its box {shown} is outside of the image of {size[0]} x {size[1]} (height x width)")
    return left, top, right, bottom


def _number(entry: ElementTree.Element, path: str, where: str) -> float:
    text = (entry.findtext(path) or "").strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= PIXELS:
        raise BadSample(f"{where}: '{path}' is '{text[:40]}'; expected a number of pixels")
    return value


def _flag(entry: ElementTree.Element, where: str) -> bool:
    text = (entry.findtext("difficult") or "0").strip()
    if text not in ("0", "1"):
        raise BadSample(f"{where}: 'difficult' is '{text[:40]}'; expected 0 or 1")
    return text == "1"
