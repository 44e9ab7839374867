"""Forward passes through networks of timm that collect the tokens of the requested taps.

Three kinds, chosen by the network's class:

* a plain ViT (timm's ``VisionTransformer`` and ``Eva``): hidden patch embeddings become the mask token, after the patch
  embedding and before the positional one, as in BEiT, iBOT, Proteus and GKD, so that hidden tokens keep their
  positions and the sequence keeps its length. CLS, distillation and register tokens are processed but not returned as
  patch tokens. In training, DINOv3's rotary embeddings are rescaled at random by torch's global generator, as in timm.
* SAM's ViT: the same with maps instead of sequences, windows in most blocks and no CLS token. It has no final norm;
  the tap -1 is the output of its neck (1x1 and 3x3 convolutions to 256 channels, each with a LayerNorm), SAM's image
  embedding. The other taps are block outputs before the neck.
* everything else, through ``forward_intermediates``: hidden cells of the tap -1 are painted with a learnt colour in the
  normalised image, initially the mean colour. The tap -1 is the output of timm's ``forward_features``, with the norm
  that ConvNeXt and similar networks apply after pooling applied to every cell. The CLS token is that of the network, if
  it has one; a pooled map does not count as one.

An ``alter`` function changes the early map between the network's stem and the rest, as style augmentation in feature
space does. Early maps: the patch embedding of a ViT before its positions, the output of a ResNet's max-pooling, of
``conv_stem`` and its norm (EfficientNet, MobileNet), of a module called ``stem`` (ConvNeXt, RegNet), or of MiT's first
stage with its norm.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import ClNormMlpClassifierHead, NormMlpClassifierHead, PatchEmbed, resample_abs_pos_embed_nhwc
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import Tensor, nn

from segdistill.encoders.mit import MiT
from segdistill.ops import map_to_tokens

Grid = tuple[int, int]
Walked = tuple[dict[int, tuple[Tensor, Grid]], Tensor | None]
"""Tokens (B, h * w, C) and grid (h, w) of each requested tap, and the CLS token (B, C) after the final norm."""

Alter = Callable[[Tensor], Tensor]
"""Early map (B, C, h, w) -> the map to go on with; it has the same C, h and w and may have more images."""

Through = Callable[..., dict[int, Tensor]]
"""See :func:`through_blocks`."""

Walk = Callable[..., Walked]
"""(network, normalised images, taps, mask token, hidden cells, alter or None) -> tokens and CLS token."""

STEMS = (("conv1", "bn1", "act1", "maxpool"), ("conv_stem", "bn1"), ("stem",))
"""The modules, in their order, that compute the early map of a network with ``forward_intermediates``."""


def is_plain(network: nn.Module) -> bool:
    """Whether it is a ViT with a plain patch embedding, whose patch size can be chosen."""
    return isinstance(network, VisionTransformer | Eva) and isinstance(network.patch_embed, PatchEmbed)


def walk_of(network: nn.Module) -> Walk:
    """The walk for ``network``."""
    if isinstance(network, VisionTransformer | Eva):
        return walk_vit
    return walk_sam if isinstance(network, VisionTransformerSAM) else walk_maps


def mask_shape(network: Any) -> tuple[int, ...]:
    """Shape of the mask token: a patch embedding, or a colour.

    It has more than two dimensions, so that weight decay applies to it, as in the authors' code.
    """
    return (1, 3, 1, 1) if walk_of(network) is walk_maps else (1, 1, network.embed_dim)


def walk_vit(
    network: Any,
    images: Float[Tensor, "b 3 H W"],
    taps: tuple[int, ...],
    mask_token: Float[Tensor, "1 1 c"],
    hidden: Bool[Tensor, "b _h _w"] | None,
    alter: Alter | None = None,
    *,
    refine: Callable[[int, Tensor], Tensor] | None = None,
    through: Through | None = None,
) -> Walked:
    """Through a plain ViT; ``refine`` changes the output of every block (its number, tokens (B, prefix + N, C)).

    ``through`` runs the blocks, such as a compiled :func:`through_blocks`.
    """
    tokens = _hide(_altered(patch_tokens(network.patch_embed, images), alter), mask_token, hidden)  # (B, h, w, C)
    grid = (tokens.shape[1], tokens.shape[2])
    positioned = network._pos_embed(tokens)
    tokens, rope = positioned if isinstance(positioned, tuple) else (positioned, None)  # Eva adds a rotation
    tokens = network.norm_pre(tokens)  # (B, prefix + N, C)
    if rope is not None and not getattr(network, "rope_mixed", False):
        rope = [rope] * len(network.blocks)
    outputs = (through or through_blocks)(network.blocks, tokens, taps, rope, refine)
    outputs[-1] = tokens = network.norm(outputs[-1])
    prefix = network.num_prefix_tokens
    tapped = {index: (output[:, prefix:], grid) for index, output in outputs.items()}
    return tapped, None if network.cls_token is None else tokens[:, 0]


@no_type_check
def through_blocks(
    blocks: nn.ModuleList,
    tokens: Tensor,
    taps: tuple[int, ...],
    rope: Sequence[Tensor] | None = None,
    refine: Callable[[int, Tensor], Tensor] | None = None,
) -> dict[int, Tensor]:
    """Outputs of the tapped blocks of a plain ViT, and at -1 of the last one, all (B, N, C) as the ``tokens``.

    ``rope``: each block's rotation. Shapes are not checked: the compiler traces this function.
    """
    tapped = {}
    for index, block in enumerate(blocks):
        tokens = block(tokens) if rope is None else block(tokens, rope=rope[index])
        tokens = tokens if refine is None else refine(index, tokens)
        if index in taps:
            tapped[index] = tokens
    return tapped | {-1: tokens}


def patch_tokens(embed: Any, images: Float[Tensor, "b 3 H W"]) -> Tensor:
    """timm's patch embedding. On a GPU a plain one is a matrix product of the flattened patches: equal up to rounding,
    and faster than a convolution of three channels.
    """
    plain = isinstance(embed, PatchEmbed) and type(embed.proj) is nn.Conv2d and not embed.flatten
    if not images.is_cuda or not plain:
        return embed(images)
    return linear_patches(embed, images)


def linear_patches(embed: Any, images: Float[Tensor, "b 3 H W"]) -> Tensor:
    """The patch embedding (B, h, w, C) as a matrix product."""
    (high, wide), (height, width) = embed.patch_size, images.shape[-2:]
    if height % high or width % wide:
        return embed(images)
    cells = images.unflatten(3, (width // wide, wide)).unflatten(2, (height // high, high))  # (B, 3, h, high, w, wide)
    patches = cells.permute(0, 2, 4, 1, 3, 5).flatten(3)
    return embed.norm(F.linear(patches, embed.proj.weight.flatten(1), embed.proj.bias))


def walk_sam(
    network: Any,
    images: Float[Tensor, "b 3 H W"],
    taps: tuple[int, ...],
    mask_token: Float[Tensor, "1 1 c"],
    hidden: Bool[Tensor, "b _h _w"] | None,
    alter: Alter | None = None,
) -> Walked:
    """Through SAM's image encoder."""
    cells = _hide(_altered(network.patch_embed(images), alter), mask_token, hidden)  # (B, h, w, C)
    grid = (cells.shape[1], cells.shape[2])
    if network.pos_embed is not None:
        cells = cells + resample_abs_pos_embed_nhwc(network.pos_embed, grid)
    cells = network.norm_pre(cells)
    tapped: dict[int, tuple[Tensor, Grid]] = {}
    for index, block in enumerate(network.blocks):
        cells = block(cells)
        if index in taps:
            tapped[index] = cells.flatten(1, 2), grid
    if -1 in taps:
        tapped[-1] = map_to_tokens(network.neck(cells.permute(0, 3, 1, 2))), grid
    return tapped, None


def walk_maps(
    network: Any,
    images: Float[Tensor, "b 3 H W"],
    taps: tuple[int, ...],
    mask_token: Float[Tensor, "1 3 1 1"],
    hidden: Bool[Tensor, "b _h _w"] | None,
    alter: Alter | None = None,
) -> Walked:
    """Through any network with ``forward_intermediates``; its convolutions are fastest with the channels last."""
    images = images.contiguous(memory_format=torch.channels_last)
    if hidden is not None:
        images = torch.where(_pixels(hidden, images), mask_token.to(images.dtype), images)
    if alter is not None:
        network, images = _after_stem(network), alter(stem(network, images))
    wanted = sorted({tap for tap in taps if tap >= 0})
    final, maps = network.forward_intermediates(images, indices=wanted or 1, norm=False, output_fmt="NCHW")
    tapped = {
        tap: (map_to_tokens(features), (features.shape[-2], features.shape[-1]))
        for tap, features in zip(wanted, maps if wanted else (), strict=True)
    }
    if final.ndim == 3:  # a sequence, on the grid that all of its maps share
        prefix = getattr(network, "num_prefix_tokens", 0)
        tapped[-1] = final[:, prefix:], (maps[-1].shape[-2], maps[-1].shape[-1])
        return tapped, final[:, 0] if getattr(network, "cls_token", None) is not None else None
    norm = final_norm(network)
    if getattr(network, "output_fmt", "NCHW") == "NHWC":
        final = (final if norm is None else norm(final)).permute(0, 3, 1, 2)
    elif norm is not None:
        final = norm(final)
    tapped[-1] = map_to_tokens(final), (final.shape[-2], final.shape[-1])
    return tapped, None


def has_stem(network: Any) -> bool:
    """Whether :func:`stem` knows the network's early map."""
    return walk_of(network) is not walk_maps or _stem_names(network) is not None


def stem(network: Any, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
    """The early map of normalised images; see the module's text. Only for networks that :func:`has_stem`."""
    if walk_of(network) is not walk_maps:
        return network.patch_embed(images).permute(0, 3, 1, 2)
    names = _stem_names(network)
    assert names is not None, type(network)
    images = images.contiguous(memory_format=torch.channels_last)  # as in walk_maps
    for name in names:
        images = getattr(network, name)(images)
    return images


def _stem_names(network: Any) -> tuple[str, ...] | None:
    if isinstance(network, MiT):
        return ("stage1",)
    found = (names for names in STEMS if all(isinstance(getattr(network, name, None), nn.Module) for name in names))
    return next(found, None)


def _after_stem(network: Any) -> Any:
    """The network without its stem; shares all other modules."""
    names = _stem_names(network)
    assert names is not None, type(network)
    rest = copy.copy(network)
    rest.__dict__["_modules"] = network._modules | {name: nn.Identity() for name in names}
    return rest


def _altered(cells: Float[Tensor, "b h w c"], alter: Alter | None) -> Float[Tensor, "_b h w c"]:
    """Patch embeddings, altered as a map."""
    return cells if alter is None else alter(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def final_norm(network: nn.Module) -> nn.Module | None:
    """The norm between pooling and classifier of a hierarchical network."""
    head = getattr(network, "head", None)
    if isinstance(head, NormMlpClassifierHead | ClNormMlpClassifierHead) and isinstance(head.pre_logits, nn.Identity):
        return head.norm
    return None


def _hide(cells: Float[Tensor, "b h w c"], mask_token: Tensor, hidden: Tensor | None) -> Float[Tensor, "b h w c"]:
    """Patch embeddings with the mask token in place of the hidden ones."""
    return cells if hidden is None else torch.where(hidden.unsqueeze(-1), mask_token.to(cells.dtype), cells)


def _pixels(hidden: Bool[Tensor, "b _h _w"], images: Float[Tensor, "b 3 H W"]) -> Bool[Tensor, "b 1 H W"]:
    """Which pixels the hidden cells cover."""
    down, right = (side // count for side, count in zip(images.shape[-2:], hidden.shape[-2:], strict=True))
    return hidden.unsqueeze(1).repeat_interleave(down, dim=2).repeat_interleave(right, dim=3)
