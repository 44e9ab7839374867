"""Detection: an encoder and a head that finds boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from segdistill.data.targets import NONE
from segdistill.models.model import Finder, need_floats
from segdistill.objects import Detections
from segdistill.types import Batch, LossTerms


class Detector(Finder):
    """A detector with ``num_classes`` classes, whose head is a :class:`.faster_rcnn.FasterRCNN`.

    Images are RGB in [0, 1], (B, 3, H, W), of any size; the encoder normalises them, and nothing resizes them.
    """

    def loss_of(self, decoded: Any, batch: Batch) -> LossTerms:
        """The head's loss against the boxes of the batch, without crowds; see :mod:`segdistill.data.targets`."""
        head: Any = self.head
        boxes, classes = zip(*(counted_boxes(batch, row) for row in range(len(batch["boxes"]))), strict=True)
        return head.box_loss(decoded, boxes, classes)

    @torch.no_grad()
    def predict(self, images: Num[Tensor, "b 3 h w"], size: tuple[int, int] | None = None) -> list[Detections]:
        """The boxes in each image, in pixels of the images' size or of ``size`` (h, w), clipped to it.

        Call ``eval()`` first.
        """
        need_floats(images)
        head: Any = self.head
        height, width = images.shape[-2:]
        decoded, _ = self.decoded(images)
        wanted = size or (height, width)
        return [
            detections_of(boxes, scores, classes, (height, width), wanted)
            for boxes, scores, classes in head.found(decoded)
        ]


def counted_boxes(batch: Batch, row: int) -> tuple[Float[Tensor, "n 4"], Int[Tensor, " n"]]:
    """Boxes and classes of the objects of one image that are no crowds."""
    classes = batch["classes"][row]
    counted = (classes != NONE) & ~batch["crowd"][row]
    return batch["boxes"][row][counted], classes[counted]


def detections_of(
    boxes: Float[Tensor, "n 4"],
    scores: Float[Tensor, " n"],
    classes: Int[Tensor, " n"],
    shown: tuple[int, int],
    size: tuple[int, int],
) -> Detections:
    """One image's objects: boxes in its pixels (``shown``, without padding), scaled to ``size``.

    Boxes in the padding are left out.
    """
    places = boxes.double().cpu().numpy().clip(0, (shown[1], shown[0], shown[1], shown[0]))
    kept = (places[:, 2:] > places[:, :2]).all(axis=1)
    down, across = (to / own for to, own in zip(size, shown, strict=True))
    values, kinds = scores.float().cpu().numpy()[kept], classes.cpu().numpy()[kept]
    return Detections(values, kinds.astype(np.int64), [], size, places[kept] * (across, down, across, down))
