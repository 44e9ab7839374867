"""Detection: every object has a class and a box, and the score is the average precision at an IoU of 0.5 (AP50)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from PIL import Image

from segdistill.data.box_transforms import BoxAugment, BoxTransform
from segdistill.data.dataset import Sample
from segdistill.data.targets import box_targets, collated
from segdistill.metrics.boxes import BoxMetric, BoxSamples
from segdistill.models import Detector, Model, View
from segdistill.pictures import box_picture
from segdistill.tasks.base import Task
from segdistill.tasks.instance import SHOWN
from segdistill.types import Batch


class Detection(Task):
    """Detection: objects with a class and a box."""

    primary = "ap50"
    objects = boxes = True
    metrics: ClassVar = {
        "ap50": {"label": "AP50", "unit": "%", "by_class": "ap50_by_class", "by_class_label": "AP50"},
        "ap50_11": {"label": "AP50, 11 points", "unit": "%"},
        "ap": {"label": "COCO AP", "unit": "%", "beside": True},
        "coco_ap50": {"label": "COCO AP50", "unit": "%"},
        "ap75": {"label": "COCO AP75", "unit": "%"},
    }
    Augment = BoxAugment
    network, kept = Detector, BoxSamples

    def transform(self, augment: BoxAugment, size: tuple[int, int]) -> Callable[[Sample], Batch]:
        """The image or a crop of it with the boxes inside; see :class:`.box_transforms.BoxTransform`."""
        return BoxTransform(augment, size)

    def targets(self, sample: Sample) -> Batch:
        """The image and its boxes, unchanged."""
        assert sample.objects is not None, "the recipe's check asks for objects"
        return {"image": torch.tensor(sample.image).permute(2, 0, 1)} | box_targets(sample.objects)

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """Images have different numbers of boxes; see :func:`segdistill.data.targets.collated`."""
        return collated(samples)

    def metric(self, num_classes: int, device: torch.device | str = "cpu") -> BoxMetric:
        """See :class:`.boxes.BoxMetric`."""
        return BoxMetric(num_classes, device)

    def pictures(
        self, model: Model, sample: Sample, view: View, colors: Sequence[Sequence[int]], device: torch.device
    ) -> dict[str, Image.Image]:
        """The boxes on the image: ground truth, and predictions with a score of at least 0.5."""
        assert isinstance(model, Detector)
        assert sample.objects is not None
        truth = sample.objects
        image = self.targets(sample)["image"][None].to(device)
        found = model.predict(view.prepare(image), truth.size)[0].above(SHOWN)
        return {
            "truth": box_picture(sample.image, truth.boxed(), truth.classes, colors, crowd=truth.crowd),
            "prediction": box_picture(sample.image, found.boxed(), found.classes, colors),
        }
