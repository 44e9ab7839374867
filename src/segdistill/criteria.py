"""Losses on pixels and on image-level classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from segdistill.processes import shared_count

IGNORE = 255
"""The label of pixels that losses and metrics ignore."""


def pixel_cross_entropy(logits: Float[Tensor, "b k h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels of all processes that are not :data:`IGNORE`, in float32.

    Zero, but part of the graph, if every pixel is ignored.
    """
    total = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / shared_count((labels != IGNORE).sum())


def presence_loss(
    logits: Float[Tensor, "b k"], labels: Int[Tensor, "b h w"], min_share: float = 0.001
) -> Float[Tensor, ""]:
    """Binary cross-entropy between image-level ``logits`` and the classes that the labels contain. Ours.

    Supervises a CLS token from dense labels: class k is present if it covers at least ``min_share`` of the image's
    labelled pixels. Images without labelled pixels do not count; a batch of such images gives zero, but part of the
    graph. The mean is over the images of all processes.
    """
    target, known = presence(labels, logits.shape[1], min_share)
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(dim=1)
    return (loss * known).sum() / shared_count(known.sum())


def presence(
    labels: Int[Tensor, "b h w"], num_classes: int, min_share: float
) -> tuple[Float[Tensor, "b k"], Float[Tensor, " b"]]:
    """Which classes each image contains (0 or 1), and whether it has any labelled pixel (0 or 1)."""
    flat = labels.flatten(1).long()
    index = torch.where(flat == IGNORE, num_classes, flat)  # one bin more for the ignored
    counts = torch.zeros(len(flat), num_classes + 1, device=labels.device)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=counts.dtype))
    counts = counts[:, :num_classes]
    total = counts.sum(dim=1, keepdim=True)
    present = (counts > 0) & (counts >= min_share * total)
    return present.float(), (total[:, 0] > 0).float()
