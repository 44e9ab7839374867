"""Measures that need no labels: the confidence of predictions, and the agreement of two models.

Across domains, both correlate with mIoU (Baek et al., "Agreement-on-the-Line", arXiv 2206.13089).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as tools
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from segdistill.metrics.matching import THRESHOLDS
from segdistill.models.bands import Strip
from segdistill.objects import Detections

SAMPLE = 128
"""Longest side of a stored class map, which keeps every n-th row and column."""


@dataclass(frozen=True)
class ImageNotes:
    """For N images: mean ``confidence`` over all pixels (N,), and sampled class maps.

    ``sampled`` (uint8) is the concatenation of the flattened maps, ``shapes`` (N, 2) their heights and widths.
    """

    confidence: NDArray[np.float64]
    sampled: NDArray[np.uint8]
    shapes: NDArray[np.int32]

    @property
    def mean_confidence(self) -> float:
        """Mean over the images; NaN without images."""
        return float(self.confidence.mean()) if len(self.confidence) else float("nan")

    def agreement(self, other: ImageNotes) -> float | None:
        """Share of the sampled pixels to which both models assign the same class, averaged over the images.

        None if the two were not made from the same images.
        """
        if not len(self.shapes) or not np.array_equal(self.shapes, other.shapes):
            return None
        same = (self.sampled == other.sampled).astype(np.float64)
        sizes = self.shapes.prod(axis=1)
        return float(np.mean(np.add.reduceat(same, np.cumsum(sizes) - sizes) / sizes))


class Note:
    """Accumulates the entry of one image in :class:`ImageNotes`, strip by strip."""

    def __init__(self, height: int, width: int) -> None:
        self.step = max(1, -(-max(height, width) // SAMPLE))
        self.sampled = np.zeros((-(-height // self.step), -(-width // self.step)), np.uint8)
        self.pixels, self.total = height * width, 0.0

    def add(self, strip: Strip) -> None:
        """Add the rows of ``strip``."""
        self.total += float(strip.confidence.sum(dtype=torch.float64))
        first = -strip.top % self.step
        rows = strip.classes[first :: self.step, :: self.step].to(torch.uint8).cpu().numpy()
        place = (strip.top + first) // self.step
        self.sampled[place : place + len(rows)] = rows


def notes_of(notes: list[Note]) -> ImageNotes:
    """The notes of several images, in this order."""
    sampled = [note.sampled for note in notes]
    return ImageNotes(
        np.array([note.total / note.pixels for note in notes]),
        np.concatenate([np.empty(0, np.uint8), *(cell.ravel() for cell in sampled)]),
        np.array([cell.shape for cell in sampled], np.int32).reshape(-1, 2),
    )


def object_confidence(found: Detections) -> float:
    """Mean score of the objects of an image, weighted by the scores; 0 without objects. Ours.

    Weighted, so that the many objects with low scores hardly count.
    """
    scores = found.scores.astype(np.float64)
    return float((scores**2).sum() / scores.sum()) if scores.any() else 0.0


def object_agreement(one: Detections, other: Detections) -> float:
    """The share of their objects, weighted by the scores, that two models both find in an image; 1 without objects.

    Objects of one class are matched one to one by the greatest sum of IoUs; a pair counts at those of COCO's ten IoU
    thresholds that it reaches. Ours, after the F1 score that is averaged over thresholds.
    """
    assert one.size == other.size, f"sizes differ: {one.size} and {other.size}"
    total, both = float(one.scores.sum() + other.scores.sum()), 0.0
    for number in np.intersect1d(one.classes, other.classes):
        mine, theirs = (np.flatnonzero(each.classes == number) for each in (one, other))
        iou = _ious(one, mine, other, theirs)
        rows, columns = linear_sum_assignment(iou, maximize=True)
        reached = (iou[rows, columns][:, None] >= THRESHOLDS).mean(axis=1)
        both += float(reached @ (one.scores[mine[rows]] + other.scores[theirs[columns]]))
    return both / total if total else 1.0


def _ious(one: Detections, mine: NDArray[np.intp], other: Detections, theirs: NDArray[np.intp]) -> NDArray[np.float64]:
    """IoU of some objects of two models, of their boxes where they have no masks."""

    def shapes(found: Detections, places: NDArray[np.intp]) -> Any:
        if found.boxes is None:
            return [found.masks[place] for place in places]
        boxes = found.boxes[places]
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)

    return np.asarray(tools.iou(shapes(one, mine), shapes(other, theirs), [0] * len(theirs)), np.float64)
