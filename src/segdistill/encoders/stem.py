"""The patch embedding of a student that inherits its teacher (:mod:`segdistill.encoders.inherit`). Ours.

A student with one convolution takes the teacher's kernels. A stem of several layers, which the teacher's kernels do not
fit, is trained for a few seconds to give the teacher's patch embedding of the calibration images: its last layer by
least squares, then all of it by Adam, then the last one again. Without the middle step the stem of ``world_student``
gives 29 % of the variance, which no later block can make up for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.encoders.encoder import Encoder
from segdistill.ops import LeastSquares, map_to_tokens
from segdistill.weights import resample_kernel

RATE = 1e-2
BATCH = 4
"""Images of a step. 2,000 steps of 4 fit better than 1,000 of 16 and take half the time."""

RIDGE = 1e-4
"""Of the least squares, as a share of the inputs' mean square."""


def last_convolution(embed: Any) -> Any:
    """The last layer of a patch embedding, if it is a convolution, else None."""
    last = embed.proj[-1] if isinstance(embed.proj, nn.Sequential) else embed.proj
    return last if isinstance(last, nn.Conv2d) else None


@torch.no_grad()
def inherit_stem(student: Encoder, teacher: Encoder, images: Sequence[Tensor], into: Tensor, steps: int) -> None:
    """Overwrite the student's patch embedding with one that gives ``into`` (n, d) times the teacher's.

    ``images`` are batches (B, 3, H, W) in [0, 1]; ``steps`` of Adam train a stem of several layers.
    """
    last, theirs = last_convolution(student.backbone.patch_embed), teacher.backbone.patch_embed.proj
    if all(isinstance(each.backbone.patch_embed.proj, nn.Conv2d) for each in (student, teacher)):
        kernel = resample_kernel(theirs.weight.double(), last.kernel_size, "timm")
        last.weight.copy_(torch.einsum("nd,dchw->nchw", into, kernel))
        last.bias.copy_(into @ (torch.zeros_like(into[0]) if theirs.bias is None else theirs.bias.double()))
        return
    embed: Any = student.backbone.patch_embed
    targets = [torch.einsum("nd,bdhw->bnhw", into.float(), _embedding(student, teacher, batch)) for batch in images]
    _solve(student, last, images, targets)
    if not isinstance(embed.proj, nn.Sequential) or not steps:
        return
    left, kept = _error(student, images, targets), {name: each.clone() for name, each in embed.state_dict().items()}
    _train(student, images, targets, steps)
    if math.isfinite(_error(student, images, targets)):
        _solve(student, last, images, targets)
    if not _error(student, images, targets) < left:  # also if it is not finite
        embed.load_state_dict(kept)


def _embedding(student: Encoder, teacher: Encoder, images: Tensor) -> Tensor:
    """The teacher's patch embedding (B, d, H', W') as if it had the student's patch."""
    if student.patch == teacher.patch:
        return teacher.stem(images)
    theirs = teacher.backbone.patch_embed.proj
    kernel = resample_kernel(theirs.weight, (student.patch, student.patch), "timm")
    return F.conv2d(teacher.normalised(images), kernel, theirs.bias, stride=student.patch)


def _error(student: Encoder, images: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
    """The mean square of what the stem misses."""
    pairs = zip(images, targets, strict=True)
    return torch.stack([F.mse_loss(student.stem(batch), target) for batch, target in pairs]).mean().item()


def _solve(student: Encoder, last: Any, images: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Weights and bias of the stem's last layer, a 1x1 convolution or one over whole patches, by least squares."""
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    sums = LeastSquares(last.weight[0].numel(), len(last.weight))
    try:
        for batch, target in zip(images, targets, strict=True):
            student.stem(batch)
            read = F.unfold(seen.pop(), last.kernel_size, padding=last.padding, stride=last.stride)
            sums.add(read.transpose(1, 2).flatten(0, 1), map_to_tokens(target).flatten(0, 1))
    finally:
        handle.remove()
    found = sums.solve(RIDGE)
    last.weight.copy_(found[:-1].T.reshape(last.weight.shape))
    last.bias.copy_(found[-1])


def _train(student: Encoder, images: Sequence[Tensor], targets: Sequence[Tensor], steps: int) -> None:
    """Adam with one cycle of the rate, over groups of images in turn."""
    images, targets = ([part for batch in each for part in batch.split(BATCH)] for each in (images, targets))
    parts = list(student.backbone.patch_embed.parameters())
    learns = [part.requires_grad for part in parts]
    for part in parts:
        part.requires_grad_(True)
    optimizer = torch.optim.Adam(parts, lr=RATE)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    with torch.enable_grad():
        for step in range(steps):
            number = step % len(images)
            optimizer.zero_grad()
            F.mse_loss(student.stem(images[number]), targets[number]).backward()
            optimizer.step()
            cycle.step()
    for part, learned in zip(parts, learns, strict=True):
        part.requires_grad_(learned)
        part.grad = None
