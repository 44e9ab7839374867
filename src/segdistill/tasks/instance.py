"""Instance segmentation: every object has a class and a mask, and the score is the mean average precision (AP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from PIL import Image

from segdistill.data.dataset import Sample
from segdistill.data.object_transforms import ObjectAugment, ObjectTransform
from segdistill.data.targets import collated, object_targets
from segdistill.metrics.instances import InstanceMetric, InstanceSamples
from segdistill.models import InstanceSegmenter, Model, View
from segdistill.pictures import object_picture
from segdistill.tasks.base import Task
from segdistill.types import Batch

SHOWN = 0.5
"""Least score of the objects in a picture."""


class Instance(Task):
    """Instance segmentation: objects with a class and a mask."""

    primary = "ap"
    objects = True
    metrics: ClassVar = {
        "ap": {"label": "AP", "unit": "%", "by_class": "ap_by_class", "by_class_label": "AP"},
        "ap50": {"label": "AP50", "unit": "%", "beside": True},
        "ap75": {"label": "AP75", "unit": "%"},
        "cityscapes_ap": {"label": "Cityscapes AP", "unit": "%"},
        "cityscapes_ap50": {"label": "Cityscapes AP50", "unit": "%"},
    }
    Augment = ObjectAugment
    network, kept = InstanceSegmenter, InstanceSamples

    def transform(self, augment: ObjectAugment, size: tuple[int, int]) -> Callable[[Sample], Batch]:
        """A random crop of the image and its objects; see :class:`.object_transforms.ObjectTransform`."""
        return ObjectTransform(augment, size)

    def targets(self, sample: Sample) -> Batch:
        """The image and its objects, unchanged."""
        assert sample.objects is not None, "the recipe's check asks for objects"
        return {"image": torch.tensor(sample.image).permute(2, 0, 1)} | object_targets(sample.objects)

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """Images have different numbers of objects; see :func:`segdistill.data.targets.collated`."""
        return collated(samples)

    def metric(self, num_classes: int, device: torch.device | str = "cpu") -> InstanceMetric:
        """See :class:`.instances.InstanceMetric`."""
        return InstanceMetric(num_classes, device)

    def pictures(
        self, model: Model, sample: Sample, view: View, colors: Sequence[Sequence[int]], device: torch.device
    ) -> dict[str, Image.Image]:
        """The objects on the image: ground truth, and predictions with a score of at least 0.5."""
        assert isinstance(model, InstanceSegmenter)
        assert sample.objects is not None
        image = self.targets(sample)["image"][None].to(device)
        found = model.predict(view.prepare(image), sample.objects.size)[0]
        return {
            "truth": object_picture(sample.image, sample.objects, colors),
            "prediction": object_picture(sample.image, found.above(SHOWN).painted(), colors),
        }
