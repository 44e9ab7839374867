"""The head of a student that inherits its teacher's; the encoder's part is :mod:`segdistill.encoders.inherit`. Ours.

Teacher and student have the same head, except for its first layers: 1x1 convolutions on the maps of the taps, whose
widths differ. The student's are fitted by least squares, so that on calibration images they give what the teacher's
give on the teacher's maps. All other weights are copied. The student then predicts much as its teacher does before the
first step of training.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdistill.config import UserError
from segdistill.heads import Head
from segdistill.heads.pyramid import per_level
from segdistill.models.model import Model
from segdistill.ops import LeastSquares, map_to_tokens, maps, resize

RIDGE = 1e-4
"""Of the least squares, as a share of the inputs' mean square."""

SHOWN = 3
"""Differences between two heads that the message shows."""


def check_heads(student: Head, teacher: Head) -> None:
    """A :class:`UserError` unless the student's head can take the teacher's weights."""
    if type(student) is not type(teacher):
        raise UserError(
            f"inherit copies the teacher's head, but the student's is {type(student).__name__} and the teacher's "
            f"{type(teacher).__name__}; choose the same, or leave head out of hands_over"
        )
    if not teacher.readers():
        raise UserError(
            f"inherit cannot hand over a head of the kind {type(teacher).__name__}, only semfpn and masked_dpt; leave "
            "head out of hands_over"
        )
    ours, theirs = ({key: value.shape for key, value in _copied(head).items()} for head in (student, teacher))
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if differing:
        raise UserError(
            f"inherit hands over the head: {len(differing)} tensors of the student's and the teacher's differ, such as "
            f"{', '.join(differing[:SHOWN])}; give both the same settings, or leave head out of hands_over"
        )


@torch.no_grad()
def inherit_head(student: Model, teacher: Model, images: Sequence[Tensor]) -> tuple[float, ...]:
    """Overwrite the weights of the student's head; ``images`` are batches (B, 3, H, W) in [0, 1].

    Returns for each first layer the share of the variance of the teacher's output that the student's does not explain.
    Both networks must be in evaluation mode.
    """
    own, other = student.head.readers(), teacher.head.readers()
    student.head.load_state_dict(_copied(teacher.head), strict=False)
    fits = [_Fit(ours, theirs) for ours, theirs in zip(own, other, strict=True)]
    for batch in images:
        pairs = zip(*(per_level(maps(each.features(batch)), len(own)) for each in (student, teacher)), strict=True)
        for fit, (ours, theirs) in zip(fits, pairs, strict=True):
            fit.add(ours, theirs)
    return tuple(fit.solve() for fit in fits)


def _copied(head: Head) -> dict[str, Tensor]:
    """The tensors of all other layers than the first ones."""
    first = {id(layer) for layer in head.readers()}
    names = tuple(f"{name}." for name, layer in head.named_modules() if id(layer) in first)
    return {key: value for key, value in head.state_dict().items() if not key.startswith(names)}


class _Fit:
    """Least squares for ``ours``: its output on the student's maps should be that of ``theirs`` on the teacher's."""

    def __init__(self, ours: nn.Conv2d, theirs: nn.Conv2d) -> None:
        self.ours, self.theirs = ours, theirs
        self.sums = LeastSquares(ours.in_channels, ours.out_channels)

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """The maps (B, C, h, w) of a batch."""
        wanted = resize(self.theirs(theirs), (ours.shape[-2], ours.shape[-1]))
        self.sums.add(map_to_tokens(ours).flatten(0, 1), map_to_tokens(wanted).flatten(0, 1))

    def solve(self) -> float:
        """Set the weights; returns the share of the variance that is left."""
        sums = self.sums
        found = sums.solve(RIDGE, constant=self.ours.bias is not None)
        own, both = sums.xx[: len(found), : len(found)], sums.xy[: len(found)]
        inputs = self.ours.in_channels
        self.ours.weight.copy_(found[:inputs].T[:, :, None, None])
        if self.ours.bias is not None:
            self.ours.bias.copy_(found[inputs])
        error = sums.yy - 2 * (found * both).sum() + (found * (own @ found)).sum()
        tokens, total = sums.xx[-1, -1], sums.xy[-1]  # of the column of ones
        variance = sums.yy - total.square().sum() / tokens
        return (error / variance.clamp(min=1e-12)).item()
