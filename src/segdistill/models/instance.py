"""Instance segmentation: every query of the head is a candidate object."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from segdistill.data.targets import NONE
from segdistill.models.model import Finder, need_floats
from segdistill.objects import Detections, RunLengths, encode
from segdistill.ops import resize
from segdistill.types import Batch, LossTerms

TOP = 100
"""Most predicted objects per image."""
_CHUNK = 4  # masks enlarged at once; limits memory, changes no value


class InstanceSegmenter(Finder):
    """An instance segmentation model with ``num_classes`` classes, whose head is a :class:`.queries.QueryHead`.

    Images are RGB in [0, 1], (B, 3, H, W), of any size.
    """

    def loss_of(self, decoded: Any, batch: Batch) -> LossTerms:
        """The head's set loss against the objects of the batch, without crowds; see :mod:`segdistill.data.targets`."""
        head: Any = self.head
        classes, masks = zip(*(object_masks(batch, row) for row in range(len(batch["ids"]))), strict=True)
        return head.set_loss(decoded, classes, masks)

    @torch.no_grad()
    def predict(self, images: Num[Tensor, "b 3 h w"], size: tuple[int, int] | None = None) -> list[Detections]:
        """The at most 100 best pairs of query and class in each image, at the images' size or at ``size`` (h, w).

        A score is the class probability times the mean mask probability inside the mask (the pixels above 0.5), as in
        Mask2Former. Masks are enlarged a few at a time. The mode of the model is not changed; call ``eval()`` first.
        """
        need_floats(images)
        height, width = images.shape[-2:]
        (classes, masks), seen = self.decoded(images)
        rows = zip(classes[-1].float().softmax(dim=-1)[..., :-1], masks[-1].float(), strict=True)
        return [detections_of(p, m, seen, (height, width), size or (height, width)) for p, m in rows]


def object_masks(batch: Batch, row: int) -> tuple[Int[Tensor, " n"], Float[Tensor, "n h w"]]:
    """Classes and masks of the objects of one image that have pixels and are no crowds."""
    ids, classes = batch["ids"][row], batch["classes"][row]
    present = ids.flatten().bincount(minlength=len(classes) + 1) > 0
    counted = (present[1:] & (classes != NONE) & ~batch["crowd"][row]).nonzero()[:, 0]
    numbers = (counted + 1).to(ids.dtype)[:, None, None]
    masks = torch.zeros(len(counted), *ids.shape[-2:], dtype=torch.bool, device=ids.device)
    for layer in ids:
        masks |= layer == numbers
    return classes[counted], masks.float()


def detections_of(
    probabilities: Float[Tensor, "q k"],
    masks: Float[Tensor, "q _h _w"],
    seen: tuple[int, int],
    shown: tuple[int, int],
    size: tuple[int, int],
) -> Detections:
    """One image's objects: mask logits cover ``seen``, whose first rows and columns (``shown``) get ``size``."""
    best, places = probabilities.flatten().topk(min(TOP, probabilities.numel()))
    queries, kinds = places // probabilities.shape[1], places % probabilities.shape[1]
    wanted = queries.unique()
    found: dict[int, tuple[float, RunLengths]] = {}
    for query, (mask, quality) in zip(wanted.tolist(), _enlarged(masks[wanted], seen, shown, size), strict=True):
        if quality:
            found[query] = quality, encode(mask.cpu().numpy())
    kept = [(score * found[q][0], kind, q) for score, kind, q in zip(
        best.tolist(), kinds.tolist(), queries.tolist(), strict=True) if q in found]  # fmt: skip
    kept.sort(key=lambda each: -each[0])
    scores, classes, chosen = zip(*kept, strict=True) if kept else ((), (), ())
    return Detections.of(scores, classes, [found[query][1] for query in chosen], size)


def _enlarged(
    masks: Float[Tensor, "q _h _w"], seen: tuple[int, int], shown: tuple[int, int], size: tuple[int, int]
) -> Iterator[tuple[Bool[Tensor, "_H _W"], float]]:
    """Every mask at ``size``, and its mean probability inside; 0 if it is empty."""
    for few in masks.split(_CHUNK):
        logits = resize(few[None], seen)[..., : shown[0], : shown[1]]
        logits = resize(logits, size)[0]
        inside = logits > 0
        counts = inside.sum(dim=(1, 2))
        means = (logits.sigmoid_() * inside).sum(dim=(1, 2)) / counts.clamp(min=1)
        yield from zip(inside, means.tolist(), strict=True)
