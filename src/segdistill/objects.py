"""Objects of one image: ground truth as layers of object ids, predictions as run lengths. Does not import torch.

Legend: H W pixels, N objects, L layers. Run lengths are COCO's compressed form, ``{"size": [H, W], "counts": bytes}``.
A box is (left, top, right, bottom) in pixels from the image's corner; its area is (right - left) * (bottom - top).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as tools
from numpy.typing import NDArray

RunLengths = dict[str, Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Objects:
    """The annotated objects of an image.

    ``ids`` (L, H, W) int32: layer by layer, the number of the object at each pixel, counted from 1; 0: no object. The
    pixels of an object are in one layer only. A single layer is enough unless objects overlap. ``classes`` (N,) int64;
    ``crowd`` (N,) bool: a region with several objects, which is neither learned nor counted. ``void`` (H, W) bool:
    pixels without annotation; None: every pixel is annotated. An object may have no pixels, for example after a crop.
    ``boxes`` (N, 4) float64: the annotated boxes; None: those of the pixels. Data sets of boxes have no pixels.
    """

    ids: NDArray[np.int32]
    classes: NDArray[np.int64]
    crowd: Mask
    void: Mask | None = None
    boxes: NDArray[np.float64] | None = None

    @classmethod
    def of_boxes(
        cls,
        boxes: Sequence[Sequence[float]] | NDArray[np.float64],
        classes: Sequence[int] | NDArray[np.int64],
        crowd: Sequence[bool] | Mask,
        size: tuple[int, int],
    ) -> Objects:
        """Objects without pixels in an image of ``size`` (H, W)."""
        table = np.asarray(boxes, np.float64).reshape(-1, 4)
        ids = np.zeros((1, *size), np.int32)
        return cls(ids, np.asarray(classes, np.int64), np.asarray(crowd, bool), boxes=table)

    @classmethod
    def of_map(cls, instance: NDArray[np.integer], label: NDArray[np.integer], *, void: Mask | None = None) -> Objects:
        """Objects of an instance map (H, W), 0 = none, whose class is the ``label`` (H, W) of their first pixel.

        Objects are numbered by their value in the map; those labelled 255 are left out.
        """
        values, first, inverse = np.unique(instance, return_index=True, return_inverse=True)
        classes = label.ravel()[first].astype(np.int64)
        kept = (values > 0) & (classes != 255)
        numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
        ids = numbers[inverse].reshape(1, *instance.shape)
        return cls(ids, classes[kept], np.zeros(int(kept.sum()), bool), void)

    @classmethod
    def of_masks(
        cls, masks: Sequence[Mask], classes: Sequence[int], crowd: Sequence[bool], size: tuple[int, int]
    ) -> Objects:
        """Objects with the given masks (H, W), which may overlap: each goes into the first layer where it fits."""
        layers: list[NDArray[np.int32]] = [np.zeros(size, np.int32)]
        for number, mask in enumerate(masks, 1):
            layer = next((each for each in layers if not each[mask].any()), None)
            if layer is None:
                layer = np.zeros(size, np.int32)
                layers.append(layer)
            layer[mask] = number
        return cls(np.stack(layers), np.asarray(classes, np.int64), np.asarray(crowd, bool))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.ids.shape[-2:]
        return height, width

    def boxed(self) -> NDArray[np.float64]:
        """The box of every object (N, 4); zeros where it has neither a box nor pixels."""
        if self.boxes is not None:
            return self.boxes
        found = np.zeros((len(self.classes), 4))
        for layer in self.ids:
            for number, box in enumerate(boxes_of(layer, len(self.classes))):
                if box is not None:
                    top, left, bottom, right = box
                    found[number] = left, top, right, bottom
        return found

    def areas(self) -> NDArray[np.int64]:
        """Pixels of each object (N,)."""
        return np.bincount(self.ids.ravel(), minlength=len(self.classes) + 1)[1:]

    def box_areas(self) -> NDArray[np.int64]:
        """Area of the box of each object (N,), in whole pixels."""
        return np.rint(box_areas(self.boxed())).astype(np.int64)

    def class_map(self) -> NDArray[np.uint8]:
        """The class at each pixel (H, W), that of the smallest object where several overlap; 255: none, or a crowd."""
        classes = np.concatenate([[255], np.where(self.crowd, 255, self.classes)]).astype(np.uint8)
        if len(self.ids) == 1:
            return classes[self.ids[0]]
        found, smallest = np.full(self.size, 255, np.uint8), np.full(self.size, np.iinfo(np.int64).max)
        areas = np.concatenate([[0], self.areas()])
        for layer in self.ids:
            above = (layer > 0) & (areas[layer] <= smallest)
            found[above], smallest[above] = classes[layer[above]], areas[layer[above]]
        return found

    def run_lengths(self) -> list[RunLengths]:
        """The mask of every object."""
        found = [empty(self.size)] * len(self.classes)
        for layer in self.ids:
            for number, box in enumerate(boxes_of(layer, len(self.classes))):
                if box is not None:
                    top, left, bottom, right = box
                    found[number] = encode_crop(layer[top:bottom, left:right] == number + 1, (top, left), self.size)
        return found


@dataclass(frozen=True, eq=False)
class Detections:
    """Predicted objects of an image: ``scores`` (N,) float32 in [0, 1], ``classes`` (N,) int64, their masks.

    Sorted by descending score. Masks may overlap. ``boxes`` (N, 4) float64: a detector's boxes, and then no masks.
    """

    scores: NDArray[np.float32]
    classes: NDArray[np.int64]
    masks: list[RunLengths]
    size: tuple[int, int]
    boxes: NDArray[np.float64] | None = None

    @classmethod
    def of(
        cls, scores: Sequence[float], classes: Sequence[int], masks: Sequence[RunLengths], size: tuple[int, int]
    ) -> Detections:
        """From sorted scores, their classes and their masks."""
        return cls(np.array(scores, np.float32), np.array(classes, np.int64), list(masks), size)

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> Detections:
        """Those with at least ``score``."""
        count = int((self.scores >= score).sum())
        boxes = None if self.boxes is None else self.boxes[:count]
        return Detections(self.scores[:count], self.classes[:count], self.masks[:count], self.size, boxes)

    def boxed(self) -> NDArray[np.float64]:
        """The box of every object (N, 4): its own or that of its mask."""
        if self.boxes is not None:
            return self.boxes
        found = np.array([tools.toBbox(runs) for runs in self.masks], np.float64).reshape(-1, 4)
        found[:, 2:] += found[:, :2]
        return found

    def painted(self, *, least: int = 1) -> Objects:
        """As objects that do not overlap: a pixel belongs to the detection with the highest score.

        Detections with fewer than ``least`` visible pixels are left out.
        """
        ids, kept = self.paint(least=least)
        return Objects(ids[None], self.classes[kept], np.zeros(len(kept), bool))

    def visible(self, *, least: int = 1) -> Detections:
        """The detections with at least ``least`` visible pixels, whose masks are these; see :meth:`painted`."""
        ids, kept = self.paint(least=least)
        masks = Objects(ids[None], self.classes[kept], np.zeros(len(kept), bool)).run_lengths()
        return Detections(self.scores[kept], self.classes[kept], masks, self.size)

    def paint(self, *, least: int = 1) -> tuple[NDArray[np.int32], list[int]]:
        """The ids (H, W) of :meth:`painted`, and the detection of each id, counted from 0."""
        ids, kept = np.zeros(self.size, np.int32), []
        for number, runs in enumerate(self.masks):
            free = decode(runs) & (ids == 0)
            if free.sum() >= least:
                kept.append(number)
                ids[free] = len(kept)
        return ids, kept


def boxes_of(ids: NDArray[np.int32], count: int) -> list[tuple[int, int, int, int] | None]:
    """The box (top, left, bottom, right), end exclusive, of the ids 1 to ``count`` in a map (H, W); None: absent."""
    change = np.ones(ids.shape, bool)  # where a run of equal ids begins in its row
    np.not_equal(ids[:, 1:], ids[:, :-1], out=change[:, 1:])
    starts = np.flatnonzero(change)
    lengths, values = np.diff(starts, append=ids.size), ids.ravel()[starts] - 1
    kept = values >= 0
    (rows, left), values = np.divmod(starts[kept], ids.shape[1]), values[kept]
    low, high = np.full((2, count), np.iinfo(np.int64).max), np.full((2, count), -1)
    for axis, (least, most) in enumerate(((rows, rows), (left, left + lengths[kept] - 1))):
        np.minimum.at(low[axis], values, least)
        np.maximum.at(high[axis], values, most)
    return [
        (int(top), int(left), int(bottom) + 1, int(right) + 1) if bottom >= 0 else None
        for top, left, bottom, right in zip(*low, *high, strict=True)
    ]


def box_areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas (N,) of boxes (N, 4); 0 for boxes without area."""
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)


def area_and_box(runs: RunLengths) -> tuple[int, list[int]]:
    """Pixels of a mask, and its box as COCO gives it: left, top, width, height."""
    return int(tools.area(runs)), [int(value) for value in tools.toBbox(runs)]


def encode(mask: Mask) -> RunLengths:
    """The run lengths of ``mask`` (H, W)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    size = (mask.shape[0], mask.shape[1])
    if not len(rows):
        return empty(size)
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return encode_crop(crop, (int(rows[0]), int(columns[0])), size)


def encode_crop(crop: Mask, corner: tuple[int, int], size: tuple[int, int]) -> RunLengths:
    """The run lengths of a mask of ``size`` (H, W) that is ``crop`` at ``corner`` (top, left) and empty elsewhere.

    The cost depends on the crop, not on the image.
    """
    (top, left), (height, width) = corner, size
    padded = np.zeros((crop.shape[1], crop.shape[0] + 2), np.int8)  # columns first, as run lengths go
    padded[:, 1:-1] = crop.T
    change = np.diff(padded, axis=1)
    column, row = np.nonzero(change == 1)
    starts = (left + column) * height + top + row
    column, row = np.nonzero(change == -1)
    ends = (left + column) * height + top + row
    apart = np.append(starts[1:] != ends[:-1], True) if len(starts) else np.zeros(0, bool)  # full columns join
    starts, ends = starts[np.roll(apart, 1)], ends[apart]
    counts = np.diff(np.concatenate([[0], np.stack([starts, ends], 1).ravel(), [height * width]]))
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    runs: Any = tools.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return runs


def empty(size: tuple[int, int]) -> RunLengths:
    """The run lengths of a mask without pixels."""
    return encode_crop(np.zeros((0, 0), bool), (0, 0), size)


def decode(runs: RunLengths) -> Mask:
    """The mask (H, W) of run lengths."""
    return tools.decode(runs).view(bool)
