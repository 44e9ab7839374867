"""Compares exported models of objects with the network: detections instead of pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as tools

from segdistill.data.dataset import Sample
from segdistill.export.check import Domain, Row, Tally, View, resized
from segdistill.export.onnx_file import Answer, Pixels, Runner
from segdistill.metrics.base import plain
from segdistill.metrics.boxes import intersections
from segdistill.metrics.instances import ObjectMetric
from segdistill.metrics.matching import iou_of
from segdistill.models import Finder, prepare
from segdistill.models.instance import detections_of
from segdistill.objects import Detections, box_areas
from segdistill.ops import evaluation_mode

EQUAL = 0.99  # share of the detections, weighted by their scores, that must be the network's
OVERLAP, GAP = 0.95, 0.01  # least IoU and largest difference of scores of equal detections


def object_runner(finder: Finder, view: View) -> Runner:
    """The network itself, with the graph's view: images (N, H, W, 3) -> a list of Detections."""

    def run(images: Pixels) -> list[Detections]:
        height, width = images.shape[1:3]
        with evaluation_mode(finder), torch.inference_mode():
            seen = prepare(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2))
            return finder.predict(seen if view.size is None else resized(seen, view.size), (height, width))

    return run


@dataclass(frozen=True)
class Decoder:
    """Detections from the outputs of an :class:`.graph.ObjectGraph`, by the rule of its docstring.

    ``padded``: the network's input size -> the size that masks cover. ``size``: of the network; None: the image's.
    """

    padded: Any
    size: tuple[int, int] | None

    def __call__(self, answer: Answer, image: tuple[int, int]) -> Detections:
        """The objects of the first image of a batch, with masks of the size ``image``."""
        scores, masks = (torch.from_numpy(np.array(part[0], np.float32)) for part in answer)
        shown = self.size or image
        return detections_of(scores, masks, self.padded(*shown), shown, image)


def boxes_found(answer: Answer, image: tuple[int, int]) -> Detections:
    """Detections from the outputs of a :class:`.boxes.BoxGraph`, for the first image of a batch."""
    boxes, scores, labels = (part[0] for part in answer)
    found = scores > 0
    return Detections(scores[found], labels[found], [], image, boxes[found].astype(np.float64))


class ObjectTally(Tally):
    """Equal detections, weighted by their scores; differences of scores; the primary score of ``metric``.

    A detection of the network is equal to one of the graph if class, mask or box (IoU of at least 0.95) and score
    (within 0.01) are. ``decode``: outputs of a graph and the image's size -> detections.
    """

    least, what = EQUAL, "detections"
    about = (
        f"detections of the network, weighted by score, with the graph's class, mask or box (IoU >= {OVERLAP}) and "
        f"score (within {GAP}); max diff.: of the scores"
    )

    def __init__(
        self,
        num_classes: int,
        decode: Callable[[Answer, tuple[int, int]], Detections],
        metric: Callable[[int], ObjectMetric],
    ) -> None:
        self.decode = decode
        self.metrics = metric(num_classes), metric(num_classes)
        self.equal = self.total = self.difference = 0.0
        self.images = 0

    def add(self, own: Answer, other: list[Detections], sample: Sample) -> None:
        """See :class:`Tally`."""
        [expected] = other
        found = self.decode(own, expected.size)
        gaps = paired(expected, found)
        equal = np.isfinite(gaps) & (gaps <= GAP)
        self.total += float(expected.scores.sum())
        self.equal += float(expected.scores[equal].sum())
        self.difference = max(self.difference, float(gaps[np.isfinite(gaps)].max(initial=0)))
        if sample.objects is not None:
            for metric, detections in zip(self.metrics, (found, expected), strict=True):
                metric.add(self.images, detections, sample.objects)
            self.images += 1

    def row(self, domain: Domain) -> Row:
        """See :class:`Tally`."""
        share = self.equal / self.total if self.total else 1.0
        scores = [plain(m.samples().scores()[m.primary]) if self.images else None for m in self.metrics]  # type: ignore[arg-type]
        return Row(domain.name, domain.kind, domain.images, share, self.difference, scores[0], scores[1])


def paired(expected: Detections, found: Detections) -> np.ndarray:
    """For each of ``expected`` the difference of scores to the nearest of ``found`` with equal class and mask or box.

    Each of ``found`` is used once; infinite: there is none left.
    """
    gaps = np.full(len(expected), np.inf)
    if not len(expected) or not len(found):
        return gaps
    overlaps = _overlaps(expected, found)
    allowed = (overlaps >= OVERLAP) & (expected.classes[:, None] == found.classes[None])
    differences = np.where(allowed, np.abs(expected.scores[:, None] - found.scores[None]), np.inf)
    for number, row in enumerate(differences):
        best = int(row.argmin())
        gaps[number] = row[best]
        if np.isfinite(row[best]):
            differences[:, best] = np.inf
    return gaps


def _overlaps(expected: Detections, found: Detections) -> np.ndarray:
    """The IoU (N, M) of masks, of a detector's boxes."""
    if expected.boxes is None or found.boxes is None:
        return np.asarray(tools.iou(expected.masks, found.masks, [0] * len(found)))
    shared = intersections(expected.boxes, found.boxes)
    return iou_of(shared, box_areas(expected.boxes), box_areas(found.boxes))
