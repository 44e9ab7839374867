"""Augmentation of images with boxes, drawn from torch's global generator. Legend: H W pixels, N boxes."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field

from segdistill.config import Config, Range
from segdistill.data.dataset import Sample
from segdistill.data.object_transforms import Window, finished, random_window
from segdistill.data.targets import box_targets
from segdistill.objects import Objects, box_areas
from segdistill.types import Batch


class BoxAugment(Config):
    """Augmentation of detection stages. The defaults are those of mmdetection's Pascal VOC recipe, by which Table 10 is
    trained: the whole image, as large as fits, flipped or not. There, an upright image is fitted into the turned size;
    here, all images of a stage have one size. Images are padded with the mean colour at the right and at the bottom.
    """

    scale: Range = Field((1.0, 1.0), description="range of the image's size relative to the largest that fits")
    flip: float = Field(0.5, ge=0, le=1)
    photometric: bool = Field(False, description="the distortion of segdistill.data.photometric")
    keep: float = Field(0.25, gt=0, le=1, description="boxes with a smaller share of their area in a crop are dropped")


class BoxTransform:
    """Sample with objects -> a random crop: ``image`` (3, H, W) uint8 and the keys of
    :func:`segdistill.data.targets.box_targets`.
    """

    def __init__(self, config: BoxAugment, size: tuple[int, int]) -> None:
        self.config, self.size = config, size

    def __call__(self, sample: Sample) -> Batch:
        assert sample.objects is not None, "the stage checks that its domains have objects"
        source, (low, high) = sample.objects.size, self.config.scale
        factor = low + (high - low) * torch.rand(()).item()
        ratio = factor * min(self.size[0] / source[0], self.size[1] / source[1])
        window = random_window(source, ratio, self.size)
        image, objects = window.image(sample.image), boxes_in(sample.objects, window, self.config.keep)
        if torch.rand(()).item() < self.config.flip:
            image, objects = image[:, ::-1], flipped(objects)
        pixels = finished(image, self.size, distorted=self.config.photometric)
        return {"image": pixels} | box_targets(objects)


def boxes_in(objects: Objects, window: Window, keep: float) -> Objects:
    """The boxes in ``window``, clipped to it, without those of which less than ``keep`` of the area is left."""
    height, width = window.size
    rows, columns = (resized / side for side, resized in zip(window.source, window.resized, strict=True))
    top, left = window.corner
    whole = objects.boxed() * (columns, rows, columns, rows) - (left, top, left, top)
    inside = whole.clip(0, (width, height, width, height))
    kept = (box_areas(inside) > 0) & (box_areas(inside) >= keep * box_areas(whole))
    return Objects.of_boxes(inside[kept], objects.classes[kept], objects.crowd[kept], window.size)


def flipped(objects: Objects) -> Objects:
    """The boxes of the mirrored image."""
    left, top, right, bottom = objects.boxed().T
    width = objects.size[1]
    boxes = np.stack([width - right, top, width - left, bottom], axis=1)
    return Objects.of_boxes(boxes, objects.classes, objects.crowd, objects.size)
