"""Streaming scores: confusion matrices, calibration, and bootstrap resampling of mIoU.

Images are not kept, but their confusion matrices are, since the bootstrap draws whole images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdistill.config import UserError
from segdistill.criteria import IGNORE
from segdistill.metrics.base import RESAMPLES, draws
from segdistill.processes import total

BINS = 15
"""Number of equal-width bins of the calibration error."""

FIXED = 2**24
"""Confidences are summed as multiples of 1 / FIXED: integer sums are exact, so their order does not matter."""


class ConfusionMatrix:
    """Pixel counts ``counts[truth, prediction]`` (int64) of K classes; pixels labelled 255 are ignored.

    Scores are fractions in [0, 1]; tables multiply by 100.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of two integer maps of one shape. A label that is neither a class nor 255 is an error."""
        if prediction.shape != label.shape:
            raise UserError(f"prediction {tuple(prediction.shape)} and label {tuple(label.shape)} differ in shape")
        k = self.num_classes
        valid = label != IGNORE
        truth, guess = label[valid].long(), prediction[valid].long()
        if truth.numel() == 0:
            return
        low, high = (int(v) for v in truth.aminmax())
        if low < 0 or high >= k:
            raise UserError(
                f"label id {high if high >= k else low} is not a class: allowed are 0..{k - 1} and 255 (ignored); "
                "map the label ids to the classes of the model"
            )
        assert 0 <= int(guess.min()) <= int(guess.max()) < k, "predictions are class indices"
        self.counts += torch.bincount(truth * k + guess, minlength=k * k).view(k, k).to(self.counts.device)

    def merge(self, other: ConfusionMatrix) -> None:
        """Add another matrix with the same classes."""
        if other.num_classes != self.num_classes:
            raise UserError(f"cannot merge scores of {other.num_classes} classes into scores of {self.num_classes}")
        self.counts += other.counts.to(self.counts.device)

    def all_reduce(self) -> None:
        """Sum over the processes of torch.distributed; nothing happens where it is not initialised."""
        self.counts = total(self.counts)

    def iou(self) -> Tensor:
        """Intersection over union per class (K,) float64; NaN for a class absent from ground truth and prediction."""
        counts = self.counts.double()
        hits = counts.diagonal()
        return hits / (counts.sum(0) + counts.sum(1) - hits)

    def miou(self) -> float:
        """Mean of :meth:`iou` over the classes that are not NaN; NaN if all are."""
        return float(self.iou().nanmean())

    def accuracy(self) -> float:
        """Share of correct pixels; NaN without pixels."""
        counts = self.counts.double()
        return float(counts.trace() / counts.sum())

    def mean_accuracy(self) -> float:
        """Mean share of correct pixels over the classes in the ground truth; NaN without pixels."""
        counts = self.counts.double()
        return float((counts.diagonal() / counts.sum(1)).nanmean())


class Calibration:
    """Expected calibration error over :data:`BINS` equal-width confidence bins; pixels labelled 255 are ignored.

    Per bin (int64): number of pixels, number of correct ones, and the sum of confidences in units of 1 /
    :data:`FIXED` (enough for 5e11 pixels).
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(3, BINS, dtype=torch.int64, device=device)

    def add(self, confidence: Tensor, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of maps of the same shape: confidences in [0, 1], predicted classes, labels."""
        valid = label != IGNORE
        confidence, right = confidence[valid], prediction[valid] == label[valid]
        place = (confidence * BINS).long().clamp(0, BINS - 1)
        parts = (confidence.double() * FIXED).round().long()
        for row, values in enumerate((torch.ones_like(place), right.long(), parts)):
            self.sums[row] += torch.zeros_like(self.sums[row]).index_add_(0, place, values)

    def all_reduce(self) -> None:
        """Sum over the processes of torch.distributed; nothing happens where it is not initialised."""
        self.sums = total(self.sums)

    def error(self) -> float:
        """Mean over the pixels of |accuracy - mean confidence| of their bin; NaN without pixels."""
        pixels, hits, parts = self.sums.double()
        return float((hits - parts / FIXED).abs().sum() / pixels.sum())


@dataclass(frozen=True)
class ImageCounts:
    """Sparse confusion matrices of ``size`` images.

    Entry j: image ``images[j]`` has ``counts[j]`` pixels in cell ``cells[j]`` = truth * K + prediction.
    """

    num_classes: int
    size: int
    images: NDArray[np.int32]
    cells: NDArray[np.int32]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, num_classes: int, matrices: Sequence[NDArray[np.int64]]) -> ImageCounts:
        """From dense matrices (K, K)."""
        cells = [np.flatnonzero(matrix) for matrix in matrices]
        counts = [matrix.reshape(-1)[cell] for matrix, cell in zip(matrices, cells, strict=True)]
        return cls(
            num_classes,
            len(matrices),
            np.repeat(np.arange(len(cells)), [len(cell) for cell in cells]).astype(np.int32),
            np.concatenate([np.empty(0), *cells]).astype(np.int32),
            np.concatenate([np.empty(0, np.int64), *counts]).astype(np.int64),
        )

    def hits_and_unions(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Per image and class (N, K): correct pixels, and pixels of the class in ground truth or prediction."""
        k = self.num_classes
        truth, guess = np.divmod(self.cells, k)
        hit = truth == guess

        def table(classes: NDArray[np.int32], counts: NDArray[np.int64]) -> NDArray[np.float64]:
            flat = np.bincount(self.images.astype(np.int64) * k + classes, counts, minlength=self.size * k)
            return flat.reshape(self.size, k).astype(np.float64)

        hits = table(truth, self.counts * hit)
        return hits, table(truth, self.counts) + table(guess, self.counts) - hits

    def miou(self) -> NDArray[np.float64]:
        """mIoU of every single image (N,) over the classes in its ground truth or prediction; NaN without any."""
        return _mean_iou(*self.hits_and_unions())

    def resampled(self, name: str) -> NDArray[np.float64]:
        """mIoU (RESAMPLES,) of the draws of :meth:`segdistill.metrics.base.Samples.resampled`.

        A class that no drawn image contains is left out, as in ``miou``.
        """
        if self.size < 2:
            return np.full(RESAMPLES, np.nan)
        drawn = draws(name, self.size)
        return _mean_iou(*(drawn @ part for part in self.hits_and_unions()))


def _mean_iou(hits: NDArray[np.float64], unions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over the classes (R, K) that have pixels, per row; NaN without any."""
    known = unions > 0
    iou = np.divide(hits, unions, out=np.zeros_like(hits), where=known)
    classes = known.sum(axis=1)
    return np.divide(iou.sum(axis=1), classes, out=np.full(len(hits), np.nan), where=classes > 0)
