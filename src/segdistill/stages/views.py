"""Runs the networks as a method needs them: one pass of the teacher, one of the student for all its views."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from segdistill.encoders import Encoder
from segdistill.types import Mask, Views


@torch.no_grad()
def teacher_views(encoder: Encoder, images: Float[Tensor, "b 3 H W"], taps: tuple[int, ...]) -> Views:
    """The frozen teacher's features of the unmasked images."""
    return Views(plain=encoder(images, taps))


def student_views(
    encoder: Encoder, images: Float[Tensor, "b 3 H W"], taps: tuple[int, ...], mask: Mask | None = None
) -> Views:
    """The student's plain features of all B images and its masked ones of the M masked samples, in one pass of B + M.

    The authors run 2 B; the unmasked half of their second view equals the first (spec A.9, 11). A student with batch
    norms takes the statistics of all B + M images, hidden parts included.
    """
    if mask is None or len(mask.samples) == 0:
        return Views(plain=encoder(images, taps))
    b = images.shape[0]
    hidden = torch.zeros(b + len(mask.samples), mask.tokens.shape[1], dtype=torch.bool, device=images.device)
    hidden[b:] = mask.tokens
    both = encoder(torch.cat([images, images[mask.samples]]), taps, hidden)
    return Views(plain=both.part(rows=slice(0, b)), masked=both.part(rows=slice(b, None)), mask=mask)
