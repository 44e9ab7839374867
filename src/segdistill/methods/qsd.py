"""The head of query-based soft distillation: student tokens re-expressed in the teacher's space.

Paper: GKD (arXiv 2603.02554), Section 3.3; formulas in :mod:`segdistill.methods.gkd`. The attention is computed in one
of three ways with the same result up to rounding:

- whole: one (B, N, N) tensor of logits, in at least fp32, while it has at most ``WHOLE`` entries;
- in rows: beyond that, a part of the queries at a time; backward computes each part again;
- fused: on a GPU under bf16 or fp16 autocast with teachers of at most ``FUSED`` channels, by torch's flash attention,
  which stores no logits. It accumulates them in fp32 from teacher tokens rounded to that precision, as queries are.

On a GPU under mixed precision the products of the first two have TF32 factors and fp32 sums.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segdistill.ops import full_precision, norm_linear

WHOLE = 2**26
"""256 MiB of fp32 logits."""
FUSED = 256
"""Widest tokens that flash attention takes."""


class QSDHead(nn.Module):
    """One head: ``softmax(phi_q(S) T^T) phi_v(S)``; ``scale`` (ours) is a factor on the logits, None: as published."""

    compiled_whole: ClassVar[bool] = True  # by compile=true

    def __init__(self, student: int, teacher: int, scale: float | None = None) -> None:
        super().__init__()
        self.proj_q = norm_linear(student, teacher)
        self.proj_v = norm_linear(student, teacher)
        self.scale = scale

    def forward(
        self, student: Float[Tensor, "b n ds"], teacher: Float[Tensor, "b n dt"], own_bias: float = 0.0
    ) -> Float[Tensor, "b n dt"]:
        """Student tokens in the teacher's space; ``own_bias`` is added to the logit of a token's own position."""
        query, values = self.proj_q(student), self.proj_v(student)
        if (
            query.is_cuda
            and query.dtype in (torch.bfloat16, torch.float16)
            and query.shape[-1] <= FUSED
            and not own_bias
        ):
            return fused(query, teacher, values, self.scale)
        precision = torch.promote_types(query.dtype, torch.float32)
        with full_precision(query):
            query, keys, values = query.to(precision), teacher.to(precision), values.to(precision)
            if query.shape[0] * query.shape[1] * keys.shape[1] <= WHOLE:
                return whole(query, keys, values, self.scale, own_bias)
            return in_rows(query, keys, values, self.scale, own_bias)

    def attention(
        self, student: Float[Tensor, "b n ds"], teacher: Float[Tensor, "b n dt"], own_bias: float = 0.0
    ) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
        """Attention, whose rows sum to 1 over teacher positions, and logits (without ``own_bias``)."""
        query = self.proj_q(student)
        precision = torch.promote_types(query.dtype, torch.float32)
        with full_precision(query):
            logits = _logits(query.to(precision), teacher.to(precision), self.scale)
            return _biased(logits, own_bias, 0).softmax(dim=-1), logits


def fused(
    query: Float[Tensor, "b n dt"],
    keys: Float[Tensor, "b n dt"],
    values: Float[Tensor, "b n dt"],
    scale: float | None = None,
) -> Float[Tensor, "b n dt"]:
    """The attention without a tensor of logits, in the precision of ``query``."""
    q, k, v = (each.to(query.dtype).unsqueeze(1) for each in (query, keys, values))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0 if scale is None else scale).squeeze(1)


def in_rows(
    query: Float[Tensor, "b n dt"],
    keys: Float[Tensor, "b n dt"],
    values: Float[Tensor, "b n dt"],
    scale: float | None = None,
    own_bias: float = 0.0,
    *,
    most: int | None = None,
) -> Float[Tensor, "b n dt"]:
    """The attention for as many queries at a time as give ``most`` logits (None: ``WHOLE``).

    Of each part only the result is kept.
    """
    rows = max(1, (most or WHOLE) // (query.shape[0] * keys.shape[1]))
    parts = [
        checkpoint(whole, part, keys, values, scale, own_bias, number * rows, use_reentrant=False)
        for number, part in enumerate(query.split(rows, dim=1))
    ]
    return torch.cat(parts, dim=1)


def whole(
    query: Float[Tensor, "b m dt"],
    keys: Float[Tensor, "b n dt"],
    values: Float[Tensor, "b n dt"],
    scale: float | None = None,
    own_bias: float = 0.0,
    first: int = 0,
) -> Float[Tensor, "b m dt"]:
    """The attention with its (B, M, N) logits; the first of the queries is at position ``first``."""
    return _biased(_logits(query, keys, scale), own_bias, first).softmax(dim=-1) @ values


def _logits(query: Tensor, keys: Tensor, scale: float | None) -> Tensor:
    logits = query @ keys.transpose(1, 2)
    return logits if scale is None else logits * scale


def _biased(logits: Tensor, own_bias: float, first: int) -> Tensor:
    if not own_bias:
        return logits
    rows, columns = logits.shape[1:]
    own = torch.eye(columns, dtype=logits.dtype, device=logits.device)[first : first + rows]
    return logits + own_bias * own
