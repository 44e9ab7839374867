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


def object_targets(objects: Objects) -> Batch:
    """``ids`` (L, H, W) int32, ``classes`` (N,) int64, ``crowd`` (N,) bool and ``void`` (H, W) bool."""
    void = np.zeros(objects.size, bool) if objects.void is None else objects.void
    return {
        "ids": torch.tensor(objects.ids),
        "classes": torch.tensor(objects.classes),
        "crowd": torch.tensor(objects.crowd),
        "void": torch.tensor(void),
    }


def collated(samples: Sequence[Batch]) -> Batch:
    """A batch of samples with objects: layers are filled up with 0, ``classes`` with -1, ``crowd`` with False."""
    layers = max(len(sample["ids"]) for sample in samples)
    count = max(len(sample["classes"]) for sample in samples)
    filled = [
        sample
        | {
            "ids": F.pad(sample["ids"], (0, 0, 0, 0, 0, layers - len(sample["ids"]))),
            "classes": F.pad(sample["classes"], (0, count - len(sample["classes"])), value=NONE),
            "crowd": F.pad(sample["crowd"], (0, count - len(sample["crowd"]))),
        }
        for sample in samples
    ]
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
