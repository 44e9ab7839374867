"""Divergences between score maps, shared by several methods.

The teacher's map is a constant. Computed in at least float32, whatever the precision of the maps. The factor
``tau ** 2`` keeps the scale of the gradient when the temperature softens both distributions (Hinton et al., arXiv
1503.02531, section 2.1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from segdistill.types import Views


def class_scores(student: Views, teacher: Views) -> tuple[Float[Tensor, "b k h w"], Float[Tensor, "b k h w"]]:
    """The class logits of both, which a method with ``Needs.logits`` gets."""
    assert student.logits is not None
    assert teacher.logits is not None
    return student.logits, teacher.logits


def pixel_kl(
    student: Float[Tensor, "b k h w"], teacher: Float[Tensor, "b k h w"], tau: float = 1.0
) -> Float[Tensor, ""]:
    """``tau ** 2 KL(p_T || p_S)`` of the softmax over the K channels of a pixel; mean over all pixels (spec B.3)."""
    ours, target = (_log_softmax(scores, tau, 1) for scores in (student, teacher.detach()))
    return tau**2 * (target.exp() * (target - ours)).sum(dim=1).mean()


def channel_kl(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], tau: float = 1.0
) -> Float[Tensor, ""]:
    """``tau ** 2 KL(p_T || p_S)`` of the softmax over a channel's pixels; mean over images and channels (spec B.2)."""
    ours, target = (_log_softmax(maps.flatten(2), tau, 2) for maps in (student, teacher.detach()))
    return tau**2 * (target.exp() * (target - ours)).sum(dim=2).mean()


def channel_cross_entropy(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], tau: float = 1.0
) -> Float[Tensor, ""]:
    """:func:`channel_kl` plus the teacher's entropy, a constant: the same gradient (G2SD's form, spec B.2)."""
    ours, target = (_log_softmax(maps.flatten(2), tau, 2) for maps in (student, teacher.detach()))
    return tau**2 * -(target.exp() * ours).sum(dim=2).mean()


def _log_softmax(scores: Tensor, tau: float, dim: int) -> Tensor:
    precision = torch.promote_types(scores.dtype, torch.float32)
    return (scores.to(precision) / tau).log_softmax(dim)
