"""Streaming scores: a confusion matrix that grows with the data set and never keeps an image."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from segdistill.config import UserError
from segdistill.criteria import IGNORE


class ConfusionMatrix:
    """Pixel counts ``counts[truth, prediction]`` (int64) of K classes; pixels labelled 255 are left out.

    Scores are fractions in [0, 1]; tables multiply by 100.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, prediction: Tensor, label: Tensor) -> None:
        """Count the pixels of integer maps of one shape. A label id that is neither a class nor 255 is an error."""
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
        """Add another matrix of the same classes."""
        if other.num_classes != self.num_classes:
            raise UserError(f"cannot merge scores of {other.num_classes} classes into scores of {self.num_classes}")
        self.counts += other.counts.to(self.counts.device)

    def all_reduce(self) -> None:
        """Sum over the processes of torch.distributed; nothing happens where it is not initialised."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts)

    def iou(self) -> Tensor:
        """Intersection over union per class (K,) float64; NaN for a class absent from truth and prediction."""
        counts = self.counts.double()
        hits = counts.diagonal()
        return hits / (counts.sum(0) + counts.sum(1) - hits)

    def miou(self) -> float:
        """Mean of :meth:`iou` over the classes that are not NaN; NaN where none is left."""
        return float(self.iou().nanmean())

    def accuracy(self) -> float:
        """Share of pixels that are right; NaN without pixels."""
        counts = self.counts.double()
        return float(counts.trace() / counts.sum())

    def mean_accuracy(self) -> float:
        """Mean over the classes in the truth of the share of their pixels that are right; NaN without pixels."""
        counts = self.counts.double()
        return float((counts.diagonal() / counts.sum(1)).nanmean())
