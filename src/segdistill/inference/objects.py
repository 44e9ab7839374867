"""The objects that a model finds in one image, and how they are written to files. Imports no torch.

Legend: H W pixels, N objects, sorted by descending score.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdistill.config import UserError
from segdistill.inference.result import save_png
from segdistill.objects import Detections, RunLengths, area_and_box, decode
from segdistill.pictures import Pixels, box_picture, object_picture

SHOWN = 0.5
"""Least score of the objects in id maps and pictures."""

KEPT = 0.05
"""Least score of the objects in JSON files."""

NO_MASKS = "a detector finds boxes, no masks; read .boxes, or take a model of the task instance"


@dataclass(frozen=True, eq=False)
class ObjectResult:
    """The prediction for one image: at most 100 objects, most of them with low scores; see :meth:`above`.

    ``detections`` holds their scores, classes (indices into ``names``) and masks, which may overlap. ``image``
    (H, W, 3) uint8 is what was predicted on. A detector's objects have boxes and no masks: what needs masks is then a
    :class:`UserError`.
    """

    detections: Detections
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    image: Pixels = field(repr=False)
    name: str = ""  # the file's, where it came from one

    def __len__(self) -> int:
        return len(self.detections)

    @property
    def scores(self) -> NDArray[np.float32]:
        """Scores (N,) in [0, 1]."""
        return self.detections.scores

    @property
    def classes(self) -> NDArray[np.int64]:
        """Class indices (N,)."""
        return self.detections.classes

    @property
    def class_names(self) -> list[str]:
        """The class of each object."""
        return [self.names[number] for number in self.classes]

    @property
    def has_masks(self) -> bool:
        """Whether the objects have masks; False: boxes alone."""
        return self.detections.boxes is None

    @property
    def boxes(self) -> NDArray[np.float64]:
        """Boxes (N, 4): left, top, right, bottom in pixels."""
        return self.detections.boxed()

    @property
    def run_lengths(self) -> list[RunLengths]:
        """The masks in COCO's compressed form, ``{"size": [H, W], "counts": bytes}``."""
        if not self.has_masks:
            raise UserError(NO_MASKS)
        return self.detections.masks

    def above(self, score: float = SHOWN) -> ObjectResult:
        """The result with the objects of at least ``score``."""
        if not 0 <= score <= 1:
            raise UserError(f"a score lies between 0 and 1, got {score}")
        return replace(self, detections=self.detections.above(score))

    def masks(self) -> NDArray[np.bool_]:
        """The masks (N, H, W): one byte per pixel and object; :meth:`mask` decodes one."""
        found = np.zeros((len(self), *self.detections.size), bool)
        for number, runs in enumerate(self.run_lengths):
            found[number] = decode(runs)
        return found

    def mask(self, number: int) -> NDArray[np.bool_]:
        """The mask (H, W) of an object, counted from 0."""
        return decode(self.run_lengths[number])

    def ids(self, score: float = SHOWN) -> NDArray[np.uint16]:
        """At each pixel (H, W) the object with the highest score, counted from 1; 0: none of at least ``score``."""
        if not self.has_masks:
            raise UserError(NO_MASKS)
        painted, kept = self.above(score).detections.paint()
        return np.concatenate([[0], np.asarray(kept, int) + 1]).astype(np.uint16)[painted]

    def overlay(self, score: float = SHOWN, alpha: float = 0.6) -> Image.Image:
        """The objects of at least ``score`` over the image, in shades of their class colours, or their boxes."""
        shown = self.above(score).detections
        if not self.has_masks:
            return box_picture(self.image, shown.boxed(), shown.classes, self.colors)
        return object_picture(self.image, shown.painted(), self.colors, alpha)

    def save(self, path: str | Path, mark: str = "", score: float = SHOWN) -> None:
        """Write :meth:`ids` as a 16-bit PNG, atomically; ``mark`` becomes PNG text."""
        save_png(Path(path), Image.fromarray(self.ids(score)), mark)

    def records(self) -> list[dict[str, Any]]:
        """Every object for JSON, with COCO's names: ``number`` (its value in the id map, counted from 1), ``score``,
        ``category_id`` (class index + 1), ``category``, ``bbox`` (left, top, width, height), ``area`` and
        ``segmentation`` (run lengths; not of a detector, whose areas are those of the boxes).
        """
        if not self.has_masks:
            return [self._box_record(number) for number in range(len(self))]
        found = []
        for number, runs in enumerate(self.run_lengths):
            area, box = area_and_box(runs)
            place = {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")}
            kind = int(self.classes[number])
            found.append(
                {"number": number + 1, "score": float(self.scores[number]), "category_id": kind + 1,
                 "category": self.names[kind], "bbox": box, "area": area, "segmentation": place}
            )  # fmt: skip
        return found

    def _box_record(self, number: int) -> dict[str, Any]:
        """One box for JSON."""
        left, top, right, bottom = (float(side) for side in self.boxes[number])
        kind, box = int(self.classes[number]), [left, top, right - left, bottom - top]
        return {
            "number": number + 1,
            "score": float(self.scores[number]),
            "category_id": kind + 1,
            "category": self.names[kind],
            "bbox": box,
            "area": box[2] * box[3],
        }
