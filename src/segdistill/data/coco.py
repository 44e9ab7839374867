"""COCO JSON as label maps: polygons and run lengths are painted when a label is asked for.

Larger objects are painted first, so that a small one before a large one stays visible; a crowd is ignored. A pixel
belongs to a polygon when its centre lies inside: along edges the COCO tools may differ from that by a pixel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdistill.config import UserError
from segdistill.data.archives import BadSample, Folder
from segdistill.data.catalog import IGNORE
from segdistill.data.dataset import Split

Mask = NDArray[np.bool_]


class CocoStore(Folder):
    """A folder of images whose labels come from annotation files, as PNG of class numbers below ``LABELS/split/``."""

    LABELS = "coco-labels"

    def __init__(
        self,
        where: Path,
        images: Mapping[Split, str],
        annotations: Mapping[Split, Path],
        classes: Sequence[str],
        background: str | None,
    ) -> None:
        super().__init__(where)
        self._images, self._annotations, self._classes = images, annotations, tuple(classes)
        self._fill = IGNORE if background is None else self._classes.index(background)
        self._splits: dict[str, dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]] = {}
        self._ids: dict[str, dict[int, int]] = {}

    def names(self, under: str = "") -> list[str]:
        """The images that the annotation files name and that exist, and a label for each that they name."""
        top, _, split = under.partition("/")
        if top == self.LABELS:
            return sorted(f"{under}/{name}" for name in self._content(split))
        known = {
            str(PurePosixPath(folder, image["file_name"]))
            for split, folder in self._images.items()
            if PurePosixPath(folder) == PurePosixPath(under)
            for image, _ in self._content(split).values()
        }
        return [name for name in super().names(under) if name in known]

    def read(self, name: str) -> bytes:
        """An image's file, or a label's PNG."""
        top, _, rest = name.partition("/")
        if top != self.LABELS:
            return super().read(name)
        split, _, label = rest.partition("/")
        out = BytesIO()
        Image.fromarray(self._paint(split, *self._content(split)[label])).save(out, "PNG", compress_level=1)
        return out.getvalue()

    def _content(self, split: str) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Label's name -> (image, its annotations) of one annotation file, read once."""
        if split not in self._splits:
            path = self._annotations[split]  # type: ignore[index]
            values = _load(path)
            numbers = {name: number for number, name in enumerate(self._classes)}
            unknown = sorted({entry["name"] for entry in values["categories"]} - set(numbers))
            if unknown:
                raise UserError(f"{path}: categories {', '.join(unknown)} are none of the classes; add or rename them")
            self._ids[split] = {entry["id"]: numbers[entry["name"]] for entry in values["categories"]}
            by_image: dict[int, list[dict[str, Any]]] = {}
            for annotation in values["annotations"]:
                by_image.setdefault(annotation["image_id"], []).append(annotation)
            self._splits[split] = {
                str(PurePosixPath(image["file_name"]).with_suffix(".png")): (image, by_image.get(image["id"], []))
                for image in values["images"]
            }
        return self._splits[split]

    def _paint(self, split: str, image: dict[str, Any], annotations: list[dict[str, Any]]) -> NDArray[np.uint8]:
        label = np.full((image["height"], image["width"]), self._fill, np.uint8)
        masks = []
        for annotation in annotations:
            number = IGNORE if annotation.get("iscrowd") else self._ids[split].get(annotation["category_id"])
            if number is None:
                raise BadSample(f"{image['file_name']}: category {annotation['category_id']} is not in the file's list")
            masks.append((mask(annotation.get("segmentation"), label.shape, image["file_name"]), number))
        for painted, number in sorted(masks, key=lambda pair: -int(pair[0].sum())):
            label[painted] = number
        return label


def category_names(annotations: Mapping[Split, Path], background: str | None) -> tuple[str, ...]:
    """The class names: the background first, if it is one, then the categories by their ids."""
    path = next(iter(annotations.values()))
    names = [entry["name"] for entry in sorted(_load(path)["categories"], key=lambda entry: entry["id"])]
    return tuple(dict.fromkeys(([background] if background else []) + names))


def mask(segmentation: Any, shape: tuple[int, ...], name: str) -> Mask:
    """The pixels (H, W) of one object: a list of polygons, or run lengths in columns, plain or as COCO's text."""
    height, width = shape
    if isinstance(segmentation, list) and segmentation:
        if wrong := [len(polygon) for polygon in segmentation if len(polygon) < 6 or len(polygon) % 2]:
            raise BadSample(f"{name}: a polygon with {wrong[0]} numbers; x and y of three corners are needed")
        return np.any([fill(np.reshape(polygon, (-1, 2)), (height, width)) for polygon in segmentation], axis=0)
    if isinstance(segmentation, dict) and "counts" in segmentation:
        counts = segmentation["counts"]
        runs = decode_runs(counts) if isinstance(counts, str) else list(counts)
        if sum(runs) != height * width or min(runs, default=0) < 0:
            raise BadSample(f"{name}: run lengths of {sum(runs)} pixels for {height} x {width} (height x width)")
        values = np.arange(len(runs)) % 2 == 1
        return np.repeat(values, runs).reshape(width, height).T
    raise BadSample(f"{name}: an object without polygons or run lengths")


def fill(corners: NDArray[Any], shape: tuple[int, int]) -> Mask:
    """The pixels whose centres lie inside the polygon ``corners`` (N, 2), by the even-odd rule."""
    height, width = shape
    (x1, y1), (x2, y2) = corners.T[..., None], np.roll(corners, -1, axis=0).T[..., None]  # (N, 1) each
    centres = np.arange(height) + 0.5
    edges, rows = np.nonzero((y1 <= centres) != (y2 <= centres))
    x1, y1, x2, y2 = (side[edges, 0] for side in (x1, y1, x2, y2))
    crossing = x1 + (centres[rows] - y1) * (x2 - x1) / (y2 - y1)
    columns = np.clip(np.ceil(crossing - 0.5), 0, width).astype(int)  # the first centre at or after the crossing
    turns = np.zeros((height, width + 1), int)
    np.add.at(turns, (rows, columns), 1)
    return turns.cumsum(axis=1)[:, :width] % 2 == 1


def decode_runs(text: str) -> list[int]:
    """COCO's text form of run lengths: 5 bits per character from the low end, bit 6 for "more", the last one signed;
    from the third run on each is the difference to the last but one.
    """
    runs: list[int] = []
    position = 0
    while position < len(text):
        value = shift = 0
        more = True
        while more and position < len(text):
            code = ord(text[position]) - 48
            value |= (code & 31) << shift
            shift, position, more = shift + 5, position + 1, bool(code & 32)
            if not more and code & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the annotations {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON: {error}") from None
    fields = {
        "images": ("id", "file_name", "height", "width"),
        "annotations": ("image_id", "category_id"),
        "categories": ("id", "name"),
    }
    for part, wanted in fields.items():
        entries = values.get(part) if isinstance(values, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{path}: no list '{part}'; a COCO file has {', '.join(fields)}")
        for entry in entries:
            if missing := [key for key in wanted if not isinstance(entry, dict) or key not in entry]:
                raise UserError(f"{path}: an entry of '{part}' lacks {', '.join(missing)}")
    return values
