"""LabelMe's JSON, Pascal VOC's XML and YOLO's text files as COCO files, which `data/coco.py` reads. Imports no torch.

LabelMe has one file per image: polygons, rectangles and circles in pixels, masks as PNG in base64. Shapes with the same
label and ``group_id`` are parts of one object; ``__ignore__`` marks ignored pixels, ``_background_`` the background.
YOLO has one text file per image, an object per line: the number of its class, then x and y of its corners, or of the
centre of its box, its width and height, as shares of the image's. Pascal VOC has one XML file per image with boxes. All
describe images that are turned upright as their EXIF entry says.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import posixpath
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as tools
from PIL import Image

from segdistill.config import UserError
from segdistill.data.archives import BadSample
from segdistill.data.decode import UNREADABLE, upright_size
from segdistill.data.own_sets import read_json
from segdistill.data.voc_xml import annotation
from segdistill.objects import encode_crop

WRITTEN = "written by segdistill init from the files of another tool"
"""The ``info`` of the COCO files made here."""

IGNORED, BACKGROUND = "__ignore__", ("_background_", "background")
CORNERS = 32  # of the polygon that stands for a circle
NEAR = 0.1  # how far outside the image YOLO's corners may lie, as a share of its side


@dataclass
class Drawn:
    """An object: the name of its class, and in COCO's form its ``segmentation`` or its ``box``."""

    label: str
    segmentation: Any
    box: list[float] | None = None  # left, top, width, height
    crowd: bool = False


@dataclass
class DrawnImage:
    """An annotated image; ``size`` is its upright (height, width)."""

    path: PurePosixPath
    size: tuple[int, int]
    objects: list[Drawn] = field(default_factory=list)


def labelme(folder: Path, candidates: Sequence[PurePosixPath], images: Sequence[PurePosixPath]) -> list[DrawnImage]:
    """The images that LabelMe's files among ``candidates`` describe; other files are left out."""
    found, named = [], _by_name(images)
    for path in candidates:
        values = read_json(folder / path)
        if not isinstance(values, dict) or not {"shapes", "imagePath"} <= values.keys():
            continue
        image = _image_of(path, str(values["imagePath"]), named)
        if image is None:
            raise UserError(f"{folder / path}: its image '{values['imagePath']}' is not in {folder}; put it there")
        drawn = DrawnImage(image, upright_size(folder / image))
        stated = values.get("imageHeight"), values.get("imageWidth")
        if None not in stated:
            _check_size(drawn, stated, folder / path)
        drawn.objects = list(_shapes(values["shapes"], drawn.size, str(folder / path)))
        found.append(drawn)
    return found


def voc(folder: Path, candidates: Sequence[PurePosixPath], images: Sequence[PurePosixPath]) -> list[DrawnImage]:
    """The images that Pascal VOC's files among ``candidates`` describe; difficult objects are crowds."""
    found, named = [], _by_name(images)
    for path in candidates:
        content = (folder / path).read_bytes()
        if b"<annotation" not in content[:4096]:
            continue
        try:
            stated = annotation(content, str(folder / path))
        except BadSample as error:
            raise UserError(str(error)) from None
        image = _image_of(path, stated.image or path.stem, named)
        if image is None:
            raise UserError(f"{folder / path}: its image '{stated.image}' is not in {folder}; put it there")
        drawn = DrawnImage(image, upright_size(folder / image))
        _check_size(drawn, stated.size, folder / path)
        for name, box, difficult in zip(stated.names, stated.boxes, stated.difficult, strict=True):
            if not name:
                raise UserError(f"{folder / path} has an object without a name; give it one")
            left, top, right, bottom = box
            drawn.objects.append(Drawn(name, [], [left, top, right - left, bottom - top], difficult))
        found.append(drawn)
    return found


def yolo(
    folder: Path, pairs: Sequence[tuple[PurePosixPath, PurePosixPath]], names: Sequence[str], *, boxes: bool = False
) -> list[DrawnImage]:
    """The images of ``pairs`` (image, text file) with their objects; texts that do not start with numbers are left out.

    ``names`` of the classes; without them ``class_0``, ... With ``boxes`` an object may be a box.
    """
    found = []
    for image, label in pairs:
        text = (folder / label).read_text(encoding="utf-8-sig", errors="replace")
        if not set(text.partition("\n")[0]) <= set("0123456789.+-e \t\r"):
            continue
        drawn = DrawnImage(image, upright_size(folder / image))
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{folder / label}: line {number}"
            if line.strip():
                drawn.objects.append(_line(line.split(), drawn.size, names, where, boxes=boxes))
        found.append(drawn)
    return found


def class_names(images: Sequence[DrawnImage]) -> list[str]:
    """The classes of all objects, sorted; numbers in names by value."""
    names = {each.label for image in images for each in image.objects} - {IGNORED, BACKGROUND[1]}
    return sorted(names, key=lambda name: (name.rstrip("0123456789"), len(name), name))


def coco_text(images: Sequence[DrawnImage], names: Sequence[str]) -> str:
    """A COCO file of ``images`` with the categories ``names``; ignored parts are crowds, the background is left out."""
    numbers = {name: number for number, name in enumerate(names, 1)}
    entries = [
        {"id": number, "file_name": str(image.path), "height": image.size[0], "width": image.size[1]}
        for number, image in enumerate(images, 1)
    ]
    objects = [
        {"image_id": number, "category_id": numbers.get(each.label, 1), "segmentation": each.segmentation,
         "iscrowd": int(each.crowd or each.label == IGNORED)} | ({} if each.box is None else {"bbox": each.box})
        for number, image in enumerate(images, 1) for each in image.objects if each.label != BACKGROUND[1]
    ]  # fmt: skip
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    annotations = [{"id": number, **each} for number, each in enumerate(objects, 1)]
    return json.dumps({"info": {"description": WRITTEN}, "images": entries, "annotations": annotations,
                       "categories": categories}, ensure_ascii=False)  # fmt: skip


def _by_name(images: Sequence[PurePosixPath]) -> dict[str, list[PurePosixPath]]:
    """The images by name, with and without suffix."""
    named = defaultdict(list)
    for image in images:
        named[image.name].append(image)
        named[image.stem].append(image)
    return named


def _check_size(drawn: DrawnImage, stated: tuple[Any, Any], path: Path) -> None:
    """Raise a :class:`UserError` if the file ``path`` is for an image of another size."""
    if stated != drawn.size:
        raise UserError(f"{path} is for an image of {stated[0]} x {stated[1]} pixels (height x width), "
                        f"{drawn.path.name} has {drawn.size[0]} x {drawn.size[1]}")  # fmt: skip


def _image_of(path: PurePosixPath, stated: str, named: dict[str, list[PurePosixPath]]) -> PurePosixPath | None:
    """The image of the file ``path``: where the file says, or else the one of its name that shares the most folders.

    ``named``: the images by name, with and without suffix.
    """
    stated = stated.replace("\\", "/")
    name = stated.rpartition("/")[2]
    there = PurePosixPath(posixpath.normpath(path.parent / stated))
    alike = named.get(name) or named.get(path.stem, [])
    if there in alike:
        return there
    shared = [len(posixpath.commonprefix([each.parts[:-1], path.parts[:-1]])) for each in alike]
    near = [each for each, count in zip(alike, shared, strict=True) if count == max(shared)]
    beside = [each for each in near if each.parent == path.parent] or near
    return beside[0] if len(beside) == 1 else None


def _shapes(shapes: Any, size: tuple[int, int], name: str) -> Iterator[Drawn]:
    """The objects of a LabelMe file, grouped shapes as one."""
    if not isinstance(shapes, list):
        raise UserError(f"{name}: 'shapes' is not a list; save it again in LabelMe")
    groups: dict[Any, tuple[str, list[Any]]] = {}
    for number, shape in enumerate(shapes, 1):
        where = f"{name}: shape {number}"
        try:
            kind, label, points = shape.get("shape_type") or "polygon", shape["label"], shape["points"]
            corners = [(float(x), float(y)) for x, y in points]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{where} has no label, or points that are not a list of x and y") from None
        if not np.isfinite(corners).all():
            raise UserError(f"{where} has a point that is not finite; draw it again in LabelMe")
        if not isinstance(label, str) or not label.strip():
            raise UserError(f"{where} has no label; give it one in LabelMe")
        label = BACKGROUND[1] if label == BACKGROUND[0] else label.strip()
        mask = kind == "mask"
        part = _runs(shape.get("mask"), corners, size, where) if mask else _polygon(kind, corners, where)
        key = number if shape.get("group_id") is None else (label, str(shape["group_id"]))
        groups.setdefault(key, (label, []))[1].append(part)
    yield from (Drawn(label, _joined(parts, size)) for label, parts in groups.values())


def _joined(parts: list[Any], size: tuple[int, int]) -> Any:
    """One segmentation of the parts of an object: its polygons, or run lengths if a part has them."""
    polygons = [part for part in parts if isinstance(part, list)]
    runs = [part for part in parts if isinstance(part, dict)]
    if not runs:
        return polygons
    painted: Any = tools.frPyObjects(polygons, *size) if polygons else []
    return runs[0] if len(parts) == 1 else _as_text(tools.merge([*runs, *painted]))


def _polygon(kind: str, corners: list[tuple[float, float]], where: str) -> list[float]:
    """The outline of a polygon, a rectangle or a circle as x, y, x, y, ..."""
    if kind == "rectangle" and len(corners) == 2:
        (left, top), (right, bottom) = corners
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    elif kind == "circle" and len(corners) == 2:
        (x, y), radius = corners[0], math.dist(*corners)
        angles = (2 * math.pi * step / CORNERS for step in range(CORNERS))
        corners = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    elif kind not in ("polygon", "rectangle", "circle"):
        raise UserError(
            f"{where} is of type '{kind}', which covers no pixels; allowed: polygon, rectangle, circle, mask"
        )
    if len(corners) < 3:
        raise UserError(f"{where} has {len(corners)} points; a {kind} needs {'two' if kind != 'polygon' else 'three'}")
    return [value for corner in corners for value in corner]


def _runs(content: Any, corners: list[tuple[float, float]], size: tuple[int, int], where: str) -> dict[str, Any]:
    """Run lengths of a mask: a PNG in base64 that covers the rectangle between two corners."""
    try:
        with Image.open(BytesIO(base64.b64decode(content, validate=True))) as image:
            part = np.asarray(image.convert("L")) > 0
    except (*UNREADABLE, binascii.Error, TypeError, ValueError):
        raise UserError(f"{where} has a mask that is not a PNG") from None
    left, top = (round(min(each)) for each in zip(*corners, strict=True)) if corners else (0, 0)
    if left < 0 or top < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        raise UserError(f"{where} has a mask that extends beyond its image")
    return _as_text(encode_crop(part, (top, left), size))


def _as_text(runs: Any) -> dict[str, Any]:
    """Run lengths that JSON can hold."""
    counts = runs["counts"]
    return {"size": list(runs["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _line(words: Sequence[str], size: tuple[int, int], names: Sequence[str], where: str, *, boxes: bool) -> Drawn:
    """One object of a YOLO file."""
    try:
        number, numbers = int(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        raise UserError(f"{where}: expected the number of a class, then x and y of each corner") from None
    if len(numbers) == 4 and not boxes:
        raise UserError(f"{where} is a box, which does not say which pixels are the object; give its corners (YOLO's "
                        "form for segmentation), or use --task detection")  # fmt: skip
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        needed = "a box has four, an outline x and y of at least three corners" if boxes else "x and y of at least " \
                 "three corners are needed"  # fmt: skip
        raise UserError(f"{where} has {len(numbers)} numbers after its class; {needed}")
    if not all(-NEAR <= value <= 1 + NEAR for value in numbers):
        raise UserError(f"{where}: its numbers are shares of width and height, from 0 to 1")
    if number < 0 or (names and number >= len(names)):
        raise UserError(f"{where}: class {number} has no name; there are {len(names)} in names")
    label = names[number] if names else f"class_{number}"
    if len(numbers) > 4:
        scale = np.tile([size[1], size[0]], len(numbers) // 2)
        return Drawn(label, [(np.asarray(numbers) * scale).round(3).tolist()])
    x, y, width, height = numbers
    if min(width, height) <= 0:
        raise UserError(f"{where} is a box without area: its width is {width:g}, its height {height:g}")
    box = np.asarray([x - width / 2, y - height / 2, width, height]) * (size[1], size[0], size[1], size[0])
    return Drawn(label, [], box.round(3).tolist())
