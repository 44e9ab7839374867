"""Runs the networks as a method needs them: one pass of the teacher, one of the student for all its views."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from segdistill.encoders import Encoder
from segdistill.types import Features, Mask, Views


@torch.no_grad()
def teacher_views(encoder: Encoder, images: Float[Tensor, "b 3 H W"], taps: tuple[int, ...]) -> Views:
    """The frozen teacher's features of the unmasked images."""
    return Views(plain=encoder(images, taps))


def student_views(
    encoder: Encoder,
    images: Float[Tensor, "b 3 H W"],
    taps: tuple[int, ...],
    mask: Mask | None = None,
    *,
    plain: bool = True,
) -> Views:
    """The student's plain features of all B images and its masked ones of the M masked samples, in one pass of B + M.

    The authors run 2 B; the unmasked half of their second view equals the first (spec A.9, 11). Without ``plain``, a
    pass of M alone: ``Needs.plain``.
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
    return Views(plain=_rows(both, slice(0, b)), masked=_rows(both, slice(b, None)), mask=mask)


def _rows(features: Features, rows: slice) -> Features:
    cls = None if features.cls is None else features.cls[rows]
    return Features(tokens=tuple(tokens[rows] for tokens in features.tokens), cls=cls, grid=features.grid)
