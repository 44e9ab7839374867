"""Vanilla knowledge distillation: regress the teacher's tokens.

    L = MSE( adapter(S), T )            mean over all elements; adapter = LayerNorm, Linear(Ds -> Dt)

FitNets (Romero et al., ICLR 2015, arXiv 1412.6550) on encoder tokens, as in GKD's comparison: its "vanilla KD" row is
the same as "MSE, single stage", ``||F_t(x) - F_s(x)||^2`` beside the task loss. Layer, adapter and weight are not
published (spec B.1); ours: final-norm patch tokens, weight 1. Tokens on another grid are resampled to the grid of the
teacher's tap before the adapter. Several taps are averaged; ``cls_weight`` adds the CLS token (ours, off).

``relative`` (ours, off) divides the error of every channel by the channel's variance over the batch's teacher tokens,
which is 1 - R^2: 1 for an adapter that knows the mean alone, 0 for a perfect copy. A weight then means the same for
every teacher, and the few channels of large variance that foundation models have do not outweigh all others.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from segdistill import config as base
from segdistill.config import UserError
from segdistill.ops import full_precision, norm_linear, resize_tokens
from segdistill.processes import mean_over_processes
from segdistill.types import FeatureSpec, LossTerms, Needs, Views

Taps = tuple[Annotated[int, Field(ge=-1, le=1000)], ...]


def check_pairs(name: str, taps: Taps, teacher_taps: Taps | None) -> None:
    """A ValueError unless the method ``name`` has as many blocks of the teacher as of the student."""
    if teacher_taps is not None and len(teacher_taps) != len(taps):
        raise ValueError(f"{name} compares pairs of blocks: got {len(taps)} taps and {len(teacher_taps)} teacher_taps")


class MSE(nn.Module):
    """Adapters and their squared error; see the module's docstring."""

    needs = Needs()

    class Config(base.Config):
        """Ours: the comparison's settings are not published."""

        weight: float = Field(1.0, ge=0, le=1e6, description="weight of the patch-token term")
        cls_weight: float = Field(0.0, ge=0, le=1e6, description="ours: weight of the CLS term; 0: none")
        relative: bool = Field(
            False, description="ours: each channel's error as a share of the channel's variance in the batch"
        )
        taps: Taps = Field(
            (-1,),
            min_length=1,
            max_length=100,
            description="blocks compared; -1: final-norm tokens",
        )
        teacher_taps: Taps | None = Field(
            None, min_length=1, max_length=100, description="ours: the teacher's blocks; None: those of taps"
        )

        @model_validator(mode="after")
        def _pairs(self) -> MSE.Config:
            check_pairs("mse", self.taps, self.teacher_taps)
            return self

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.needs = self.needs_for(config)
        widths = zip(student.channels, teacher.channels, strict=True)
        self.adapters = nn.ModuleList(norm_linear(ours, theirs) for ours, theirs in widths)
        self.cls_adapter: nn.Module | None = None
        if config.cls_weight:
            if student.cls_channels is None or teacher.cls_channels is None:
                raise UserError("mse.cls_weight needs a student and a teacher with a CLS token: set it to 0")
            self.cls_adapter = norm_linear(student.cls_channels, teacher.cls_channels)

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The configured taps."""
        return Needs(taps=config.taps, teacher_taps=config.teacher_taps)

    def forward(self, student: Views, teacher: Views) -> LossTerms:
        """Weighted ``feature`` (and ``token``) terms."""
        ours, theirs = student.plain, teacher.plain
        pairs = zip(self.adapters, ours.tokens, ours.grids, theirs.tokens, theirs.grids, strict=True)
        errors = [
            self._error(adapter(resize_tokens(tokens, grid, to)), target.detach())
            for adapter, tokens, grid, target, to in pairs
        ]
        terms = {"feature": self.config.weight * torch.stack(errors).mean()}
        if self.cls_adapter is not None:
            assert student.plain.cls is not None
            assert teacher.plain.cls is not None
            error = F.mse_loss(self.cls_adapter(student.plain.cls), teacher.plain.cls.detach())
            terms["token"] = self.config.cls_weight * error
        return terms

    def _error(self, found: Float[Tensor, "b n c"], target: Float[Tensor, "b n c"]) -> Float[Tensor, ""]:
        """The mean squared error of one tap, relative to the targets' variance if so configured."""
        if not self.config.relative:
            return F.mse_loss(found, target)
        precision = torch.promote_types(found.dtype, torch.float32)
        found, target = found.to(precision), target.to(precision)
        with full_precision(target):
            mean = mean_over_processes(target.mean(dim=(0, 1)))
            variance = mean_over_processes((target - mean).square().mean(dim=(0, 1)))
            return ((found - target).square().mean(dim=(0, 1)) / variance.clamp(min=1e-6)).mean()
