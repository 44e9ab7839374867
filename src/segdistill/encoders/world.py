"""The world's own encoders: small ViTs with a convolutional stem, trained on rendered images."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

from timm.layers import LayerNorm2d, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn


class ConvStem(PatchEmbed):
    """A patch embedding of three stride-2 3x3 convolutions (LayerNorm, GELU) and a 1x1 projection; patch 8.

    ViTs trained from scratch converge faster and more stably with it than with a single patch convolution (Xiao et al.
    2021, "Early convolutions help transformers see better"). Takes the arguments of timm's ``PatchEmbed`` and
    ``stem_width``, the channels of the first convolution; the next two have twice and four times as many.
    """

    def __init__(self, *, stem_width: int, in_chans: int, embed_dim: int, patch_size: int, **kwargs: Any) -> None:
        assert patch_size == 8, patch_size
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, patch_size=patch_size, **kwargs)
        widths = [in_chans, stem_width, 2 * stem_width, 4 * stem_width]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Conv2d(width, following, 3, stride=2, padding=1, bias=False), LayerNorm2d(following)]
            layers += [nn.GELU()]
        # pyrefly: ignore[bad-assignment]  # timm types the one convolution that it builds itself
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))


def world_network(width: int, stem_width: int, **options: Any) -> VisionTransformer:
    """A ViT of six blocks and patch 8."""
    stem = partial(ConvStem, stem_width=stem_width)
    return VisionTransformer(embed_dim=width, depth=6, num_heads=4, mlp_ratio=4.0, embed_layer=stem, **options)
