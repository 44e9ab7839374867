"""What predictions say without labels, and their score where there are labels, for class maps and for objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from segdistill.data.dataset import Sample
from segdistill.inference.model import Model, ObjectModel
from segdistill.inference.objects import KEPT, ObjectResult
from segdistill.inference.result import Result
from segdistill.metrics.confusion import ConfusionMatrix
from segdistill.metrics.instances import ObjectMetric
from segdistill.metrics.unlabelled import object_agreement, object_confidence
from segdistill.tasks.table import TASKS

Answer = TypeVar("Answer", Result, ObjectResult)


class Measures(ABC, Generic[Answer]):
    """The measures of one kind of prediction, each in [0, 1], and the score of the samples that were added.

    ``label`` is the score's name.
    """

    label: str

    @abstractmethod
    def confidence(self, result: Answer) -> float:
        """How sure the model is of its prediction for one image."""

    @abstractmethod
    def agreement(self, result: Answer, other: Answer) -> float:
        """How much the predictions of two models for one image are alike."""

    @abstractmethod
    def add(self, result: Answer, sample: Sample) -> None:
        """Add a prediction and its ground truth."""

    @abstractmethod
    def score(self) -> float:
        """The score of all that was added; NaN without ground truth."""


class ClassMaps(Measures[Result]):
    """Mean confidence and share of equal pixels; mIoU over ``num_classes``."""

    label = "mIoU"

    def __init__(self, num_classes: int) -> None:
        self.matrix = ConfusionMatrix(num_classes)

    def confidence(self, result: Result) -> float:
        """Mean over the pixels."""
        return float(result.confidence.mean())

    def agreement(self, result: Result, other: Result) -> float:
        """Share of the pixels to which both give the same class."""
        return float((result.classes == other.classes).mean())

    def add(self, result: Result, sample: Sample) -> None:
        """See :class:`Measures`."""
        assert sample.label is not None
        maps = (torch.from_numpy(each.astype(np.int64)) for each in (result.classes, sample.label))
        self.matrix.add(*maps)

    def score(self) -> float:
        """mIoU."""
        return self.matrix.miou()


class Found(Measures[ObjectResult]):
    """Measures of objects with a score of at least :data:`.inference.objects.KEPT`; the primary score of ``task``."""

    def __init__(self, task: str, num_classes: int) -> None:
        self.primary = TASKS[task].primary
        self.label = TASKS[task].metrics[self.primary]["label"]
        metric = TASKS[task].metric(num_classes)
        assert isinstance(metric, ObjectMetric)
        self.metric = metric

    def confidence(self, result: ObjectResult) -> float:
        """See :func:`.unlabelled.object_confidence`."""
        return object_confidence(result.above(KEPT).detections)

    def agreement(self, result: ObjectResult, other: ObjectResult) -> float:
        """See :func:`.unlabelled.object_agreement`."""
        return object_agreement(*(each.above(KEPT).detections for each in (result, other)))

    def add(self, result: ObjectResult, sample: Sample) -> None:
        """See :class:`Measures`."""
        assert sample.objects is not None
        self.metric.add(len(self.metric.seen), result.detections, sample.objects)

    def score(self) -> float:
        """AP, or AP50 of boxes."""
        found = self.metric.samples().scores()[self.primary]
        assert isinstance(found, float)
        return found


def measures_of(model: Model | ObjectModel) -> Measures[Any]:
    """Fresh measures for the predictions of ``model``."""
    if isinstance(model, Model):
        return ClassMaps(len(model.names))
    task = next(name for name, each in TASKS.items() if isinstance(model.segmenter, each.network))
    return Found(task, len(model.names))
