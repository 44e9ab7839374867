"""The student inherits its teacher: a small ViT whose start weights are a slice of a large ViT's. Ours.

A randomly initialised student spends most of an affordable training budget becoming usable at all. Its teacher is
usable already, only too wide and too deep, and most of its width is redundant. Five parts, chosen by the teacher's own
activations on some calibration images:

* **Width.** Let x (d,) be a token between two blocks and z = (x - mean) / std, what a block's LayerNorm makes of it. Q
  (d, n - 1) holds the leading eigenvectors of the sum of z z^T over all tokens and blocks, and R (n, n - 1) any
  orthonormal columns orthogonal to (1, ..., 1). The student's tokens are s = R Q^T (x - mean): their mean is zero, so
  its LayerNorm only divides, and sqrt(d / n) Q R^T LayerNorm(s) equals z where Q loses nothing. Each linear layer that
  reads the stream is multiplied by that matrix and by the gains that the LayerNorm before it had, and each that writes
  to it by R Q^T (I - 1 1^T / d) and by LayerScale. The rotation of the stream is SliceGPT's (Ashkboos et al.,
  ICLR 2024, arXiv 2401.15024), which slices networks in place.
* **Heads.** Of a head's attention logits x^T Wq^T Wk y and of its output Wo Wv y the leading singular values are kept,
  biases included; of the heads those with the largest output matrices.
* **MLP.** The hidden units with the largest mean square of activation times the norm of their output weights.
* **Patches.** The teacher's kernels, or a stem of convolutions trained for them (:mod:`segdistill.encoders.stem`).
* **Depth.** Evenly spaced blocks, the last one included, unless ``blocks`` names them. A block of the student stands
  for that one and the left out ones after it, the first one also for those before it.

Then the last linear layers of attention and MLP are corrected, block by block from the first on, by least squares: on
the calibration images the student's tokens after a block should be R Q^T (x - mean) of the teacher's after the last one
that it stands for. That makes up for a part of what was cut, and for the blocks that are left out.

If nothing is cut, the student's final-norm tokens are a rotation of the teacher's z (tested). Starting small networks
from parts of large ones is Weight Selection's idea (Xu et al., ICLR 2024, arXiv 2311.18823), which takes evenly spaced
entries of every weight.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from segdistill.config import UserError
from segdistill.encoders.correct import correct
from segdistill.encoders.encoder import Encoder
from segdistill.encoders.stem import inherit_stem, last_convolution
from segdistill.weights import resample_positions


@dataclass(frozen=True)
class Statistics:
    """What the slice is chosen by, from calibration images.

    ``spread`` (d, d) sums the second moments of normalised tokens; ``active`` has the mean square of every hidden unit
    per block, (blocks, hidden).
    """

    spread: Tensor
    active: Tensor


def spaced(blocks: int, kept: int) -> tuple[int, ...]:
    """The last ones of ``kept`` groups of ``blocks`` blocks, as equal as can be."""
    return tuple((number + 1) * blocks // kept - 1 for number in range(kept))


def check_pair(student: Encoder, teacher: Encoder, blocks: Sequence[int] | None = None) -> tuple[int, ...]:
    """The teacher block that each student block is copied from; a :class:`UserError` if the student cannot inherit."""
    for role, encoder in (("student", student), ("teacher", teacher)):
        if reason := _unfit(encoder):
            raise UserError(
                f"inherit needs two plain ViTs of timm: the {role} {encoder.name} {reason}; choose another, or remove "
                "the stage"
            )
    small, large = student.backbone, teacher.backbone
    for name, ours, theirs in (("channels", small.embed_dim, large.embed_dim),
                               ("blocks", len(small.blocks), len(large.blocks))):  # fmt: skip
        if ours > theirs:
            raise UserError(
                f"inherit: the student {student.name} has {ours} {name}, its teacher {teacher.name} {theirs}; choose a "
                "smaller student"
            )
    chosen = spaced(len(large.blocks), len(small.blocks)) if blocks is None else tuple(blocks)
    inside = all(0 <= block < len(large.blocks) for block in chosen)
    if len(chosen) != len(small.blocks) or not inside or list(chosen) != sorted(set(chosen)):
        raise UserError(
            f"inherit.blocks: got {list(chosen)}; {student.name} needs {len(small.blocks)} increasing block numbers "
            f"from 0 to {len(large.blocks) - 1}"
        )
    if student.patch != teacher.patch and not isinstance(large.patch_embed.proj, nn.Conv2d):
        raise UserError(
            f"inherit: the patch of {teacher.name} cannot be changed from {teacher.patch} to the student's "
            f"{student.patch}; choose a student with patch {teacher.patch}"
        )
    if last_convolution(small.patch_embed) is None:
        raise UserError(f"inherit: the patch embedding of {student.name} does not end in a convolution; choose another")
    return chosen


def _unfit(encoder: Encoder) -> str:
    """Why the encoder cannot take part; empty: it can."""
    network: Any = encoder.backbone
    if not isinstance(network, VisionTransformer):
        return "is not one"
    if encoder.rein is not None:
        return "has Rein's tokens"
    if not isinstance(network.norm_pre, nn.Identity) or not isinstance(network.norm, nn.LayerNorm):
        return "has a norm before its blocks or none after them"
    for block in network.blocks:
        plain = isinstance(block, Block) and type(block.attn) is Attention and type(block.mlp) is Mlp
        parts: Any = block
        if not plain or not isinstance(parts.attn.q_norm, nn.Identity) or not isinstance(parts.mlp.act, nn.GELU):
            return "has blocks that differ from the original ViT's"
    return ""


@torch.no_grad()
def measure(teacher: Encoder, images: Sequence[Tensor]) -> Statistics:
    """Run the teacher on batches of images (B, 3, H, W) in [0, 1]."""
    network: Any = teacher.backbone
    spread: Tensor = torch.zeros(network.embed_dim, network.embed_dim, dtype=torch.float64)
    active: dict[int, list[Tensor]] = defaultdict(list)
    taps = tuple(range(len(network.blocks)))
    handles = [network.blocks[number].mlp.act.register_forward_hook(_into(active[number])) for number in taps]
    try:
        for batch in images:
            found = teacher(batch, taps)
            for tokens in found.tokens:
                z = _normalised(tokens.double()).flatten(0, 1)
                spread += z.T @ z / len(z)
    finally:
        for handle in handles:
            handle.remove()
    return Statistics(spread, torch.stack([torch.stack(active[number]).mean(0) for number in taps]).double())


def _into(found: list[Tensor]) -> Callable[..., None]:
    """A hook that keeps the mean square of every hidden unit."""
    return lambda module, given, output: found.append(output.square().mean(dim=(0, 1)))


def _normalised(tokens: Tensor) -> Tensor:
    """Tokens (..., d) as a LayerNorm without gains makes them."""
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)


@torch.no_grad()
def inherit(
    student: Encoder, teacher: Encoder, images: Sequence[Tensor], blocks: Sequence[int], stem_steps: int
) -> tuple[float, tuple[float, ...]]:
    """Overwrite the student's weights; ``images`` are batches (B, 3, H, W) in [0, 1], ``blocks`` of :func:`check_pair`;
    ``stem_steps`` of Adam train a stem of several layers.

    Returns the share of the spread that the student's width keeps and, for each of its blocks, the share of the
    variance of the teacher's tokens that its own do not explain. Both networks must be in evaluation mode.
    """
    statistics = measure(teacher, images)
    small, large = student.backbone, teacher.backbone
    wide, narrow = large.embed_dim, small.embed_dim
    values, vectors = torch.linalg.eigh(statistics.spread)
    kept = vectors[:, wide - narrow + 1 :]
    rotation = _without_mean(narrow)
    into = rotation @ kept.T @ (torch.eye(wide, dtype=torch.float64) - 1 / wide)  # (n, d): teacher -> student
    back = math.sqrt(wide / narrow) * kept @ rotation.T  # (d, n): the student's normalised tokens -> z
    inherit_stem(student, teacher, images, into, stem_steps)
    _prefix(student, teacher, into)
    for block, number in zip(small.blocks, blocks, strict=True):
        _attention(block, large.blocks[number], into, back)
        _mlp(block, large.blocks[number], statistics.active[number], into, back)
    small.norm.weight.fill_(1.0)
    small.norm.bias.zero_()
    return (values[wide - narrow + 1 :].sum() / values.sum()).item(), correct(student, teacher, images, into, blocks)


def _without_mean(size: int) -> Tensor:
    """(n, n - 1) orthonormal columns orthogonal to ones: the cosine transform without its constant row."""
    row, column = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(1, size, dtype=torch.float64)
    return math.sqrt(2 / size) * torch.cos(math.pi * (row + 0.5) * column / size)


def _prefix(student: Encoder, teacher: Encoder, into: Tensor) -> None:
    """Positions, the CLS token with its position, and registers of an equal number."""
    small, large = student.backbone, teacher.backbone
    first = 0 if large.no_embed_class else large.num_prefix_tokens
    places = resample_positions(
        large.pos_embed.double(), teacher.grid, student.grid, prefix=first, how=teacher.config.resample
    )
    own = 0 if small.no_embed_class else small.num_prefix_tokens
    found = torch.zeros_like(small.pos_embed, dtype=torch.float64)
    found[:, own:] = places[:, first:] @ into.T
    if small.cls_token is not None and large.cls_token is not None:
        token = large.cls_token.double() + (places[:, :1] if first else 0.0)
        _set(small.cls_token, token @ into.T)
    ours, theirs = small.reg_token, large.reg_token
    if ours is not None and theirs is not None and ours.shape[1] == theirs.shape[1]:
        _set(ours, theirs.double() @ into.T)
    _set(small.pos_embed, found)


def _attention(ours: Any, theirs: Any, into: Tensor, back: Tensor) -> None:
    """Queries and keys by their product, values and outputs by theirs, each cut to the student's width of a head."""
    attention, other = ours.attn, theirs.attn
    heads, size = attention.num_heads, attention.head_dim
    read = _reading(other.qkv, theirs.norm1, back).unflatten(0, (3, other.num_heads, other.head_dim))
    write = (into @ (_gains(theirs.ls1, into) * other.proj.weight.double())).unflatten(1, (other.num_heads, -1))
    outputs = torch.stack([(write[:, head] @ read[2, head]).norm() for head in range(other.num_heads)])
    chosen = outputs.topk(min(heads, other.num_heads)).indices.sort().values.tolist()
    inner = attention.qkv.weight.double().unflatten(0, (3, heads, size))
    weights = torch.cat([inner, torch.zeros_like(inner[..., :1])], dim=-1)
    weights[1] = 0.0  # heads and channels that the teacher lacks: no effect at first, but gradients through the queries
    outward = torch.zeros(len(into), heads, size, dtype=torch.float64)
    for place, head in enumerate(chosen):
        left, right = _factors(read[0, head].T @ read[1, head] * math.sqrt(size / other.head_dim), size)
        weights[0, place, : left.shape[1]], weights[1, place, : len(right)] = left.T, right
        left, right = _factors(write[:, head] @ read[2, head], size)
        outward[:, place, : left.shape[1]], weights[2, place, : len(right)] = left, right
    _into_linear(attention.qkv, weights.flatten(0, 2))
    _set(attention.proj.weight, outward.flatten(1))
    _set(attention.proj.bias, into @ (_gains(theirs.ls1, into)[:, 0] * other.proj.bias.double()))
    _plain(ours.norm1, ours.ls1)


def _factors(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``product`` as left (a, r) @ right (r, b) of at most ``rank``, both with the same share of its scale."""
    u, values, v = torch.linalg.svd(product, full_matrices=False)
    root = values[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:rank]


def _mlp(ours: Any, theirs: Any, active: Tensor, into: Tensor, back: Tensor) -> None:
    """The hidden units that add most."""
    first = _reading(theirs.mlp.fc1, theirs.norm2, back)
    second = into @ (_gains(theirs.ls2, into) * theirs.mlp.fc2.weight.double())
    hidden = ours.mlp.fc1.out_features
    chosen = (active * second.square().sum(0)).topk(min(hidden, len(active))).indices.sort().values
    inner = torch.cat([ours.mlp.fc1.weight.double(), torch.zeros(hidden, 1, dtype=torch.float64)], dim=-1)
    inner[: len(chosen)] = first[chosen]
    outward = torch.zeros(len(into), hidden, dtype=torch.float64)
    outward[:, : len(chosen)] = second[:, chosen]
    _into_linear(ours.mlp.fc1, inner)
    _set(ours.mlp.fc2.weight, outward)
    _set(ours.mlp.fc2.bias, into @ (_gains(theirs.ls2, into)[:, 0] * theirs.mlp.fc2.bias.double()))
    _plain(ours.norm2, ours.ls2)


def _reading(layer: Any, norm: Any, back: Tensor) -> Tensor:
    """Weights and bias (out, n + 1) of a layer that reads the teacher's LayerNorm, for the student's."""
    weight = layer.weight.double()
    bias = weight @ norm.bias.double()
    if layer.bias is not None:
        bias = bias + layer.bias.double()
    return torch.cat([(weight * norm.weight.double()) @ back, bias[:, None]], dim=1)


def _gains(scale: Any, like: Tensor) -> Tensor:
    """(d, 1) gains of a LayerScale; ones without it."""
    gamma = getattr(scale, "gamma", None)
    return (torch.ones(like.shape[1], dtype=torch.float64) if gamma is None else gamma.double())[:, None]


def _into_linear(layer: Any, values: Tensor) -> None:
    """Weights and bias from (out, in + 1)."""
    _set(layer.weight, values[:, :-1])
    if layer.bias is not None:
        _set(layer.bias, values[:, -1])


def _plain(norm: Any, scale: Any) -> None:
    """A LayerNorm and a LayerScale without effect: they are in the weights."""
    norm.weight.fill_(1.0)
    norm.bias.zero_()
    if hasattr(scale, "gamma"):
        scale.gamma.fill_(1.0)


def _set(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values)
