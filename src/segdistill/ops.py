"""Small shared functions: seeds, token maps, projections, masks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from segdistill.processes import share, shared_count
from segdistill.types import Features, Mask


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from all parts in their order; the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed`."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off on the device of ``like``; does nothing for tensors without data (``meta``)."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


def state_digest(network: nn.Module, facts: bytes = b"") -> str:
    """SHA-256 of ``facts`` and a network's tensors with their names."""
    digest = hashlib.sha256(facts)
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode is restored afterwards."""
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


def tokens_to_map(tokens: Float[Tensor, "b n c"], grid: tuple[int, int]) -> Float[Tensor, "b c h w"]:
    """Patch tokens as a channels-first map."""
    b, n, c = tokens.shape
    assert n == grid[0] * grid[1], (n, grid)
    return tokens.transpose(1, 2).reshape(b, c, *grid)


def maps(features: Features) -> tuple[Float[Tensor, "b _c _h _w"], ...]:
    """The taps as maps, the input of a head."""
    return tuple(map(tokens_to_map, features.tokens, features.grids))


def map_to_tokens(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """A channels-first map as patch tokens."""
    return features.flatten(2).transpose(1, 2)


def resize(features: Float[Tensor, "b c _h _w"], size: tuple[int, int]) -> Float[Tensor, "b c _p _q"]:
    """Bilinear, half-pixel centres, no antialias; unchanged if it already has the size."""
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)


def resize_tokens(tokens: Float[Tensor, "b n c"], grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Tokens on ``grid`` bilinearly resampled to the grid ``to``; unchanged if these are equal."""
    if grid == to:
        return tokens
    return map_to_tokens(resize(tokens_to_map(tokens, grid), to))


def norm_linear(inputs: int, outputs: int) -> nn.Sequential:
    """LayerNorm (eps 1e-5) and Linear: the projection from one network's token width to the other's."""
    return nn.Sequential(nn.LayerNorm(inputs, eps=1e-5), nn.Linear(inputs, outputs))


class LeastSquares:
    """The sums of a linear regression of ``outputs`` numbers on ``inputs`` numbers and a constant, in float64."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.xx = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.xy = torch.zeros(inputs + 1, outputs, dtype=torch.float64)
        self.yy = torch.zeros((), dtype=torch.float64)

    def add(self, read: Float[Tensor, "n _c"], target: Float[Tensor, "n _k"]) -> None:
        """Add rows of inputs and of outputs."""
        x, y = F.pad(read.double(), (0, 1), value=1.0), target.double()
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += y.square().sum()

    def solve(self, ridge: float, *, constant: bool = True) -> Float[Tensor, "_c _k"]:
        """The weights, one row per input and last the constant's; ``ridge`` is a share of the inputs' mean square."""
        count = len(self.xx) if constant else len(self.xx) - 1
        own = self.xx[:count, :count]
        return torch.linalg.solve(own + self.penalty(ridge, own), self.xy[:count])

    def penalty(self, ridge: float, own: Float[Tensor, "_c _c"]) -> Float[Tensor, "_c _c"]:
        """What is added to the moments ``own`` of the inputs."""
        return ridge * own.diagonal().mean() * torch.eye(len(own), dtype=torch.float64)


def random_mask(
    batch: int, tokens: int, *, probability: float, ratio: float, rng: torch.Generator, first: bool = True
) -> Mask:
    """Hide ``int(tokens * ratio)`` uniformly chosen tokens in each of ``int(batch * probability)`` samples.

    Spec A.5: with ``first`` the first samples of the (shuffled) batch are masked, as with the authors'
    ``--mask_first_n``; else random ones.
    """
    count = int(batch * probability)
    samples = torch.arange(count) if first else torch.randperm(batch, generator=rng)[:count].sort().values
    hidden = int(tokens * ratio)
    order = torch.rand(count, tokens, generator=rng).argsort(dim=1)
    mask = torch.zeros(count, tokens, dtype=torch.bool)
    mask.scatter_(1, order[:, :hidden], True)
    return Mask(samples=samples, tokens=mask)


def own_mask(whole: Mask) -> Mask:
    """The part of a whole batch's mask for the samples of this share (see :mod:`segdistill.processes`).

    If the first samples are masked, the counts of two shares differ by at most one.
    """
    number, count = share()
    own = whole.samples % count == number
    return Mask(samples=whole.samples[own] // count, tokens=whole.tokens[own])


def mean_over_hidden(
    error: Float[Tensor, "m n"], hidden: Bool[Tensor, "m k"], grid: tuple[int, int], to: tuple[int, int]
) -> Float[Tensor, ""]:
    """The mean of ``error``, on the grid ``to``, over the tokens that are ``hidden`` on ``grid``; 0 without any.

    On a different grid a token counts as hidden if the nearest one of ``grid`` is. The mean is over the hidden tokens
    of all processes: every process must call this, even without masked samples.
    """
    weight = hidden.to(error.device, error.dtype).unsqueeze(-1)
    if grid != to:
        weight = map_to_tokens(F.interpolate(tokens_to_map(weight, grid), size=to, mode="nearest"))
    weight = weight.squeeze(-1)
    return (error * weight).sum() / shared_count(weight.sum())
