"""Objects as tensors of a batch, and back. Legend: B batch, L layers, N objects, H W pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.objects import Objects
from segdistill.types import Batch

NONE = -1
"""Class of the entries that fill up ``classes`` in a batch."""

FILLED = {"ids": 0, "boxes": 0, "classes": NONE, "crowd": 0}
"""The keys that differ in length from sample to sample, and what fills them up."""


def object_targets(objects: Objects) -> Batch:
    """``ids`` (L, H, W) int32, ``classes`` (N,) int64, ``crowd`` (N,) bool and ``void`` (H, W) bool."""
    void = np.zeros(objects.size, bool) if objects.void is None else objects.void
    return {
        "ids": torch.tensor(objects.ids),
        "classes": torch.tensor(objects.classes),
        "crowd": torch.tensor(objects.crowd),
        "void": torch.tensor(void),
    }


def box_targets(objects: Objects) -> Batch:
    """``boxes`` (N, 4) float64 (left, top, right, bottom), ``classes`` (N,) int64 and ``crowd`` (N,) bool.

    Objects without box or pixels are left out.
    """
    boxes = objects.boxed()
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return {
        "boxes": torch.tensor(boxes[kept]),
        "classes": torch.tensor(objects.classes[kept]),
        "crowd": torch.tensor(objects.crowd[kept]),
    }


def collated(samples: Sequence[Batch]) -> Batch:
    """A batch of samples with objects: layers and boxes are filled up with 0, ``classes`` with -1, ``crowd`` with
    False.
    """
    filled = [dict(sample) for sample in samples]
    for key in FILLED.keys() & filled[0].keys():
        most = max(len(sample[key]) for sample in samples)
        for sample in filled:
            value, beyond = sample[key], (0, 0) * (sample[key].ndim - 1)
            sample[key] = F.pad(value, (*beyond, 0, most - len(value)), value=FILLED[key])
    return {key: torch.stack([sample[key] for sample in filled]) for key in filled[0]}


def objects_of(batch: Mapping[str, Tensor], row: int) -> Objects:
    """The objects of one image of a batch."""
    classes = batch["classes"][row].cpu().numpy()
    count = int((classes != NONE).sum())
    return Objects(
        batch["ids"][row].cpu().numpy(),
        classes[:count],
        batch["crowd"][row, :count].cpu().numpy(),
        batch["void"][row].cpu().numpy(),
    )


def boxes_of(batch: Mapping[str, Tensor], row: int) -> Objects:
    """The objects of one image of a batch of :func:`box_targets`; they have boxes and no pixels."""
    classes = batch["classes"][row].cpu().numpy()
    count = int((classes != NONE).sum())
    height, width = batch["image"].shape[-2:]
    boxes, crowd = (batch[key][row, :count].cpu().numpy() for key in ("boxes", "crowd"))
    return Objects.of_boxes(boxes, classes[:count], crowd, (height, width))
