"""Semantic segmentation: every pixel has one class, and the score is the mean intersection over union (mIoU)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segdistill.data.dataset import Sample
from segdistill.data.transforms import TaskAugment, TaskTransform
from segdistill.heads import DAFormer, Head
from segdistill.metrics.base import Array, Metric, Samples, interval, plain
from segdistill.metrics.confusion import Calibration, ConfusionMatrix, ImageCounts
from segdistill.metrics.unlabelled import ImageNotes, Note, notes_of
from segdistill.models import HRDA, Model, Segmenter, View
from segdistill.pictures import indexed
from segdistill.tasks.base import Task
from segdistill.types import Batch


@dataclass(frozen=True)
class SemanticSamples(Samples):
    """Per image: the confusion matrix, the mean confidence and a coarse class map."""

    counts: ImageCounts
    notes: ImageNotes

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of images."""
        return self.counts.size

    def resampled(self, name: str) -> NDArray[np.float64]:
        """See :meth:`segdistill.metrics.base.Samples.resampled`: mIoU."""
        return self.counts.resampled(name)

    def by_image(self) -> NDArray[np.float64]:
        """mIoU of every image over the classes in its ground truth or prediction."""
        return self.counts.miou()

    def agreement(self, other: Any) -> float | None:
        """Share of the sampled pixels to which both models assign the same class."""
        return self.notes.agreement(other.notes)

    def arrays(self) -> dict[str, Array]:
        """The fields of ``counts`` and ``notes``, by name."""
        return {field: np.asarray(value) for part in (self.counts, self.notes) for field, value in vars(part).items()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> SemanticSamples:
        """The inverse of :meth:`arrays`."""
        found: dict[str, Any] = dict(arrays) | {name: int(arrays[name]) for name in ("num_classes", "size")}
        counts, notes = ({f.name: found[f.name] for f in fields(kind)} for kind in (ImageCounts, ImageNotes))
        return cls(ImageCounts(**counts), ImageNotes(**notes))


class SemanticMetric(Metric):
    """Confusion matrix and calibration over all pixels, at the resolution of the labels.

    Class scores are upsampled to the label size before the argmax (spec A.11), a few rows at a time, so no K x H x W
    array is ever allocated. Pixels labelled 255 are ignored.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.confusion, self.calibration = ConfusionMatrix(num_classes, device), Calibration(device)
        self.device = device

    def update(self, model: Model, batch: Mapping[str, Tensor], view: View) -> None:
        """See :meth:`segdistill.metrics.base.Metric.update`; ``label`` (B, H, W) class indices, 255 = ignored."""
        assert isinstance(model, Segmenter)
        image, label = (batch[key].to(self.device) for key in ("image", "label"))
        height, width = label.shape[-2:]
        own = [ConfusionMatrix(self.confusion.num_classes, self.device) for _ in image]
        notes = [Note(height, width) for _ in image]
        for strip in model.strips(view.prepare(image), view.window, (height, width)):
            rows = label[strip.image, strip.top : strip.top + len(strip.classes)]
            own[strip.image].add(strip.classes, rows)
            self.calibration.add(strip.confidence, strip.classes, rows)
            notes[strip.image].add(strip)
        for index, counts, note in zip(self.numbers(batch), own, notes, strict=True):
            self.confusion.merge(counts)
            self.seen[index] = counts.counts.cpu().numpy(), note

    def merge(self) -> None:
        """Sum over the processes."""
        super().merge()
        self.confusion.all_reduce()
        self.calibration.all_reduce()

    def samples(self) -> SemanticSamples:
        """The confusion matrix and notes of every image."""
        counts = ImageCounts.of(self.confusion.num_classes, [counts for counts, _ in self.seen.values()])
        return SemanticSamples(counts, notes_of([note for _, note in self.seen.values()]))

    def result(self, name: str) -> dict[str, Any]:
        """mIoU with its interval, IoU by class, accuracies, calibration error, mean confidence, confusion matrix."""
        samples, confusion = self.samples(), self.confusion
        return {
            "miou": plain(confusion.miou()),
            "miou_interval": interval(samples.resampled(name)),
            "iou": [plain(value) for value in confusion.iou().tolist()],
            "accuracy": plain(confusion.accuracy()),
            "mean_accuracy": plain(confusion.mean_accuracy()),
            "calibration_error": plain(self.calibration.error()),
            "confidence": plain(samples.notes.mean_confidence),
            "images": samples.size,
            "confusion": confusion.counts.tolist(),
        }


class Semantic(Task):
    """Semantic segmentation: a class for every pixel."""

    primary = "miou"
    metrics: ClassVar = {
        "miou": {"label": "mIoU", "unit": "%", "by_class": "iou", "by_class_label": "IoU"},
        "accuracy": {"label": "pixel accuracy", "unit": "%"},
        "mean_accuracy": {"label": "mean class accuracy", "unit": "%"},
        "calibration_error": {"label": "calibration error", "unit": "%"},
    }
    Augment = TaskAugment
    network, kept = Segmenter, SemanticSamples

    def build(self, encoder: nn.Module, head: Head, taps: tuple[int, ...], num_classes: int) -> Model:
        """A :class:`Segmenter`, or HRDA's network for a head with two scales."""
        two = isinstance(head, DAFormer) and head.config.two_scale is not None
        return (HRDA if two else Segmenter)(encoder, head, taps, num_classes)

    def transform(self, augment: TaskAugment, size: tuple[int, int]) -> Callable[[Sample], Batch]:
        """A random crop of the image and its ``label`` (H, W) int64, 255 = ignored (spec A.10)."""
        return TaskTransform(augment, size)

    def targets(self, sample: Sample) -> Batch:
        """The image and its ``label`` (H, W) uint8, unchanged."""
        return {"image": torch.tensor(sample.image).permute(2, 0, 1), "label": torch.tensor(sample.label)}

    def metric(self, num_classes: int, device: torch.device | str = "cpu") -> SemanticMetric:
        """See :class:`SemanticMetric`."""
        return SemanticMetric(num_classes, device)

    def pictures(
        self, model: Model, sample: Sample, view: View, colors: Sequence[Sequence[int]], device: torch.device
    ) -> dict[str, Image.Image]:
        """Ground truth and prediction as indexed pictures."""
        assert isinstance(model, Segmenter)
        assert sample.label is not None
        image, (height, width) = self.targets(sample)["image"][None].to(device), sample.label.shape
        prediction = model.predict(view.prepare(image), view.window, (height, width))[0].cpu().numpy()
        return {"truth": indexed(sample.label, colors), "prediction": indexed(prediction, colors)}
