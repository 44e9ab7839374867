"""Average precision and recall of matched objects: COCO's and Pascal VOC's, also for weighted images, and Cityscapes'.

Legend: N detections, I images, R sets of image weights, K classes, T IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from segdistill.metrics.matching import LIMIT, RANGES, THRESHOLDS, Flags, Matches

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO reads the precision."""

VOC_RECALLS = np.linspace(0.0, 1.0, 11)
"""Recalls at which Pascal VOC 2007 reads the precision."""

ELEMENTS = 2**22
"""Size of the largest array, in numbers, that holds sets of image weights."""

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def ranked(matches: Matches, number: int) -> Rows:
    """The detections of a class by descending score; equal scores in the order of the images."""
    rows = np.flatnonzero(matches.classes == number)
    return rows[np.argsort(-matches.scores[rows], kind="stable")]


def totals(matches: Matches, num_classes: int, area: str) -> Floats:
    """Number of objects to be found, (I, K)."""
    counted = matches.counted[:, RANGES.index(area)]
    cells = matches.object_images[counted].astype(np.int64) * num_classes + matches.object_classes[counted]
    return np.bincount(cells, minlength=matches.size * num_classes).reshape(matches.size, num_classes).astype(float)


def coco_ap(matches: Matches, num_classes: int, weights: Floats | None = None, *, area: str = "all") -> Floats:
    """COCO's AP (K, T, R) if image i counts ``weights[r, i]`` times (whole numbers; default: once).

    NaN for a class without objects. The result of a set of weights does not depend on the other sets.
    """
    return _table(matches, num_classes, weights, RANGES.index(area), range(len(THRESHOLDS)), RECALLS)


def voc_ap(matches: Matches, num_classes: int, weights: Floats | None = None, *, points: bool = False) -> Floats:
    """Pascal VOC's AP (K, 1, R) at IoU 0.5, of boxes matched by its rules; otherwise like :func:`coco_ap`.

    The area below the highest precision at each recall or above, as since VOC 2010; with ``points`` its mean at 11
    recalls, as in VOC 2007.
    """
    return _table(matches, num_classes, weights, len(RANGES) - 1, range(1), VOC_RECALLS if points else None)


def _table(
    matches: Matches,
    num_classes: int,
    weights: Floats | None,
    column: int,
    levels: Sequence[int],
    recalls: Floats | None,
) -> Floats:
    """AP (K, ``levels``, R) by the rules of ``column``; see :func:`_ap`."""
    weights = np.ones((1, matches.size)) if weights is None else weights
    largest = np.bincount(matches.object_classes, minlength=1).max()
    blocks = np.array_split(weights, len(weights) * int(largest) // ELEMENTS + 1)
    total = totals(matches, num_classes, RANGES[column])
    result = np.zeros((num_classes, len(levels), len(weights)))
    for number in range(num_classes):
        rows = ranked(matches, number)
        right, wrong = (
            np.stack([flags[rows, column] >> level & 1 for level in levels]).astype(bool)
            for flags in (matches.right, matches.wrong)
        )
        found = [
            _ap(right, wrong, matches.images[rows], block.T.copy(), block @ total[:, number], recalls)
            for block in blocks
        ]
        result[number] = np.concatenate(found, axis=1)
    return result


def _ap(
    right: Flags, wrong: Flags, images: NDArray[np.int32], weights: Floats, total: Floats, recalls: Floats | None
) -> Floats:
    """AP (T, R) of one class with detections by descending score: true and false positives (T, N), their images.

    ``weights`` (I, R); ``total`` (R,) objects. The precision is the highest at a recall or above, read at ``recalls``,
    or with None integrated. Precision is highest and recall rises only at true positives, so nothing is computed at
    the other detections.
    """
    result = np.zeros((len(right), len(total)))
    for level, (hit, miss) in enumerate(zip(right, wrong, strict=True)):
        before = np.cumsum(hit) - hit  # true positives above each detection
        count = int(hit.sum())
        early = miss & (before < count)
        places = (before[early], images[early])
        between = csr_array((np.ones(early.sum()), places), shape=(count, len(weights)))
        hits = weights[images[hit]].cumsum(axis=0)  # (true positives, R)
        alarms = (between @ weights).cumsum(axis=0)
        precision = np.divide(hits, hits + alarms, out=np.zeros_like(hits), where=hits > 0)
        highest = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        recall = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
        reached = recall if recalls is None else np.searchsorted(recalls, recall, side="right")
        steps = np.diff(reached, axis=0, prepend=0)
        if count:
            result[level] = np.cumsum(steps * highest, axis=0)[-1]  # in order, as below
    result /= 1 if recalls is None else len(recalls)
    result[:, total == 0] = np.nan
    return result


def mean(table: Floats) -> Floats:
    """Mean (R,) of scores (K, T, R) over thresholds and the classes that are not NaN; NaN if all are."""
    count, total = np.zeros((2, table.shape[-1]))
    for scores in (scores for levels in table for scores in levels):  # a sum whose order R cannot change
        known = ~np.isnan(scores)
        total += np.where(known, scores, 0.0)
        count += known
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def coco_recall(matches: Matches, num_classes: int, *, area: str = "all", limit: int = LIMIT) -> Floats:
    """COCO's recall (K, T, 1) with the ``limit`` highest scores per image and class; NaN: a class without objects."""
    keys = matches.images.astype(np.int64) * num_classes + matches.classes
    order = np.argsort(keys, kind="stable")
    rank = np.empty(len(keys), np.int64)
    rank[order] = np.arange(len(keys)) - np.searchsorted(keys[order], keys[order])
    column, total = RANGES.index(area), totals(matches, num_classes, area).sum(axis=0)
    result = np.full((num_classes, len(THRESHOLDS), 1), np.nan)
    for number in np.flatnonzero(total):
        rows = (matches.classes == number) & (rank < limit)
        for level in range(len(THRESHOLDS)):
            result[number, level] = (matches.right[rows, column] >> level & 1).sum() / total[number]
    return result


def cityscapes_ap(matches: Matches, num_classes: int) -> Floats:
    """AP (K, T, 1) by Cityscapes' rules; NaN for a class without objects.

    The area below the precision over recall at all distinct scores, by trapezoids, from the point (recall 0,
    precision 1).
    """
    column, total = RANGES.index("cityscapes"), totals(matches, num_classes, "cityscapes").sum(axis=0)
    result = np.full((num_classes, len(THRESHOLDS), 1), np.nan)
    for number in np.flatnonzero(total):
        rows = ranked(matches, int(number))
        for level in range(len(THRESHOLDS)):
            right, wrong = ((flags[rows, column] >> level & 1).astype(bool) for flags in (matches.right, matches.wrong))
            scores = matches.scores[rows][right | wrong]
            last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)[: len(scores)])  # of each distinct score
            hits = np.cumsum(right[right | wrong])[last]
            precision = np.append(1.0, hits / (last + 1))
            recall = np.append(0.0, hits / total[number])
            result[number, level] = (np.diff(recall) * (precision[1:] + precision[:-1])).sum() / 2
    return result
