"""The interface of a task. Data sources, stages, runs, reports and grids use it and name no task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import nn

from segdistill.config import Config
from segdistill.data.dataset import Sample
from segdistill.data.loader import stacked
from segdistill.heads import Head
from segdistill.metrics.base import Metric, Samples
from segdistill.models import Model, View
from segdistill.types import Batch


class Task(ABC):
    """An entry of :data:`segdistill.tasks.table.TASKS`; stateless.

    ``primary`` is the score by which models are compared. ``metrics`` describes each score in a domain's results: its
    ``label``, its ``unit`` (``%``: a share in [0, 1]), if it has values per class their key ``by_class`` and their
    ``by_class_label``, and whether tables show it ``beside`` the primary score. ``Augment`` holds the settings of
    :meth:`transform`, ``network`` combines an encoder with a head of :data:`segdistill.heads.HEADS`, and ``kept`` is
    what the metric stores per image. ``objects``: whether its data must have objects; ``boxes``: their boxes suffice.
    """

    primary: ClassVar[str]
    metrics: ClassVar[Mapping[str, Mapping[str, Any]]]
    Augment: ClassVar[type[Config]]
    network: ClassVar[type[Model]]
    kept: ClassVar[type[Samples]]
    objects: ClassVar[bool] = False
    boxes: ClassVar[bool] = False

    def build(self, encoder: nn.Module, head: Head, taps: tuple[int, ...], num_classes: int) -> Model:
        """The network of ``encoder`` and ``head``."""
        return self.network(encoder, head, taps, num_classes)

    @abstractmethod
    def transform(self, augment: Any, size: tuple[int, int]) -> Callable[[Sample], Batch]:
        """A function: labelled sample -> ``image`` (3, H, W) uint8 of ``size`` and its targets, augmented as set.

        It draws from torch's global generator, which the loader seeds for every sample.
        """

    @abstractmethod
    def targets(self, sample: Sample) -> Batch:
        """The whole sample for evaluation: ``image`` (3, H, W) uint8 and its targets."""

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """One batch; by default all entries are stacked, so they must have the same size."""
        return stacked(samples)

    @abstractmethod
    def metric(self, num_classes: int, device: torch.device | str = "cpu") -> Metric:
        """A fresh metric for one domain."""

    def pictures(
        self, model: Model, sample: Sample, view: View, colors: Sequence[Sequence[int]], device: torch.device
    ) -> dict[str, Image.Image]:
        """The pictures of a sample for the report, ``truth`` and ``prediction``; empty if the task has none.

        ``model`` is on ``device`` and in evaluation mode; ``colors`` are the class colours.
        """
        del model, sample, view, colors, device
        return {}
