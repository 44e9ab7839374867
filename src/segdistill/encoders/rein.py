"""Rein: Wei et al., Stronger, Fewer, & Superior, CVPR 2024 (arXiv 2312.04265), section 3; from its equations alone.

A frozen ViT whose tokens f are refined after every block i by m learnt tokens of low rank, T = A B:

    S = softmax(f T^T / sqrt(c))                                    eq. 3 and 4, over the m tokens
    delta' = S[:, 2:] (T[2:] W_T + b_T)                             eq. 5: without the first token
    f + delta,  delta = (f + delta') W_f + b_f                      eq. 6

A and B belong to a block, W_T, b_T, W_f and b_f to all blocks. The next block, the heads and the final norm read the
refined tokens. Our interpretation: all tokens of a block are refined, CLS and registers too. Ours: W_f and b_f start
at 0, so that the start is the frozen network itself. Not built: the link of the tokens to Mask2Former's queries.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from segdistill.config import Config


class ReinConfig(Config):
    """Rein's learnt tokens; the defaults are the authors'."""

    tokens: int = Field(100, ge=2, le=2**16, description="m, learnt tokens per block")
    rank: int = Field(16, ge=1, le=2**16, description="r, rank of a block's tokens")


class Rein(nn.Module):
    """Refines the tokens of ``depth`` blocks of ``width`` channels."""

    def __init__(self, config: ReinConfig, depth: int, width: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(depth, config.tokens, config.rank) / config.rank**0.5)
        self.b = nn.Parameter(torch.randn(depth, config.rank, width))
        self.value = nn.Linear(width, width)
        self.refine = nn.Linear(width, width)
        nn.init.zeros_(self.refine.weight)
        nn.init.zeros_(self.refine.bias)

    def forward(self, block: int, features: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The refined output of a block (numbered from 0)."""
        tokens = self.a[block] @ self.b[block]  # (m, C)
        similarity = (features @ tokens.T / features.shape[-1] ** 0.5).softmax(dim=-1)
        delta = similarity[..., 1:] @ self.value(tokens[1:])
        return features + self.refine(features + delta)
