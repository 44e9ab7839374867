"""From a teacher's boxes to detections: threshold, suppression, and masks that do not overlap; all of it counted.

Legend: N boxes, C classes, h w a mask's own grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import box_area, nms

from segdistill.models.prompts import Prompt
from segdistill.objects import Detections, RunLengths, encode
from segdistill.ops import resize

COUNTS = (
    "images_without_boxes",
    "queries",
    "below_threshold",
    "boxes",
    "large",
    "suppressed",
    "cut",
    "empty_masks",
    "objects",
)
"""Names of the counts: images in which nothing was found; queries of the detector, those without a class above the
threshold, pairs of query and class above it; of these, too large ones, suppressed ones, those beyond ``most``, those
without a visible pixel; objects that remain. ``phrase: WORDS``: pairs above the threshold that matched the phrase."""

_AT_ONCE = 16  # masks at the image's size; limits memory, changes no value


@dataclass(frozen=True)
class Limits:
    """Which boxes are kept (see ``OpenVocabularyConfig``)."""

    threshold: float
    most: int
    suppress: float
    largest: float


@dataclass(frozen=True)
class Proposals:
    """A detector's boxes in one image: x1, y1, x2, y2 as shares of its width and height.

    ``scores``: of every class; ``phrases``: the number of the phrase that it is the score of. ``masks``: logits, if the
    detector makes them. ``below``: queries that were left out because no score passed the threshold.
    """

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, "n c"]
    phrases: Int[Tensor, "n c"]
    masks: Float[Tensor, "n _h _w"] | None = None
    below: int = 0


@dataclass(frozen=True)
class Found:
    """The boxes that are kept, best first."""

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    kinds: Int[Tensor, " n"]
    masks: Float[Tensor, "n _h _w"] | None = None
    counts: Counter[str] = field(default_factory=Counter)


def pick(proposals: Proposals, prompt: Prompt, limits: Limits) -> Found:
    """Pairs of box and class above the threshold, without duplicates: of boxes that overlap, whatever their class, the
    best is kept.
    """
    counts = Counter(dict.fromkeys([*COUNTS, *(f"phrase: {phrase.words}" for phrase in prompt.phrases)], 0))
    hits = proposals.scores > limits.threshold
    counts["queries"] = len(hits) + proposals.below
    counts["below_threshold"] = int((~hits.any(dim=1)).sum()) + proposals.below
    rows, kinds = hits.nonzero(as_tuple=True)
    counts["boxes"] = len(rows)
    counts["images_without_boxes"] = int(not len(rows))
    for number in proposals.phrases[rows, kinds].tolist():
        counts[f"phrase: {prompt.phrases[number].words}"] += 1
    order = proposals.scores[rows, kinds].argsort(descending=True, stable=True)
    rows, kinds = rows[order], kinds[order]
    small = box_area(proposals.boxes[rows]) <= limits.largest  # shares of the image
    counts["large"] = int((~small).sum())
    rows, kinds = rows[small], kinds[small]
    kept = nms(proposals.boxes[rows].float(), proposals.scores[rows, kinds].float(), limits.suppress)
    counts["suppressed"] = len(rows) - len(kept)
    counts["cut"] = max(0, len(kept) - limits.most)
    rows, kinds = rows[kept[: limits.most]], kinds[kept[: limits.most]]
    masks = None if proposals.masks is None else proposals.masks[rows]
    return Found(proposals.boxes[rows], proposals.scores[rows, kinds], kinds, masks, counts)


def paint(
    found: Found, masks: Float[Tensor, "n _h _w"], scores: Float[Tensor, " n"], size: tuple[int, int]
) -> Detections:
    """The detections of an image of ``size`` (h, w): mask logits are resized, cut at 0 (probability 0.5), and a pixel
    belongs to the mask with the highest score.
    """
    order = scores.argsort(descending=True, stable=True)
    taken = torch.zeros(size, dtype=torch.bool, device=masks.device)
    kept: list[int] = []
    runs: list[RunLengths] = []
    for rows in order.split(_AT_ONCE):
        large = resize(masks[rows, None].float(), size)[:, 0]
        for row, mask in zip(rows.tolist(), large > 0, strict=True):
            free = mask & ~taken
            if free.any():
                taken |= free
                kept.append(row)
                runs.append(encode(free.cpu().numpy()))
    found.counts["empty_masks"] += len(order) - len(kept)
    found.counts["objects"] += len(kept)
    return Detections(
        scores[kept].float().clamp(0, 1).cpu().numpy().astype(np.float32),
        found.kinds[kept].cpu().numpy().astype(np.int64),
        runs,
        size,
    )


def nothing(size: tuple[int, int]) -> Detections:
    """No detection."""
    return Detections(np.zeros(0, np.float32), np.zeros(0, np.int64), [], size)


def unmatched(counts: Counter[str], prompt: Prompt) -> Sequence[str]:
    """The phrases that no box matched."""
    return [phrase.words for phrase in prompt.phrases if not counts[f"phrase: {phrase.words}"]]
