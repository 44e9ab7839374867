"""Compares an exported graph with the network that it was made from, on real pixels."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segdistill.data.dataset import Dataset, Sample
from segdistill.export.onnx_file import Answer, Pixels, Runner
from segdistill.metrics.base import plain
from segdistill.metrics.confusion import ConfusionMatrix
from segdistill.models import prepare
from segdistill.models.segmenter import Segmenter, Window
from segdistill.ops import evaluation_mode

EQUAL = 0.999  # share of pixels whose labels must be those of the segmenter
TIMED = 11  # runs of which the median is the latency


@dataclass(frozen=True)
class View:
    """How a network sees an image: resized to ``size``, whatever its aspect, and through ``window``; None: as it is."""

    size: tuple[int, int] | None = None
    window: Window | None = None


@dataclass(frozen=True)
class Domain:
    """The images of one domain that a graph is compared on; ``kind``: source, validation or unseen."""

    name: str
    kind: str
    dataset: Dataset
    images: int


@dataclass(frozen=True)
class Row:
    """What one graph does on one domain. The scores of graph and torch are None where there are no labels."""

    domain: str
    kind: str
    images: int
    equal: float  # share of pixels, or of detections
    difference: float  # the largest, of the confidence or the detections' scores
    score: float | None
    torch_score: float | None

    def as_dict(self, primary: str) -> dict[str, Any]:
        """For JSON; the scores go by the name ``primary``."""
        found = dict(vars(self))
        found |= {primary: found.pop("score"), f"torch_{primary}": found.pop("torch_score")}
        return found


class Tally(ABC):
    """What is counted of one graph on one domain.

    ``least``: the share of equal predictions that is needed; ``what`` they are; ``about``: when they are equal.
    """

    least: ClassVar[float]
    what: ClassVar[str]
    about: ClassVar[str]

    @abstractmethod
    def add(self, own: Any, other: Any, sample: Sample) -> None:
        """Count the answers of the graph and of the network for one image."""

    @abstractmethod
    def row(self, domain: Domain) -> Row:
        """The counts."""


def torch_runner(segmenter: Segmenter, view: View) -> Runner:
    """The segmenter itself, as evaluation runs it, with the graph's view."""

    def run(images: Pixels) -> Answer:
        height, width = images.shape[1:3]
        with evaluation_mode(segmenter), torch.inference_mode():
            seen = prepare(torch.from_numpy(np.array(images)).permute(0, 3, 1, 2))
            seen = seen if view.size is None else resized(seen, view.size)
            return segmenter.decided(seen, view.window, (height, width))

    return run


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) as a graph of a fixed size resizes them."""
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def compare(
    runners: Mapping[str, Runner],
    reference: Runner,
    domains: Sequence[Domain],
    tally: Callable[[], Tally],
    progress: Callable[[str, int, int], None],
) -> dict[str, list[Row]]:
    """What every graph does on every domain; each image is read and predicted once by each of them."""
    rows: dict[str, list[Row]] = {name: [] for name in runners}
    for domain in domains:
        tallies = {name: tally() for name in runners}
        for number in range(domain.images):
            sample = domain.dataset[number]
            image = np.asarray(sample.image)[None]
            expected = reference(image)
            for name, run in runners.items():
                tallies[name].add(run(image), expected, sample)
            progress(f"comparing on {domain.name}", number + 1, domain.images)
        for name, each in tallies.items():
            rows[name].append(each.row(domain))
    return rows


class MapTally(Tally):
    """Pixels with equal classes, differences of confidence, mIoU."""

    least, what = EQUAL, "labels"
    about = "pixels whose class is the network's; max diff.: of the confidence"

    def __init__(self, num_classes: int) -> None:
        self.matrix, self.torch_matrix = ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)
        self.equal = self.pixels = 0
        self.difference = 0.0

    def add(self, own: Answer, other: Answer, sample: Sample) -> None:
        """See :class:`Tally`."""
        classes, confidence = own
        assert classes.shape == other[0].shape, (classes.shape, other[0].shape)
        self.equal += int((classes == other[0]).sum())
        self.pixels += classes.size
        gap = np.abs(confidence.astype(np.float64) - other[1])
        self.difference = max(self.difference, float(gap.max()) if np.isfinite(gap).all() else float("inf"))
        if sample.label is not None:
            for matrix, found in ((self.matrix, classes), (self.torch_matrix, other[0])):
                matrix.add(_tensor(found[0]), _tensor(sample.label))

    def row(self, domain: Domain) -> Row:
        """See :class:`Tally`."""
        scores = [plain(matrix.miou()) for matrix in (self.matrix, self.torch_matrix)]
        share = self.equal / self.pixels
        return Row(domain.name, domain.kind, domain.images, share, self.difference, scores[0], scores[1])


def _tensor(classes: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.array(classes)).long()


def disagreeing(rows: Sequence[Row], least: float) -> list[Row]:
    """The domains on which fewer than ``least`` of the predictions are those of the network."""
    return [row for row in rows if row.equal < least]


def latencies(runners: Mapping[str, Runner], image: Pixels) -> dict[str, float]:
    """Milliseconds for one image (1, H, W, 3), the median of :data:`TIMED` runs after two that warm up.

    The runners take turns: what slows the machine down for a while slows all of them down.
    """
    times: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(-2, TIMED):
        for name, run in runners.items():
            began = time.perf_counter()
            run(image)
            if number >= 0:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: round(statistics.median(each), 2) for name, each in times.items()}
