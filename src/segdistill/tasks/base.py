"""What a task says of itself. Data sources, stages, runs, reports and grids ask for it and know no task by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from segdistill.config import Config
from segdistill.data.dataset import Sample
from segdistill.data.loader import stacked
from segdistill.metrics.base import Metric, Samples
from segdistill.models import Model, View
from segdistill.types import Batch


class Task(ABC):
    """One row of :data:`segdistill.tasks.table.TASKS`; it holds no state.

    ``primary`` is the score by which models are compared. ``metrics`` says of each score in a domain's results its
    ``label`` and ``unit`` (``%``: a share in [0, 1]), and where there is one, ``by_class``: the key of its values per
    class, and their ``by_class_label``. ``Augment`` are the settings of :meth:`transform`, ``network`` is made
    of an encoder and a head of :data:`segdistill.heads.HEADS`, and ``kept`` is what the metric keeps of images.
    """

    primary: ClassVar[str]
    metrics: ClassVar[Mapping[str, Mapping[str, str]]]
    Augment: ClassVar[type[Config]]
    network: ClassVar[type[Model]]
    kept: ClassVar[type[Samples]]

    @abstractmethod
    def transform(self, augment: Any, size: tuple[int, int]) -> Callable[[Sample], Batch]:
        """Labelled sample -> ``image`` (3, H, W) uint8 of ``size`` and its targets, as settings ``augment`` say.

        It draws from torch's global generator, which the loader seeds for every sample.
        """

    @abstractmethod
    def targets(self, sample: Sample) -> Batch:
        """The whole sample, as evaluation sees it: ``image`` (3, H, W) uint8 and its targets."""

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """One batch; by default every entry is stacked, and so must have one size."""
        return stacked(samples)

    @abstractmethod
    def metric(self, num_classes: int, device: torch.device | str = "cpu") -> Metric:
        """A fresh metric of one domain."""

    def pictures(
        self, model: Model, sample: Sample, view: View, colors: Sequence[Sequence[int]], device: torch.device
    ) -> dict[str, Image.Image]:
        """What a page shows of a sample, by what it shows: ``truth`` and ``prediction``; empty: nothing can be shown.

        ``model`` is on ``device`` and in evaluation mode; ``colors`` are the classes'.
        """
        del model, sample, view, colors, device
        return {}
