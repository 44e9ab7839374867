"""Which predicted objects of an image match which annotated ones, by the rules of COCO and of Cityscapes.

Legend: N detections, M objects, T IoU thresholds, A columns of :data:`RANGES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as tools
from numpy.typing import NDArray

from segdistill.objects import Detections, Objects, RunLengths, encode

RANGES = ("all", "small", "medium", "large", "cityscapes")
"""COCO's area ranges, then Cityscapes' own rules. Columns of a table have this order.

The last column of matched boxes is Pascal VOC's rules instead (:mod:`segdistill.metrics.boxes`).
"""

AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""Least and largest area in pixels of COCO's ranges, both included."""

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoU thresholds of COCO: an IoU matches if it is at least the threshold."""

STRICT_THRESHOLDS = np.arange(0.5, 1.0, 0.05)
"""IoU thresholds of Cityscapes: an IoU matches if it is above the threshold."""

LIMIT = 100
"""COCO counts this many detections per image and class, those with the highest scores."""

MIN_PIXELS = 100
"""Cityscapes ignores smaller objects."""

BITS = 1 << np.arange(len(THRESHOLDS))

Flags = NDArray[np.bool_]
Areas = NDArray[np.int64] | NDArray[np.float64]
"""Numbers of pixels, or areas of boxes in pixels."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Detections and objects of ``size`` images with all that their scores depend on; no masks.

    Detections are sorted by image and descending score: ``images``, ``classes``, ``scores`` (N,), and ``overlaps``
    (N,): IoU with the matched object at threshold 0.5, NaN without match. ``right`` and ``wrong`` (N, A) uint16: bit t
    says whether the detection is a true or a false positive at threshold t. If neither, it is ignored. For each
    annotated object, ``object_images``, ``object_classes`` (M,) and ``counted`` (M, A): whether it should be found.
    """

    size: int
    images: NDArray[np.int32]
    classes: NDArray[np.int16]
    scores: NDArray[np.float32]
    overlaps: NDArray[np.float64]
    right: NDArray[np.uint16]
    wrong: NDArray[np.uint16]
    object_images: NDArray[np.int32]
    object_classes: NDArray[np.int16]
    counted: Flags

    @classmethod
    def joined(cls, parts: Sequence[Matches]) -> Matches:
        """The images of all parts, numbered in this order."""
        starts = np.cumsum([0, *(part.size for part in parts)])
        nothing = Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), [], (1, 1))
        none = Objects(np.zeros((1, 1, 1), np.int32), np.zeros(0, np.int64), np.zeros(0, bool))
        found: dict[str, Any] = {"size": int(starts[-1])}
        for name in (field.name for field in fields(cls) if field.name != "size"):
            arrays = [getattr(part, name) for part in (match(nothing, none), *parts)]
            if name in ("images", "object_images"):
                arrays[1:] = [array + np.int32(start) for array, start in zip(arrays[1:], starts, strict=False)]
            found[name] = np.concatenate(arrays)
        return cls(**found)


def match(detections: Detections, objects: Objects, *, min_pixels: int = MIN_PIXELS) -> Matches:
    """Match the detections and objects of one image.

    COCO's rules have no void pixels: there, a detection on them is a false positive. Objects without pixels are left
    out. Cityscapes' rules assume that objects do not overlap.
    """
    assert detections.size == objects.size, f"sizes differ: {detections.size} and {objects.size}"
    assert (np.diff(detections.scores) <= 0).all(), "detections are sorted by descending score"
    regions = objects.run_lengths()
    areas = _areas(regions)
    kept = np.flatnonzero(areas)
    areas, classes, crowd = areas[kept], objects.classes[kept], objects.crowd[kept]
    regions = [regions[place] for place in kept]
    guesses, masks = detections.classes, detections.masks
    pixels = _areas(masks)
    void = np.zeros(len(masks), np.int64)
    if objects.void is not None and objects.void.any():
        void = _intersections(masks, pixels, [encode(objects.void)])[:, 0]
    right, wrong = (np.zeros((len(masks), len(RANGES)), np.uint16) for _ in range(2))
    overlaps = np.full(len(masks), np.nan)
    for number in np.unique(guesses):
        mine, theirs = np.flatnonzero(guesses == number), np.flatnonzero(classes == number)
        shared = _intersections([masks[place] for place in mine], pixels[mine], [regions[place] for place in theirs])
        pair = Pair(shared, pixels[mine], areas[theirs], crowd[theirs], void[mine])
        right[mine, :-1], wrong[mine, :-1], overlaps[mine] = coco(pair)
        right[mine, -1], wrong[mine, -1] = _cityscapes(pair, min_pixels)
    within = (areas[:, None] >= AREAS[:, 0]) & (areas[:, None] <= AREAS[:, 1])
    counted = np.concatenate([within, areas[:, None] >= min_pixels], axis=1) & ~crowd[:, None]
    return one_image(detections, classes, right, wrong, overlaps, counted=counted)


def one_image(
    detections: Detections,
    classes: NDArray[Any],
    right: NDArray[np.uint16],
    wrong: NDArray[np.uint16],
    overlaps: NDArray[np.float64],
    *,
    counted: NDArray[np.bool_],
) -> Matches:
    """The matches of one image, whose objects have ``classes``; the other arrays are those of :class:`Matches`."""
    return Matches(
        1,
        np.zeros(len(right), np.int32),
        detections.classes.astype(np.int16),
        detections.scores.astype(np.float32),
        overlaps,
        right,
        wrong,
        np.zeros(len(classes), np.int32),
        classes.astype(np.int16),
        counted,
    )


@dataclass(frozen=True, eq=False)
class Pair:
    """N detections, by descending score, and M objects of one class in one image."""

    shared: Areas  # (N, M) common pixels
    pixels: Areas  # (N,) of the detections
    areas: Areas  # (M,) pixels of the objects
    crowd: Flags  # (M,)
    void: Areas  # (N,) void pixels of the detections


def _areas(masks: list[RunLengths]) -> NDArray[np.int64]:
    """Pixels of each mask (N,)."""
    return np.asarray(tools.area(masks), np.int64) if masks else np.zeros(0, np.int64)


def _intersections(masks: list[RunLengths], pixels: NDArray[np.int64], regions: list[RunLengths]) -> NDArray[np.int64]:
    """Common pixels of ``masks``, which have ``pixels``, and ``regions`` (N, M)."""
    if not masks or not regions:
        return np.zeros((len(masks), len(regions)), np.int64)
    shares = np.asarray(tools.iou(masks, regions, [1] * len(regions)))  # a crowd's IoU is intersection over detection
    return np.rint(shares * pixels[:, None]).astype(np.int64)


def iou_of(shared: Areas, pixels: Areas, areas: Areas) -> NDArray[np.float64]:
    """IoU (N, M)."""
    return shared / (pixels[:, None] + areas - shared)


def coco(pair: Pair) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.float64]]:
    """True and false positives (N, 4) as bits, and IoU of the matches at threshold 0.5 in the range "all" (N,).

    By descending score, each detection takes the free object with the greatest IoU, and an ignored object (a crowd, or
    one outside the area range) only if no other matches. A crowd is never taken; of equal IoUs, the last one counts.
    """
    count, total = pair.shared.shape
    iou = iou_of(pair.shared, pair.pixels, pair.areas)
    share = pair.shared / np.where(pair.pixels > 0, pair.pixels, 1)[:, None]
    iou = np.where(pair.crowd, share, iou)
    low, high = AREAS.T[:, :, None]
    ignored = pair.crowd | (pair.areas < low) | (pair.areas > high)  # (4, M)
    taken = np.zeros((len(AREAS), len(THRESHOLDS), total), bool)
    matched, passed = (np.zeros((count, len(AREAS), len(THRESHOLDS)), bool) for _ in range(2))
    overlaps = np.full(count, np.nan)
    least = THRESHOLDS[:, None]
    ranges, levels = np.ogrid[: len(AREAS), : len(THRESHOLDS)]
    for place in np.flatnonzero((iou[:LIMIT] >= least[0]).any(axis=1)):
        free = (iou[place] >= least) & (~taken | pair.crowd)  # (4, T, M)
        wanted = free & ~ignored[:, None]
        choice = np.where(wanted.any(axis=-1, keepdims=True), wanted, free)
        best = total - 1 - np.where(choice, iou[place], -1.0)[..., ::-1].argmax(axis=-1)
        matched[place] = choice.any(axis=-1)
        passed[place] = matched[place] & ignored[ranges, best]
        taken[ranges, levels, best] |= matched[place]
        if matched[place, 0, 0] and not passed[place, 0, 0]:
            overlaps[place] = iou[place, best[0, 0]]
    outside = ((pair.pixels < low) | (pair.pixels > high)).T[..., None]  # (N, 4, 1)
    missed = ~matched & ~outside
    missed[LIMIT:] = False
    return bits(matched & ~passed), bits(missed), overlaps


def _cityscapes(pair: Pair, min_pixels: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """True and false positives (N,) as bits.

    An object is found by the detection with the highest score among those that match; the others are false positives.
    A detection that matches nothing is one too, unless its share of ignored pixels is above the threshold. Ignored are
    void, groups (all crowds of the class are one region) and objects below ``min_pixels``. As in the official script,
    the pixels of a small group count twice.
    """
    pixels, small = np.maximum(pair.pixels, 1), ~pair.crowd & (pair.areas < min_pixels)
    large = ~pair.crowd & ~small
    hit = iou_of(pair.shared[:, large], pixels, pair.areas[large]) > STRICT_THRESHOLDS[:, None, None]  # (T, N, M)
    right = (hit & (hit.cumsum(axis=1) == 1)).any(axis=-1).T  # (N, T)
    matched = hit.any(axis=-1).T
    group = pair.shared[:, pair.crowd].sum(axis=1) * (2 if pair.areas[pair.crowd].sum() < min_pixels else 1)
    share = (pair.void + group + pair.shared[:, small].sum(axis=1)) / pixels
    loose = ~matched & (share[:, None] <= STRICT_THRESHOLDS) & (pair.pixels > 0)[:, None]
    return bits(right), bits((matched & ~right) | loose)


def bits(flags: Flags) -> NDArray[np.uint16]:
    """Flags (..., T) as one number."""
    return (flags * BITS).sum(axis=-1).astype(np.uint16)
