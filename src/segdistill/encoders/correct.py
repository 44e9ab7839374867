"""Corrects a sliced student by least squares, block by block; see :mod:`segdistill.encoders.inherit`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segdistill.encoders.encoder import Encoder
from segdistill.ops import LeastSquares, resize_tokens

RIDGE = 1e-2
"""Pull towards the uncorrected weights, as a share of the inputs' mean square."""


@torch.no_grad()
def correct(
    student: Encoder, teacher: Encoder, images: Sequence[Tensor], into: Tensor, blocks: Sequence[int]
) -> tuple[float, ...]:
    """Correct the last layers of attention and MLP of every block; ``into`` (n, d) maps the teacher's stream.

    Returns the share of the targets' variance that each block leaves unexplained.
    """
    targets = [_targets(student, teacher, batch, into.float(), blocks) for batch in images]
    network = student.backbone
    streams = [network._pos_embed(network.patch_embed(student.normalised(batch))) for batch in images]
    left = []
    for number, block in enumerate(network.blocks):
        parts = ((block.norm1, block.attn, block.attn.proj), (block.norm2, block.mlp, block.mlp.fc2))
        wanted: list[Tensor] = []
        for half, (norm, part, last) in enumerate(parts):
            wanted = [each[number][half] for each in targets]
            _fit(streams, wanted, norm, part, last)
            streams = [stream + part(norm(stream)) for stream in streams]
        left.append(_unexplained(streams, wanted))
    return tuple(left)


def _targets(
    student: Encoder, teacher: Encoder, batch: Tensor, into: Tensor, blocks: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """For each of the student's blocks the patch tokens (B, N, n) wanted after its attention and after its MLP, on its
    own grid.

    A block stands for one of the teacher's and the left out ones after it, the first one for those before it as well:
    its attention should add what theirs add.
    """
    network, added = teacher.backbone, []
    handles = [block.ls1.register_forward_hook(lambda module, given, output: added.append(output))
               for block in network.blocks]  # fmt: skip
    try:
        features = teacher(batch, tuple(range(len(network.blocks))))
    finally:
        for handle in handles:
            handle.remove()
    cells = slice(network.num_prefix_tokens, None)
    start = network._pos_embed(network.patch_embed(teacher.normalised(batch)))[:, cells]
    found = []
    ends = (*blocks[1:], len(network.blocks))
    for first, end in zip((0, *ends), ends, strict=False):
        attended = start + torch.stack([each[:, cells] for each in added[first:end]]).sum(0)
        start = features.tokens[end - 1]
        grids = features.grid, student.mask_grid(*batch.shape[-2:])
        found.append((resize_tokens(attended @ into.T, *grids), resize_tokens(start @ into.T, *grids)))
    return found


def _fit(streams: Sequence[Tensor], wanted: Sequence[Tensor], norm: Any, part: Any, last: Any) -> None:
    """Change the weights of ``last``, the last layer of ``part``, so that stream + part(norm(stream)) is near
    ``wanted``; CLS and registers take no part.
    """
    seen: list[Tensor] = []
    sums = LeastSquares(last.in_features, last.out_features)
    handle = last.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    try:
        for stream, target in zip(streams, wanted, strict=True):
            cells = slice(stream.shape[1] - target.shape[1], None)
            missing = target - stream[:, cells] - part(norm(stream))[:, cells]
            sums.add(seen.pop()[:, cells].flatten(0, 1), missing.flatten(0, 1))
    finally:
        handle.remove()
    change = sums.solve(RIDGE)
    last.weight += change[:-1].T.to(last.weight.dtype)
    last.bias += change[-1].to(last.bias.dtype)


def _unexplained(streams: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The squared error of the patch tokens over the variance of those that are wanted."""
    error = torch.stack([
        (stream[:, stream.shape[1] - target.shape[1] :] - target).square().sum()
        for stream, target in zip(streams, wanted, strict=True)
    ])  # fmt: skip
    targets = torch.cat([target.flatten(0, 1) for target in wanted])
    return (error.sum() / (targets - targets.mean(0)).square().sum().clamp(min=1e-12)).item()
