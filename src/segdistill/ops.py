"""Small functions that every layer may use: seeds, token maps, projections, masks."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segdistill.processes import rank_and_size, shared_count
from segdistill.types import Features, Mask


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and their order, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of ``like``; nothing to switch off where tensors have no data (``meta``)."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def tokens_to_map(tokens: Float[Tensor, "b n c"], grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Patch tokens as a channels-first map."""
    b, n, c = tokens.shape
    assert n == grid[0] * grid[1], (n, grid)
    return tokens.transpose(1, 2).reshape(b, c, *grid)


def maps(features: Features) -> tuple[Float[Tensor, "b _c _h _w"], ...]:
    """The taps as maps, as a head reads them."""
    return tuple(map(tokens_to_map, features.tokens, features.grids))


def map_to_tokens(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """A channels-first map as patch tokens."""
    return features.flatten(2).transpose(1, 2)


def resize_tokens(tokens: Float[Tensor, "b n c"], grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Tokens on ``grid`` bilinearly resampled to the grid ``to`` (no change where they agree)."""
    if grid == to:
        return tokens
    resized = F.interpolate(tokens_to_map(tokens, grid), size=to, mode="bilinear", align_corners=False)
    return map_to_tokens(resized)


def norm_linear(inputs: int, outputs: int) -> nn.Sequential:
    """LayerNorm (eps 1e-5), Linear: how the methods bring one network's tokens to the other's width."""
    return nn.Sequential(nn.LayerNorm(inputs, eps=1e-5), nn.Linear(inputs, outputs))


def random_mask(
    batch: int, tokens: int, *, probability: float, ratio: float, rng: torch.Generator, first: bool = True
) -> Mask:
    """Hide ``int(tokens * ratio)`` uniformly chosen tokens in each of ``int(batch * probability)`` samples.

    Spec A.5: with ``first`` the masked samples are the first ones of the (already shuffled) batch, as the authors'
    ``--mask_first_n``; else they are drawn at random.
    """
    count = int(batch * probability)
    samples = torch.arange(count) if first else torch.randperm(batch, generator=rng)[:count].sort().values
    hidden = int(tokens * ratio)
    order = torch.rand(count, tokens, generator=rng).argsort(dim=1)
    mask = torch.zeros(count, tokens, dtype=torch.bool)
    mask.scatter_(1, order[:, :hidden], True)
    return Mask(samples=samples, tokens=mask)


def own_mask(whole: Mask) -> Mask:
    """What a mask of the whole batch hides in the samples of this process (see :mod:`segdistill.processes`).

    Where the masked samples are the first ones, two processes differ by one masked sample at most.
    """
    rank, size = rank_and_size()
    own = whole.samples % size == rank
    return Mask(samples=whole.samples[own] // size, tokens=whole.tokens[own])


def mean_over_hidden(
    error: Float[Tensor, "m n"], hidden: Bool[Tensor, "m k"], grid: tuple[int, int], to: tuple[int, int]
) -> Float[Tensor, ""]:
    """The mean of ``error``, which stands on the grid ``to``, over the tokens that ``hidden`` hides on ``grid``.

    On another grid a token counts as hidden where the nearest one of ``grid`` is; 0 where none is. The mean is that
    over the hidden tokens of all processes: each of them calls this, also one without a masked sample.
    """
    weight = hidden.to(error.device, error.dtype).unsqueeze(-1)
    if grid != to:
        weight = map_to_tokens(F.interpolate(tokens_to_map(weight, grid), size=to, mode="nearest"))
    weight = weight.squeeze(-1)
    return (error * weight).sum() / shared_count(weight.sum())
