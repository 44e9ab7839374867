"""Proteus: regress the teacher's CLS token, all of its tokens, and the tokens that the student cannot see.

Paper: "Accessing Vision Foundation Models via ImageNet-1K", ICLR 2025 (arXiv 2407.10366); readings checked against the
authors' code (spec B.6). Student and teacher tokens stand after the final norm, and each head h is LayerNorm,
Linear(Ds -> Dt). All weights are 1:

    token    = MSE( h_token(CLS_s), CLS_t )
    feature  = MSE( [h_token(CLS_s), h_feature(S)], [CLS_t, T] )      over B (N + 1) Dt elements: CLS counts again
    patch    = MSE( h_patch(S_masked), T )                            over the hidden tokens of the masked samples alone

These are GKD's terms with plain heads in the place of query-based soft distillation, and the same masks (the first half
of the samples, half of their tokens). For a CLIP teacher the authors keep the token term alone: set the other weights
to 0. Deviations: tokens of another grid are resampled to the teacher's; without a masked sample the patch term is 0
(theirs: the mean of nothing).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from segdistill import config as base
from segdistill.config import UserError
from segdistill.ops import mean_over_hidden, norm_linear, resize_tokens
from segdistill.types import FeatureSpec, LossTerms, Needs, Views


class Proteus(nn.Module):
    """Three heads and their squared errors; see the module's text."""

    needs = Needs(masked=True)

    class Config(base.Config):
        """Defaults are the authors'."""

        token_weight: float = Field(1.0, ge=0, description="weight of the CLS term")
        feature_weight: float = Field(1.0, ge=0, description="weight of the plain-view term")
        patch_weight: float = Field(1.0, ge=0, description="weight of the masked-view term")
        mask_probability: float = Field(0.5, ge=0, le=1, description="share of the samples with hidden tokens")
        mask_ratio: float = Field(0.5, ge=0, le=1, description="share of the tokens hidden in such a sample")
        mask_first: bool = Field(True, description="hide in the first samples of the (shuffled) batch, else in random")

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        if student.cls_channels is None or teacher.cls_channels is None:
            raise UserError("proteus distils the CLS token: choose a student and a teacher that have one")
        self.config = config
        widths = (student.channels[0], teacher.channels[0])
        self.patch_head = norm_linear(*widths)
        self.token_head = norm_linear(student.cls_channels, teacher.cls_channels)
        self.fea_head = norm_linear(*widths)

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The masked view, whatever the settings; ``mask_probability=0`` makes it empty."""
        return Proteus.needs

    def mask_settings(self) -> dict[str, float | bool]:
        """Keyword arguments for :func:`segdistill.ops.random_mask`."""
        config = self.config
        return {"probability": config.mask_probability, "ratio": config.mask_ratio, "first": config.mask_first}

    def forward(self, student: Views, teacher: Views) -> LossTerms:
        """Weighted ``token``, ``feature`` and ``patch`` terms."""
        config = self.config
        assert student.plain.cls is not None
        assert teacher.plain.cls is not None
        tokens, cls = teacher.plain.tokens[0].detach(), teacher.plain.cls.detach()
        plain = resize_tokens(student.plain.tokens[0], student.plain.grid, teacher.plain.grid)
        cls_out = self.token_head(student.plain.cls)
        whole = torch.cat([cls_out.unsqueeze(1), self.fea_head(plain)], dim=1)  # (B, 1 + N, Dt)
        return {
            "token": config.token_weight * F.mse_loss(cls_out, cls),
            "feature": config.feature_weight * F.mse_loss(whole, torch.cat([cls.unsqueeze(1), tokens], dim=1)),
            "patch": config.patch_weight * self._patch(student, tokens, teacher.plain.grid),
        }

    def _patch(self, student: Views, tokens: Float[Tensor, "b n dt"], to: tuple[int, int]) -> Float[Tensor, ""]:
        """The masked-view term, unweighted."""
        if student.masked is None or student.mask is None:
            return self.patch_head(student.plain.tokens[0]).sum() * 0.0  # no error, but no parameter without a gradient
        masked = resize_tokens(student.masked.tokens[0], student.masked.grid, to)
        target = tokens[student.mask.samples.to(tokens.device)]
        error = (self.patch_head(masked) - target).square().mean(dim=-1)  # (M, N)
        return mean_over_hidden(error, student.mask.tokens, student.masked.grid, to)
