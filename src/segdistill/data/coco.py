"""COCO JSON as label maps or objects: polygons and run lengths are painted when a label is read.

Larger objects are painted first, so that small ones in front stay visible; crowds are ignored. Pixels are those of the
COCO tools (faster-coco-eval): a polygon covers the pixels whose centres lie inside, to a quarter of a pixel; polygons
of one object are joined, and a polygon that crosses itself follows the even-odd rule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as tools
from numpy.typing import NDArray
from PIL import Image

from segdistill.config import UserError
from segdistill.data.archives import ABOVE, BadSample, Store
from segdistill.data.catalog import IGNORE
from segdistill.data.catalog.record import COCO_LABELS
from segdistill.data.coco_file import CocoFile, CocoImage, CocoObject, Polygon, Runs, plain, read_coco, stem
from segdistill.data.dataset import Split
from segdistill.objects import Objects

Mask = NDArray[np.bool_]

LONGEST = 2**20
"""Pixels along the outline of a polygon that is painted: the tools keep several points for each."""


@dataclass(frozen=True)
class Content:
    """One split's annotation file, indexed by image."""

    file: CocoFile
    images: dict[str, CocoImage]  # by :func:`stem`
    objects: dict[int, list[CocoObject]]  # by the image's id
    numbers: dict[int, int]  # category's id -> class


class CocoStore(Store):
    """Images of the store ``files`` whose labels come from annotation files in it, as PNG of class numbers below
    ``LABELS/split/``.
    """

    LABELS = COCO_LABELS

    def __init__(
        self,
        files: Store,
        images: Mapping[Split, str],
        annotations: Mapping[Split, str],
        classes: Sequence[str],
        background: str | None,
        *,
        boxes: bool = False,  # objects are boxes
        read: Mapping[Split, CocoFile] | None = None,  # annotation files that were already read
    ) -> None:
        super().__init__(files.where)
        self.packed, self._files = files.packed, files
        self._images, self._annotations, self._classes = images, annotations, tuple(classes)
        self._fill = IGNORE if background is None else self._classes.index(background)
        self._boxes = boxes
        self._contents: dict[str, Content] = {}
        self._read = dict(read or {})

    def names(self, under: str = "") -> list[str]:
        """The files, or a label for each existing image that the annotation file names."""
        top, _, split = under.partition("/")
        if top != self.LABELS:
            return self._files.names(under)
        inner = (inner for inner, _ in self._existing(split)[0])
        return sorted(str(PurePosixPath(under) / PurePosixPath(each).with_suffix(".png")) for each in inner)

    def describes(self, split: str) -> bool:
        """Whether the annotation file of ``split`` is there."""
        name = self._annotations[split]  # type: ignore[index]
        return self._packed_as(name) is not None if self.packed else (self.where / name).exists()

    def _packed_as(self, name: str) -> str | None:
        """The file ``name``, as the archive calls it; None: it has none."""
        expression = re.compile(ABOVE + re.escape(name))
        return next((each for each in self._files.names() if expression.fullmatch(each)), None)

    def _below(self, folder: str) -> list[tuple[str, str]]:
        """The files below ``folder``: their names in it and in the store."""
        names = self._files.names(folder)
        if not self.packed:
            return [(str(PurePosixPath(name).relative_to(folder)), name) for name in names]
        expression = re.compile(f"{ABOVE}{re.escape(folder)}/(.+)", re.DOTALL)
        return [(match[1], name) for name in names if (match := expression.fullmatch(name))]

    def listed(self, split: str) -> tuple[list[str], list[str]]:
        """The images that the split's annotation file names: existing ones and missing ones.

        Names are compared after Unicode composition (NFC), with either slash.
        """
        found, missing = self._existing(split)
        return [name for _, name in found], missing

    def _existing(self, split: str) -> tuple[list[tuple[str, str]], list[str]]:
        """As :meth:`listed`; existing ones with their names in the images' folder first."""
        wanted = {plain(image.file_name): image.file_name for image in self._content(split).images.values()}
        found: dict[str, tuple[str, str]] = {}
        for inner, name in self._below(self._images[split]):  # type: ignore[index]
            key = plain(inner)
            if key in wanted and key in found:
                raise UserError(f"{self}: {found[key][1]!r} and {name!r} are the same name in COCO; rename one of them")
            if key in wanted:
                found[key] = inner, name
        return list(found.values()), sorted(name for key, name in wanted.items() if key not in found)

    def doubts(self, split: str) -> list[str]:
        """Reports classes whose objects are all crowds, which are ignored."""
        content = self._content(split)
        crowds: dict[int, list[bool]] = {}
        for entry in content.file.annotations:
            crowds.setdefault(content.numbers[entry.category_id], []).append(entry.iscrowd)
        ignored = [f"'{self._classes[number]}'" for number, crowd in sorted(crowds.items()) if all(crowd)]
        return [
            f"every object of {', '.join(ignored)} is a crowd (iscrowd: 1) and ignored; "
            "tools that write masks as run lengths also set it on single objects"
        ] if ignored else []  # fmt: skip

    def read(self, name: str) -> bytes:
        """An image's file, or a label's PNG."""
        top, _, rest = name.partition("/")
        if top != self.LABELS:
            return self._files.read(name)
        split, _, label = rest.partition("/")
        out = BytesIO()
        Image.fromarray(self._paint(self._content(split), stem(label))).save(out, "PNG", compress_level=1)
        return out.getvalue()

    def size(self, name: str) -> int:
        """Of an image's file; labels are not stored."""
        return self._files.size(name)

    def objects(self, name: str) -> Objects | None:
        """The objects of the label ``name``, in the file's order; crowds keep their flag; there are no void pixels."""
        top, _, rest = name.partition("/")
        if top != self.LABELS:
            return None
        split, _, label = rest.partition("/")
        content = self._content(split)
        image = content.images[stem(label)]
        entries, size = content.objects.get(image.id, []), (image.height, image.width)
        classes, crowds = [content.numbers[entry.category_id] for entry in entries], [each.iscrowd for each in entries]
        if self._boxes:
            return Objects.of_boxes([_box(entry, size, image.file_name) for entry in entries], classes, crowds, size)
        masks = [mask(entry.segmentation, size, image.file_name) for entry in entries]
        objects = Objects.of_masks(masks, classes, crowds, size)
        return replace(objects, boxes=_boxes(entries, objects)) if any(entry.bbox for entry in entries) else objects

    def _content(self, split: str) -> Content:
        """One annotation file, read once."""
        if split not in self._contents:
            path = self._annotations[split]  # type: ignore[index]
            name = self._packed_as(path) or path if self.packed else path
            file = self._read.pop(split, None) or read_coco(self._files, name, boxes=self._boxes)  # type: ignore[call-overload]
            numbers = {name: number for number, name in enumerate(self._classes)}
            unknown = sorted({category.name for category in file.categories} - set(numbers))
            if unknown:
                raise UserError(f"{path}: categories {', '.join(unknown)} are not in 'classes'; add or rename them")
            objects: dict[int, list[CocoObject]] = {}
            for entry in file.annotations:
                objects.setdefault(entry.image_id, []).append(entry)
            self._contents[split] = Content(
                file,
                {stem(image.file_name): image for image in file.images},
                objects,
                {category.id: numbers[category.name] for category in file.categories},
            )
        return self._contents[split]

    def _paint(self, content: Content, label: str) -> NDArray[np.uint8]:
        image = content.images[label]
        pixels = np.full((image.height, image.width), self._fill, np.uint8)
        masks = []
        for entry in content.objects.get(image.id, []):
            number = IGNORE if entry.iscrowd else content.numbers[entry.category_id]
            masks.append((mask(entry.segmentation, (image.height, image.width), image.file_name), number))
        for painted, number in sorted(masks, key=lambda pair: -int(pair[0].sum())):
            pixels[painted] = number
        return pixels


def _boxes(entries: Sequence[CocoObject], objects: Objects) -> NDArray[np.float64]:
    """The annotated boxes (N, 4), and those of the pixels where there are none."""
    boxes = objects.boxed()
    for number, entry in enumerate(entries):
        if entry.bbox:
            boxes[number] = _corners(entry.bbox)
    return boxes


def _box(entry: CocoObject, size: tuple[int, int], name: str) -> tuple[float, float, float, float]:
    """The annotated box of one object, or else that of its outline or its pixels."""
    if entry.bbox:
        return _corners(entry.bbox)
    if not isinstance(entry.segmentation, Runs):
        corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in entry.segmentation])
        (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return left, top, right, bottom
    found = Objects.of_masks([mask(entry.segmentation, size, name)], [0], [False], size).boxed()[0]
    left, top, right, bottom = found.tolist()
    return left, top, right, bottom


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of COCO's left, top, width, height."""
    left, top, width, height = box
    return left, top, left + width, top + height


def category_names(file: CocoFile, background: str | None) -> tuple[str, ...]:
    """The class names: the background first, if there is one, then the categories by id."""
    categories = sorted(file.categories, key=lambda category: category.id)
    return tuple(dict.fromkeys(([background] if background else []) + [category.name for category in categories]))


def mask(segmentation: Sequence[Polygon] | Runs, shape: tuple[int, int], name: str) -> Mask:
    """The pixels (H, W) of one object: a list of polygons, or run lengths in columns, plain or as COCO's text."""
    height, width = shape
    if not isinstance(segmentation, Runs):
        if (length := sum(map(_outline, segmentation))) > LONGEST:
            raise BadSample(f"{name}: a polygon of {length:,.0f} pixels along its outline; allowed: {LONGEST:,}")
        painted: Any = tools.frPyObjects([list(polygon) for polygon in segmentation], height, width)
        return tools.decode(tools.merge(painted)).view(bool)
    runs: Any = {"size": [height, width], "counts": segmentation.counts}
    try:
        text = runs if isinstance(segmentation.counts, str) else tools.frPyObjects(runs, height, width)
        return tools.decode(text).view(bool)
    except (ValueError, RuntimeError) as error:
        raise BadSample(f"{name}: run lengths that do not fill {height} x {width} (height x width): {error}") from None


def _outline(polygon: Polygon) -> float:
    """Pixels along the closed outline, along the longer axis of each edge."""
    corners = np.reshape(polygon, (-1, 2))
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())
