"""Scores of detection: Pascal VOC's AP50 in both forms, and COCO's AP of boxes.

Areas of boxes are those of real coordinates. Pascal VOC's development kit counts whole pixels, both ends included; the
boxes of its files are read so that the two agree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segdistill.data.targets import boxes_of
from segdistill.metrics.average_precision import coco_ap, mean, voc_ap
from segdistill.metrics.instances import InstanceSamples, ObjectMetric
from segdistill.metrics.matching import AREAS, RANGES, THRESHOLDS, Matches, Pair, coco, iou_of, one_image
from segdistill.objects import Detections, Objects, box_areas

Boxes = NDArray[np.float64]


class BoxSamples(InstanceSamples):
    """The matched detections and objects of a domain, in classes 0 to ``num_classes`` - 1."""

    def ap(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pascal VOC's AP50 (R,) for image weights (R, N), as in :meth:`.InstanceSamples.ap`."""
        return mean(voc_ap(self.matches, self.num_classes, weights))

    def false_positives(self) -> NDArray[np.bool_]:
        """Which detections (N,) AP50 counts as false positives."""
        return self.matches.wrong[:, -1] & 1 > 0

    def scores(self) -> dict[str, float | list[float]]:
        """All scores by name; NaN where undefined. By class: a list of ``num_classes``."""
        matches, classes = self.matches, self.num_classes
        area, points, table = voc_ap(matches, classes), voc_ap(matches, classes, points=True), coco_ap(matches, classes)
        return {
            "ap50": float(mean(area)[0]),
            "ap50_11": float(mean(points)[0]),
            "ap": float(mean(table)[0]),
            "coco_ap50": float(mean(table[:, :1])[0]),
            "ap75": float(mean(table[:, 5:6])[0]),
            "ap50_by_class": area[:, 0, 0].tolist(),
            "ap50_11_by_class": points[:, 0, 0].tolist(),
            "ap_by_class": [float(mean(part)[0]) for part in table[:, None]],
        }


class BoxMetric(ObjectMetric):
    """AP by the rules of Pascal VOC and of COCO, from boxes at the resolution of the annotations.

    Crowds, and the difficult objects of Pascal VOC, are neither found nor missed; each benchmark ignores detections on
    them by its own rule.
    """

    primary, kept = "ap50", BoxSamples
    read = staticmethod(boxes_of)

    def matched(self, detections: Detections, objects: Objects) -> Matches:
        """See :func:`match_boxes`."""
        return match_boxes(detections, objects)


def match_boxes(detections: Detections, objects: Objects) -> Matches:
    """Match the boxes of the detections and objects of one image; objects without box or pixels are left out."""
    assert (np.diff(detections.scores) <= 0).all(), "detections are sorted by descending score"
    theirs, mine = objects.boxed(), detections.boxed()
    kept = box_areas(theirs) > 0
    theirs, classes, crowd = theirs[kept], objects.classes[kept], objects.crowd[kept]
    areas, count = box_areas(theirs), len(mine)
    right, wrong = (np.zeros((count, len(RANGES)), np.uint16) for _ in range(2))
    overlaps = np.full(count, np.nan)
    for number in np.unique(detections.classes):
        rows, columns = np.flatnonzero(detections.classes == number), np.flatnonzero(classes == number)
        shared = intersections(mine[rows], theirs[columns])
        pair = Pair(shared, box_areas(mine[rows]), areas[columns], crowd[columns], np.zeros(len(rows)))
        right[rows, :-1], wrong[rows, :-1], overlaps[rows] = coco(pair)
        right[rows, -1], wrong[rows, -1] = voc(pair)
    within = (areas[:, None] >= AREAS[:, 0]) & (areas[:, None] <= AREAS[:, 1])
    counted = np.concatenate([within, np.ones((len(areas), 1), bool)], axis=1) & ~crowd[:, None]
    return one_image(detections, classes, right, wrong, overlaps, counted=counted)


def voc(pair: Pair) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """True and false positives (N,) at IoU 0.5, as bit 0, by the rule of Pascal VOC's development kit.

    By descending score, each detection belongs to the object with the greatest IoU, taken or not (of equal ones, the
    first). Below the threshold it is a false positive, on a difficult object it is ignored, and on an object that an
    earlier one has found it is a false positive.
    """
    count, total = pair.shared.shape
    right, wrong = np.zeros(count, bool), np.ones(count, bool)
    if count and total:
        iou = iou_of(pair.shared, pair.pixels, pair.areas)
        best = iou.argmax(axis=1)
        hit, difficult = iou.max(axis=1) >= THRESHOLDS[0], pair.crowd[best]
        rows = np.flatnonzero(hit & ~difficult)
        _, first = np.unique(best[rows], return_index=True)
        right[rows[first]] = True
        wrong = ~right & ~(hit & difficult)
    return right.astype(np.uint16), wrong.astype(np.uint16)


def intersections(ours: Boxes, theirs: Boxes) -> Boxes:
    """Common areas (N, M)."""
    low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
    high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
    return (high - low).clip(0).prod(axis=2)
