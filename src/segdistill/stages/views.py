"""Runs the networks for a method: one pass of the teacher, and one of the student for all its views.

If the method reads logits, one encoder pass returns the taps of both the head and the method, the head's first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from segdistill.encoders import Encoder
from segdistill.heads import Head
from segdistill.ops import maps
from segdistill.types import Features, Mask, Views


@torch.no_grad()
def teacher_views(
    encoder: Encoder, images: Float[Tensor, "b 3 H W"], taps: tuple[int, ...], head: Head | None = None
) -> Views:
    """The frozen teacher's features of the unmasked images and, if its ``head`` is given, its logits."""
    if head is None:
        return Views(plain=encoder(images, taps))
    own = encoder.record.taps
    read, plain = split_taps(encoder(images, own + taps), len(own))
    return Views(plain=plain, logits=head.logits_of(head.decode(maps(read))))


def student_views(
    encoder: Encoder,
    images: Float[Tensor, "b 3 H W"],
    taps: tuple[int, ...],
    mask: Mask | None = None,
    *,
    plain: bool = True,
) -> Views:
    """The student's plain features of all B images and masked features of the M masked samples, in one pass of B + M.

    The authors run 2 B images; the samples of their second view that are not masked equal the first (spec A.9, 11).
    Without ``plain`` (see ``Needs.plain``), the pass has M images. Batch norms of the student take their statistics
    from all images of the pass, including hidden regions.
    """
    if mask is None or len(mask.samples) == 0:
        assert plain, "no view to run"
        return Views(plain=encoder(images, taps))
    if not plain:
        masked = encoder(images[mask.samples], taps, mask.tokens)
        return Views(plain=Features(tokens=(), cls=None, grid=masked.grid), masked=masked, mask=mask)
    b = images.shape[0]
    hidden = torch.zeros(b + len(mask.samples), mask.tokens.shape[1], dtype=torch.bool, device=images.device)
    hidden[b:] = mask.tokens
    both = encoder(torch.cat([images, images[mask.samples]]), taps, hidden)
    return Views(plain=both.part(rows=slice(0, b)), masked=both.part(rows=slice(b, None)), mask=mask)


def split_taps(features: Features, count: int) -> tuple[Features, Features]:
    """The first ``count`` taps, and the rest."""
    return features.part(taps=slice(count)), features.part(taps=slice(count, None))


def joined_views(parts: Sequence[Views]) -> Views:
    """Plain views of several batches as those of one."""
    first, rows = parts[0].plain, [part.plain for part in parts]
    tokens = tuple(torch.cat(each) for each in zip(*(row.tokens for row in rows), strict=True))
    cls = None if first.cls is None else torch.cat([cast(Tensor, row.cls) for row in rows])
    logits = None if parts[0].logits is None else torch.cat([cast(Tensor, part.logits) for part in parts])
    return Views(Features(tokens, cls, first.grid, first.grids), logits=logits)
