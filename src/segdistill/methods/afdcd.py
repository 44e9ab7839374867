"""Af-DCD: reconstruct the teacher's features from a masked map, and contrast its channel groups at every position.

Paper: "Augmentation-Free Dense Contrastive Knowledge Distillation for Efficient Semantic Segmentation" (Fan et al.,
NeurIPS 2023, arXiv 2312.04168); checked against the authors' code (spec B.3). For final-norm tokens
S (B, N, Ds) and T (B, N, Dt), both as maps of the grid h x w, and K, a random map of the pixels that are kept (each
with probability 1 - zeta):

    G        = P( K align(S) )               align 1x1 conv, P conv3x3-ReLU-conv3x3; one K for all channels of a pixel
    feature  = w_fd / B || G - T ||^2        a sum over pixels and channels
    contrast = w_ctr / (B h' w') sum CE      of max-pooled G and T (h' x w'), cut into patches of k x k pixels and each
                                             pixel into M groups of consecutive channels, as follows
    pixel    = w_kd tau^2 KL                 of both heads' logits before upsampling, mean over their pixels

Each pixel and group of G is a query; its logits are the negative L1 distances / 0.07 to its positive, the same pixel
and group of T, and to its negatives, T's *other* groups at all pixels of the patch. The positive's group at the other
pixels is excluded. There are k^2 (M - 1) negatives: 240 with the defaults.

Weights are the code's defaults; the authors' Cityscapes scripts have 2e-6 / 5e-3, ADE20K 1e-6 / 0.04 (and w_kd 0.5).
The sums grow with Dt and N (``feature``) and with M and Dt / M (``contrast``): retune them for other networks.
The authors clip the gradient of align and P alone (norm 15); here the optimiser's ``clip`` applies to all parameters.

Ours: final encoder tokens instead of a CNN's last stage; align also for equal widths (the published code fails there);
grids need not be square, and student tokens on another grid are first resampled (bilinearly) to the teacher's; errors,
distances and softmax in at least fp32. A contrast or pixel term of weight 0 is skipped, with its requirements on grid,
widths and stage.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from segdistill import config as base
from segdistill.config import UserError
from segdistill.methods.kl import class_scores, pixel_kl
from segdistill.ops import full_precision, resize_tokens, tokens_to_map
from segdistill.processes import rand
from segdistill.types import FeatureSpec, LossTerms, Needs, Views


class AfDCD(nn.Module):
    """The projections and the three terms; see the module's docstring."""

    needs = Needs(logits=True)

    class Config(base.Config):
        """Defaults are the authors' code's."""

        feature_weight: float = Field(4e-5, ge=0, le=1e6, description="weight of the summed feature error")
        contrast_weight: float = Field(1e-3, ge=0, le=1e6, description="weight of the omni-contrastive term; 0: none")
        pixel_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the class scores' divergence; 0: none")
        drop: float = Field(0.75, ge=0, lt=1, description="share of the student's pixels hidden from the projector")
        enhanced: bool = Field(
            False, description="projector of two blocks whose outputs are averaged, as in the authors' scripts"
        )
        pool: int = Field(4, ge=1, le=1024, description="side of the max-pooling window before the contrast, tokens")
        patch: int = Field(4, ge=1, le=1024, description="side of the contrasted patches, pooled tokens")
        groups: int = Field(16, ge=2, le=2**16, description="channel groups of a token")
        tau: float = Field(0.07, ge=1e-3, le=1e3, description="temperature of the contrast")
        pixel_tau: float = Field(1.0, ge=1e-3, le=1e3, description="temperature of the class scores")

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        width = teacher.channels[0]
        if config.contrast_weight and width % config.groups:
            raise UserError(
                f"afdcd.groups={config.groups} does not divide the teacher's {width} channels: "
                f"choose a divisor of {width} from 2 on"
            )
        self.config = config
        self.needs = self.needs_for(config)
        self.align = nn.Linear(student.channels[0], width)  # of every token: a 1x1 convolution of the map
        self.projector = EnhancedProjector(width) if config.enhanced else _conv_relu_conv(width)

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The class scores of both networks, unless their term is off."""
        return Needs(logits=config.pixel_weight > 0)

    def forward(self, student: Views, teacher: Views, noise: Float[Tensor, "b n"] | None = None) -> LossTerms:
        """Weighted ``feature``, ``contrast`` and ``pixel`` terms.

        ``noise``, uniform in [0, 1), selects the teacher's grid points that are kept: those up to ``1 - drop``.
        By default it is drawn from torch's global generator (:func:`segdistill.processes.rand`).
        """
        config, grid = self.config, teacher.plain.grid
        target = tokens_to_map(teacher.plain.tokens[0].detach(), grid)
        tokens = resize_tokens(student.plain.tokens[0], student.plain.grid, grid)
        noise = rand(*tokens.shape[:2]) if noise is None else noise
        kept = (noise <= 1 - config.drop).to(tokens.device).unsqueeze(-1)
        rebuilt = self.projector(tokens_to_map(self.align(tokens) * kept, grid))
        rebuilt, target = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (rebuilt, target))

        terms = {"feature": config.feature_weight / len(target) * (rebuilt - target).square().sum()}
        if config.contrast_weight:
            terms["contrast"] = config.contrast_weight * self._contrast(rebuilt, target)
        if config.pixel_weight:
            divergence = pixel_kl(*class_scores(student, teacher), config.pixel_tau)
            terms["pixel"] = config.pixel_weight * divergence
        return terms

    def _contrast(self, rebuilt: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
        config, (h, w) = self.config, target.shape[-2:]
        if math.gcd(h, w) % (config.pool * config.patch):
            raise UserError(
                f"afdcd.pool={config.pool} x afdcd.patch={config.patch} does not divide the grid of {h}x{w} tokens: "
                f"choose a pool and a patch whose product divides {math.gcd(h, w)}"
            )
        pooled = (F.max_pool2d(x, config.pool) for x in (rebuilt, target))
        return omni_contrast(*pooled, groups=config.groups, patch=config.patch, tau=config.tau)


class EnhancedProjector(nn.Module):
    """Two conv3x3-ReLU blocks in a row; the mean of a conv3x3 of each one's output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(_conv(width), nn.ReLU()) for _ in range(2))
        self.first_out, self.second_out = _conv(width), _conv(width)

    def forward(self, features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Features of the same shape."""
        first = self.first(features)
        return (self.first_out(first) + self.second_out(self.second(first))) / 2


def omni_contrast(
    student: Float[Tensor, "b c h w"],
    teacher: Float[Tensor, "b c h w"],
    *,
    groups: int,
    patch: int,
    tau: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of each (pixel, group) of the student, summed, over ``b h w``: ``groups`` times its mean.

    ``patch`` divides h and w, ``groups`` divides c; see the module's docstring.
    """
    b, _, h, w = student.shape
    queries, keys = (_vectors(x, groups, patch) for x in (student, teacher))
    with full_precision(student):
        logits = -torch.cdist(queries, keys, p=1.0) / tau  # (P, k k m, k k m)
    group = torch.arange(logits.shape[-1], device=logits.device) % groups
    excluded = (group.unsqueeze(1) == group).fill_diagonal_(False)
    log_shares = logits.masked_fill(excluded, -math.inf).log_softmax(dim=-1)
    return -log_shares.diagonal(dim1=1, dim2=2).sum() / (b * h * w)


def _vectors(features: Float[Tensor, "b c h w"], groups: int, patch: int) -> Float[Tensor, "p q g"]:
    """All channel groups at all pixels of each patch, the group's index running fastest: q = patch^2 groups."""
    b, c, h, w = features.shape
    cut = features.reshape(b, groups, c // groups, h // patch, patch, w // patch, patch)
    return cut.permute(0, 3, 5, 4, 6, 1, 2).reshape(-1, patch * patch * groups, c // groups)


def _conv(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1)


def _conv_relu_conv(width: int) -> nn.Sequential:
    return nn.Sequential(_conv(width), nn.ReLU(), _conv(width))
