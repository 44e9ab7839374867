"""Reads COCO's annotation file and checks all of it first: types, then references.

All problems are reported in one line. `data/coco.py` paints the objects.
"""

from __future__ import annotations

import json
import posixpath
import unicodedata
from array import array
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Strict,
    Tag,
    ValidationError,
)  # fmt: skip

from segdistill.config import UserError
from segdistill.data.archives import BadSample, Store, is_text
from segdistill.data.decode import PIXELS
from segdistill.files import unique_keys

SHOWN = 3
"""Problems of one file that the message shows."""


def _whole(value: object) -> int:
    """An integer, or a float such as 40.0, which some tools write."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("expected a whole number")
    return value


def _side(value: object) -> int:
    if not 1 <= (side := _whole(value)) <= PIXELS:
        raise ValueError("expected a number of pixels")
    return side


def _run(value: object) -> int:
    if not 0 <= (run := _whole(value)) <= PIXELS:
        raise ValueError("expected a number of pixels, 0 or more")
    return run


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or not is_text(value):
        raise ValueError("expected a name: text without control characters")
    return value


def _crowd(value: object) -> bool:
    if value not in (None, 0, 1):  # also False and True
        raise ValueError("expected 0 or 1")
    return bool(value)


def _box(value: object) -> Sequence[float] | None:
    """Left, top, width, height; None or an empty list: the box is that of the mask."""
    if value is None or value == []:
        return None
    numbers = value if isinstance(value, list) and len(value) == 4 else []
    sound = [isinstance(each, int | float) and not isinstance(each, bool) and abs(each) <= PIXELS for each in numbers]
    if not numbers or not all(sound):
        raise ValueError("expected four numbers: left, top, width, height")
    return array("d", numbers)


def _some(value: object) -> object:
    return [] if value is None else value


def _form(value: object) -> str:
    return "runs" if isinstance(value, dict) else "polygons"


def _packed(values: list[float]) -> array:
    return array("d", values)


Whole = Annotated[int, PlainValidator(_whole)]
Side = Annotated[int, PlainValidator(_side)]
Name = Annotated[str, PlainValidator(_name)]
Polygon = Sequence[float]
"""Coordinates x, y, x, y, ..."""
_Read = Annotated[
    list[Annotated[float, Strict(), Field(ge=-PIXELS, le=PIXELS, allow_inf_nan=False)]], AfterValidator(_packed)
]
"""A polygon as read, kept as an array of doubles: a quarter of a list's memory."""


class _Entry(BaseModel):
    """Unknown keys, of which tools write many, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Runs(_Entry):
    """Run lengths in columns, plain or as COCO's text."""

    size: tuple[Side, Side]  # height, width
    counts: Annotated[str, Strict()] | list[Annotated[int, PlainValidator(_run)]]


class CocoImage(_Entry):
    """One image. ``file_name`` is as written; :func:`plain` makes it comparable."""

    id: Whole
    file_name: Name
    height: Side
    width: Side


class CocoObject(_Entry):
    """One object: a list of polygons x, y, x, y, ..., or run lengths; ``bbox``: left, top, width, height."""

    image_id: Whole
    category_id: Whole
    segmentation: Annotated[
        Annotated[list[_Read], Tag("polygons")] | Annotated[Runs, Tag("runs")],
        Discriminator(_form),
        BeforeValidator(_some),
    ] = []
    iscrowd: Annotated[bool, PlainValidator(_crowd)] = False
    bbox: Annotated[Polygon | None, PlainValidator(_box)] = None


class CocoCategory(_Entry):
    """One class."""

    id: Whole
    name: Name


class CocoFile(_Entry):
    """The parts of the file that are used."""

    images: list[CocoImage]
    annotations: list[CocoObject]
    categories: list[CocoCategory] = Field(min_length=1)


def read_coco(files: Store, name: str, *, boxes: bool = False) -> CocoFile:
    """The annotation file ``name`` of ``files``; a :class:`UserError` says what is wrong with it.

    With ``boxes`` an object may have a box alone, which must share pixels with its image.
    """
    path = f"{name} in {files}" if files.packed else files.where / name
    try:
        content = files.read(name)  # bytes, so that a byte order mark and UTF-16 work too
        values = json.loads(content, object_pairs_hook=unique_keys)
    except BadSample as error:
        raise UserError(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    parts = tuple(CocoFile.model_fields)
    if not isinstance(values, dict) or (missing := [part for part in parts if not isinstance(values.get(part), list)]):
        raise UserError(f"{path}: no list '{missing[0] if isinstance(values, dict) else parts[0]}'; "
                        f"a COCO file has {', '.join(parts)}")  # fmt: skip
    try:
        file = CocoFile.model_validate(values)
    except ValidationError as error:
        shown = [_line(problem) for problem in error.errors(include_url=False)[:SHOWN]]
        raise UserError(_summary(path, shown, error.error_count())) from None
    problems = list(_contradictions(file, boxes=boxes))
    if problems:
        raise UserError(_summary(path, problems[:SHOWN], len(problems)))
    return file


def plain(name: str) -> str:
    """A file name in comparable form: composed characters (NFC), forward slashes, ``.`` and ``..`` resolved."""
    return posixpath.normpath(unicodedata.normalize("NFC", name).replace("\\", "/"))


def stem(name: str) -> str:
    """The comparable name without its suffix, as the image's label has it."""
    path = PurePosixPath(plain(name))
    return str(path.with_suffix("")) if path.name else str(path)


def _contradictions(file: CocoFile, *, boxes: bool) -> Iterator[str]:
    """Contradictions between entries."""
    yield from _twice("images: the id", (image.id for image in file.images))
    yield from _twice("images: the name", (plain(image.file_name) for image in file.images))
    if len({plain(image.file_name) for image in file.images}) == len(file.images):
        yield from _twice("images: the name without its suffix", (stem(image.file_name) for image in file.images))
    yield from _twice("categories: the id", (category.id for category in file.categories))
    for image in file.images:
        if image.height * image.width > PIXELS:
            yield f"image {image.file_name!r} of {image.height} x {image.width} pixels is too large"
    images, categories = {image.id: image for image in file.images}, {category.id for category in file.categories}
    for number, entry in enumerate(file.annotations):
        where = f"annotations.{number}"
        if entry.category_id not in categories:
            yield f"{where}: category {entry.category_id} is not in the file's list"
        image = images.get(entry.image_id)
        if image is None:
            yield f"{where}: image {entry.image_id} is not in the file's list"
        else:
            alone = boxes and entry.bbox is not None
            lines = _no_box(entry.bbox or (), image) if alone else _impossible(entry.segmentation, image)
            yield from (f"{where} of {image.file_name!r}: {line}" for line in lines)


def _no_box(box: Sequence[float], image: CocoImage) -> Iterator[str]:
    """Reasons why ``box`` (left, top, width, height) holds nothing of the image."""
    left, top, width, height = box
    shown = f"its box ({left:g}, {top:g}, {width:g}, {height:g}: left, top, width, height)"
    if width <= 0 or height <= 0:
        yield f"{shown} has no area"
    elif left + width <= 0 or top + height <= 0 or left >= image.width or top >= image.height:
        yield f"{shown} is outside of the image of {image.height} x {image.width} (height x width)"


def _impossible(segmentation: Sequence[Polygon] | Runs, image: CocoImage) -> Iterator[str]:
    """Reasons why one object cannot be painted."""
    if not isinstance(segmentation, Runs):
        if not segmentation:
            yield ("an object without polygons or run lengths; if the file has only boxes, set boxes: true and use "
                   "task: detection")  # fmt: skip
        for polygon in segmentation:
            if len(polygon) < 6 or len(polygon) % 2:
                yield f"a polygon with {len(polygon)} numbers; x and y of three corners are needed"
        return
    height, width = segmentation.size
    if (height, width) != (image.height, image.width):
        yield f"run lengths for {height} x {width}, the image has {image.height} x {image.width} (height x width)"
    elif isinstance(segmentation.counts, list) and (total := sum(segmentation.counts)) != height * width:
        yield f"run lengths of {total} pixels for {height} x {width} (height x width)"


def _twice(what: str, values: Iterable[Hashable]) -> Iterator[str]:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            yield f"{what} {value!r} appears twice"
        seen.add(value)


def _line(problem: Any) -> str:
    """One problem of pydantic: where, what is expected, what was given."""
    where = ".".join(str(step) for step in problem["loc"] if step not in ("polygons", "runs"))
    got = repr(problem["input"])
    came = "" if problem["type"] == "missing" else f", got {got[:60]}{'...' * (len(got) > 60)}"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{came}"


def _summary(path: object, shown: list[str], count: int) -> str:
    more = f"{count} problems, such as " if count > len(shown) else ""
    return f"{path}: {more}{'; '.join(shown)}"
