"""Class scores of large images, one band of rows at a time: memory does not grow with the image height."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segdistill.ops import resize

BAND = 2**22
"""Score values (classes x rows x width) enlarged at once: 16 MiB in float32."""


@dataclass(frozen=True)
class Strip:
    """Some rows of the prediction for one image of a batch, starting at row ``top``.

    ``classes`` (rows, W) int64; ``confidence`` (rows, W) float32: the probability of that class, see :func:`decide`.
    """

    image: int
    top: int
    classes: Tensor
    confidence: Tensor


def decide(scores: Float[Tensor, "k h w"], *, logits: bool) -> tuple[Int[Tensor, "h w"], Float[Tensor, "h w"]]:
    """The best class of every pixel and its probability.

    For logits, the probability is the softmax over the classes. Other scores are divided by their sum: Mask2Former's
    sums over queries of class probability times mask probability are non-negative but do not add up to one.
    """
    best, classes = scores.max(dim=0)
    if logits:
        return classes, 1 / (scores - best).exp_().sum(dim=0)
    return classes, best / scores.sum(dim=0).clamp(min=torch.finfo(scores.dtype).tiny)


def enlarge(
    bands: Iterable[Float[Tensor, "b k _rows w"]], source: tuple[int, int], target: tuple[int, int]
) -> Iterator[tuple[int, int, Tensor]]:
    """Scores of size ``source`` (h, w), given as bands from top to bottom, bilinearly resampled to ``target`` (H, W).

    Yields (image, first row, float32 scores (K, rows, W)) from top to bottom. The values equal
    ``F.interpolate(..., mode="bilinear", align_corners=False)`` up to rounding and do not depend on how the bands are
    cut. Memory: the source rows that are still needed, and at most four arrays (the two rows being blended, their
    source, and one held by the caller) of :data:`BAND` values each, or of one row if that is larger:
    4 x 4 x 2**22 bytes = 64 MiB. The full scores of 19 classes on 5000 x 4000 pixels would take 1.5 GB.
    """
    above, below, share = _blend(source[0], target[0])
    last_rows = below.tolist()
    kept, first, done = None, 0, 0  # source rows from ``first`` on; target rows already yielded
    for band in bands:
        kept = band if kept is None or not kept.shape[2] else torch.cat([kept, band], dim=2)
        ready = bisect_left(last_rows, first + kept.shape[2])
        shrink = -(-source[0] // target[0])  # source rows per target row, at least one
        step = max(1, BAND // (kept.shape[1] * max(source[1], target[1]) * shrink))
        for top in range(done, ready, step):
            rows = slice(top, min(top + step, ready))
            low, high = int(above[top]), last_rows[rows.stop - 1] + 1
            blend = None
            if source[0] != target[0]:
                places = [index[rows].sub(low).to(band.device) for index in (above, below)]
                blend = places, share[rows, None].to(band.device)
            for image, scores in enumerate(kept):
                wide = _widen(scores[:, low - first : high - first].float(), target[1])
                if blend is None:
                    yield image, top, wide
                    continue
                places, lower = blend
                upper_part, lower_part = (wide.index_select(1, place) for place in places)
                yield image, top, upper_part.mul_(1 - lower).add_(lower_part.mul_(lower))
        done = ready
        drop = min(int(above[done]) - first if done < target[0] else kept.shape[2], kept.shape[2])
        kept, first = kept[:, :, drop:].clone(), first + drop  # a band's memory is used again


def _blend(source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per target row: the source rows above and below it (equal if it lies on one), and the lower one's weight."""
    centre = ((torch.arange(target, dtype=torch.float32) + 0.5) * (source / target) - 0.5).clamp(min=0)
    above = centre.long().clamp(max=source - 1)
    share = centre - above
    return above, (above + (share > 0)).clamp(max=source - 1), share


def _widen(scores: Tensor, width: int) -> Tensor:
    """Rows (K, rows, w) resampled to ``width``, each independently."""
    return resize(scores[None], (scores.shape[1], width))[0]
