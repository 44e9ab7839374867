"""MiT, the encoder of SegFormer: Xie et al., NeurIPS 2021 (arXiv 2105.15203), section 3.1 and Table 6.

Four stages, each an overlapping patch embedding (convolution, LayerNorm) and blocks of

    x + Attention(LN(x))        keys and values from x reduced R times per side (eq. 2: a strided convolution, LN)
    x + MixFFN(LN(x))           MixFFN(x) = W2 GELU(DWConv3x3(W1 x)) (eq. 3)

A LayerNorm ends each stage; its output is the stage's map, so the maps are normalised and the last one is the tap -1.
The network is built here because the names of transformers'
``SegformerModel`` differ between the releases that we support; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn

from segdistill.ops import map_to_tokens, tokens_to_map

STRIDES = (4, 8, 16, 32)
KERNELS, STEPS = (7, 3, 3, 3), (4, 2, 2, 2)  # of the patch embeddings
HEADS, REDUCTIONS = (1, 2, 5, 8), (8, 4, 2, 1)
EPS = 1e-6


@dataclass(frozen=True)
class MiTSize:
    """Widths and numbers of blocks of the four stages."""

    widths: tuple[int, int, int, int] = (64, 128, 320, 512)
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)


SIZES = {
    "b0": MiTSize(widths=(32, 64, 160, 256)),
    "b1": MiTSize(),
    "b2": MiTSize(depths=(3, 4, 6, 3)),
    "b3": MiTSize(depths=(3, 4, 18, 3)),
    "b4": MiTSize(depths=(3, 8, 27, 3)),
    "b5": MiTSize(depths=(3, 6, 40, 3)),
}


class PatchEmbedding(nn.Module):
    """Overlapping patches: a strided convolution and a LayerNorm."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Float[Tensor, "b _c _h _w"]) -> tuple[Float[Tensor, "b n d"], tuple[int, int]]:
        """Tokens and their grid."""
        cells = self.proj(features)
        return self.norm(map_to_tokens(cells)), (cells.shape[-2], cells.shape[-1])


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced ``reduction`` times per side."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, stride=reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        """The attended tokens on ``grid``."""
        read = tokens
        if self.reduction > 1:
            read = self.norm(map_to_tokens(self.sr(tokens_to_map(tokens, grid))))
        queries, (keys, values) = self._split(self.q(tokens)), map(self._split, self.kv(read).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(queries, keys, values)  # (B, heads, N, D / heads)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _split(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b k n e"]:
        return tokens.unflatten(2, (self.heads, -1)).transpose(1, 2)


class DepthwiseConv(nn.Module):
    """A 3x3 depthwise convolution of tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        """The convolved tokens."""
        return map_to_tokens(self.dwconv(tokens_to_map(tokens, grid)))


class MixFFN(nn.Module):
    """The block's MLP, with a depthwise convolution that stands in for positions."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1, self.dwconv = nn.Linear(width, ratio * width), DepthwiseConv(ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        """See the module's text."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), grid)))


class Block(nn.Module):
    """Attention and MixFFN, each with its norm, residual and stochastic depth."""

    def __init__(self, width: int, heads: int, reduction: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=EPS), ReducedAttention(width, heads, reduction)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=EPS), MixFFN(width)
        self.drop_path = DropPath(drop) if drop else nn.Identity()

    def forward(self, tokens: Float[Tensor, "b n d"], grid: tuple[int, int]) -> Float[Tensor, "b n d"]:
        """One block."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), grid))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), grid))


class Stage(nn.Module):
    """A patch embedding, its blocks and a norm: map -> normalised map."""

    def __init__(self, number: int, inputs: int, width: int, rates: list[float]) -> None:
        """``rates``: of the blocks' stochastic depth."""
        super().__init__()
        self.embed = PatchEmbedding(inputs, width, KERNELS[number], STEPS[number])
        self.blocks = nn.ModuleList(Block(width, HEADS[number], REDUCTIONS[number], rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, features: Float[Tensor, "b _c _h _w"]) -> Float[Tensor, "b d _p _q"]:
        """The stage's map."""
        tokens, grid = self.embed(features)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens_to_map(self.norm(tokens), grid)


class MiT(nn.Module):
    """The encoder of ``size`` with the interface of timm's hierarchical networks.

    ``drop_path``: the rate of the last block, growing linearly from 0 (the authors': 0.1). Linear layers start as
    truncated normal 0.02, convolutions as normal with variance 2 / fan out.
    """

    def __init__(self, size: MiTSize, drop_path: float = 0.1) -> None:
        super().__init__()
        self.feature_info = [
            {"num_chs": width, "reduction": stride} for width, stride in zip(size.widths, STRIDES, strict=True)
        ]
        rates = torch.linspace(0, drop_path, sum(size.depths), device="cpu").tolist()
        inputs = (3, *size.widths[:3])
        for number, (wide, width, depth) in enumerate(zip(inputs, size.widths, size.depths, strict=True)):
            own, rates = rates[:depth], rates[depth:]
            self.add_module(f"stage{number + 1}", Stage(number, wide, width, own))
        self.apply(_start)

    def forward_intermediates(
        self, images: Float[Tensor, "b _c h w"], indices: Any = None, *, norm: bool = False, output_fmt: str = "NCHW"
    ) -> tuple[Tensor, list[Tensor]]:
        """The last stage's map, and those of the stages ``indices`` (a list, or how many of the last; None: all)."""
        assert output_fmt == "NCHW", output_fmt
        del norm  # every map is normalised
        wanted = range(4) if indices is None else indices if isinstance(indices, list) else range(4 - indices, 4)
        features, maps = images, []
        for number in range(4):
            features = getattr(self, f"stage{number + 1}")(features)
            maps += [features] if number in wanted else []
        return features, maps

    def forward_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b _c _h _w"]:
        """The last stage's map."""
        return self.forward_intermediates(images, [])[0]


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan) ** 0.5)
        assert module.bias is not None
        nn.init.zeros_(module.bias)
