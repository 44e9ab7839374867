"""EoMT: Kerssies et al., Your ViT is Secretly an Image Segmentation Model, CVPR 2025 (arXiv 2503.19108).

Learned queries join the patch tokens of the deepest tap, and plain transformer blocks process both together. A mask is
the inner product of a query's MLP and the patch tokens upscaled to about stride 4; there is no pixel decoder. In
training a query may be kept from the patches outside the mask predicted before the block; in evaluation never, so that
only the last masks are computed.

Ours, unlike the paper: the blocks belong to the head and start fresh (in the paper they are the last blocks of the
pretrained encoder), so that other heads can share the encoder; the encoder's CLS and register tokens do not take part.
The share of masked queries is constant (``masked``; the paper lowers it from 1 to 0, block by block, during training),
since a head does not know the progress of its training. It is drawn for the queries of the whole batch, so that it does
not depend on the number of processes. Patch positions are those in the encoder's tokens. Any stride works: the number
of upscaling layers follows from it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from segdistill.config import UserError
from segdistill.heads.base import Maps
from segdistill.heads.pyramid import STRIDES
from segdistill.heads.queries import Queries, QueryHead, SetConfig
from segdistill.ops import map_to_tokens, resize, tokens_to_map

_EPS = 1e-6  # of the layer norms, as in ViT
_HEAD_WIDTH = 64  # channels per attention head, as in ViT


class EoMT(QueryHead):
    """The map of the deepest tap -> queries, each with a class and a mask at about stride 4."""

    undecayed = ("query.",)

    class Config(SetConfig):
        """``decoder_layers``: blocks that see queries and patches. ``heads``: of attention; None: one per 64 channels.
        ``layer_scale``: its initial value (DINOv2's 1e-5 would make fresh blocks the identity). ``masked``: the share
        of queries with masked attention, in training.
        """

        decoder_layers: int = Field(4, ge=1, le=100)
        heads: int | None = Field(None, ge=1, le=8192)
        mlp_ratio: float = Field(4.0, ge=0.25, le=16)
        layer_scale: float = Field(1.0, gt=0, le=1)
        masked: float = Field(0.5, ge=0, le=1)

    def __init__(self, config: Config, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        """``channels`` and ``strides`` (pixels per cell) of the taps, of which the last is read."""
        super().__init__()
        self.config, self.strides, self.num_classes = config, tuple(strides), num_classes
        from timm.models.vision_transformer import Block  # timm and transformers take seconds to import

        from segdistill.heads.mask2former_parts import build_loss

        width = channels[-1]
        heads = config.heads or max(1, width // _HEAD_WIDTH)
        if width % heads:
            raise UserError(f"the deepest tap has {width} channels, not a multiple of heads {heads}: choose heads")
        norm: Any = partial(nn.LayerNorm, eps=_EPS)  # timm's signature says a class
        self.query = nn.Embedding(config.queries, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, config.mlp_ratio, qkv_bias=True, init_values=config.layer_scale, norm_layer=norm)
            for _ in range(config.decoder_layers)
        )
        self.norm = norm(width)
        layers = max(0, round(math.log2(strides[-1] / STRIDES[0])))
        self.upscale = nn.Sequential(*(layer for _ in range(layers) for layer in _doubled(width)))
        hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.GELU())]
        self.mask_mlp = nn.Sequential(*hidden, nn.Linear(width, width))
        self.classifier = nn.Linear(width, num_classes + 1)  # the last one: no object
        self.criterion = build_loss(config, num_classes)

    def decode(self, maps: Maps) -> Queries:
        """The queries' classes and masks before the first block and after each; in evaluation, after the last alone."""
        batch, _, *grid = maps[-1].shape
        patches = map_to_tokens(maps[-1])  # (B, H W, C)
        tokens = torch.cat([self.query.weight.to(patches.dtype).expand(batch, -1, -1), patches], dim=1)
        classes: list[Tensor] = []
        masks: list[Tensor] = []
        for block in self.blocks:
            visible = None
            if self.training:
                self._predict(tokens, (grid[0], grid[1]), classes, masks)
                visible = self.visible(masks[-1], (grid[0], grid[1]))
            tokens = block(tokens, attn_mask=visible)
        self._predict(tokens, (grid[0], grid[1]), classes, masks)
        return classes, masks

    def _predict(
        self, tokens: Float[Tensor, "b _n c"], grid: tuple[int, int], classes: list[Tensor], masks: list[Tensor]
    ) -> None:
        """Append what the tokens, queries before patches, say about classes and masks."""
        queries, patches = self.norm(tokens).split([self.config.queries, grid[0] * grid[1]], dim=1)
        pixels = self.upscale(tokens_to_map(patches, grid))
        classes.append(self.classifier(queries))
        masks.append(self.mask_logits(queries, pixels))

    def mask_logits(self, queries: Float[Tensor, "b q c"], pixels: Float[Tensor, "b c h w"]) -> Tensor:
        """(B, Q, h, w)."""
        return torch.einsum("bqc,bchw->bqhw", self.mask_mlp(queries), pixels)

    def visible(self, masks: Float[Tensor, "b q _h _w"], grid: tuple[int, int]) -> Bool[Tensor, "b 1 n n"] | None:
        """Which of the N tokens (columns) each token (rows) attends to; None: all.

        A masked query sees all queries, and the patches where its mask is positive. Patches see everything.
        """
        if not self.config.masked:
            return None
        batch, count = masks.shape[:2]
        inside = resize(masks.detach().float(), grid).flatten(2) > 0
        free = torch.rand(count, device=masks.device) >= self.config.masked
        visible = torch.ones(batch, 1, count + inside.shape[2], count + inside.shape[2], dtype=torch.bool,
                             device=masks.device)  # fmt: skip
        visible[:, 0, :count, count:] = inside | free[:, None]
        return visible


def _doubled(width: int) -> tuple[nn.Module, ...]:
    """Layers that halve the stride."""
    from timm.layers import LayerNorm2d

    up = nn.ConvTranspose2d(width, width, 2, stride=2)
    smooth = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
    return up, nn.GELU(), smooth, LayerNorm2d(width, eps=_EPS)
