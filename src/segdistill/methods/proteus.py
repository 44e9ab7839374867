"""Proteus: regress the teacher's CLS token, all of its tokens, and the tokens that the student cannot see.

Paper: "Accessing Vision Foundation Models via ImageNet-1K", ICLR 2025 (arXiv 2407.10366); checked against the authors'
code (spec B.6). Student and teacher tokens are taken after the final norm, and each head h is LayerNorm,
Linear(Ds -> Dt). All weights are 1:

    token    = MSE( h_token(CLS_s), CLS_t )
    feature  = MSE( [h_token(CLS_s), h_feature(S)], [CLS_t, T] )      over B (N + 1) Dt elements: CLS counts again
    patch    = MSE( h_patch(S_masked), T )                            over the hidden tokens of the masked samples only

These are GKD's terms with plain heads instead of query-based soft distillation, and the same masks (the first half of
the samples, half of their tokens). For a CLIP teacher the authors keep only the token term: set the other weights to 0.
Deviations: tokens on another grid are resampled to the teacher's; without a masked sample the patch term is 0 (theirs:
the mean of an empty tensor); the setting ``token`` replaces the CLS tokens for networks without one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segdistill.methods.masked import MaskedDistillation, image_token
from segdistill.ops import mean_over_hidden, norm_linear, resize_tokens
from segdistill.types import FeatureSpec, LossTerms, Views


class Proteus(MaskedDistillation):
    """Three heads and their squared errors; see the module's docstring."""

    def __init__(self, config: MaskedDistillation.Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(config, student, teacher)
        self.patch_head = norm_linear(*self.widths)
        self.token_head = None if self.token_widths is None else norm_linear(*self.token_widths)
        self.fea_head = norm_linear(*self.widths)

    def forward(self, student: Views, teacher: Views) -> LossTerms:
        """Weighted ``token``, ``feature`` and ``patch`` terms."""
        config = self.config
        tokens = teacher.plain.tokens[0].detach()
        plain = resize_tokens(student.plain.tokens[0], student.plain.grid, teacher.plain.grid)
        terms: LossTerms = {}
        own, goal = self.fea_head(plain), tokens
        if self.token_head is not None:
            cls = image_token(teacher.plain, config.token).detach()
            cls_out = self.token_head(image_token(student.plain, config.token))
            terms["token"] = config.token_weight * F.mse_loss(cls_out, cls)
            own, goal = (
                torch.cat([a.unsqueeze(1), b], dim=1) for a, b in ((cls_out, own), (cls, tokens))
            )  # (B, 1 + N, Dt)
        terms["feature"] = config.feature_weight * F.mse_loss(own, goal)
        terms["patch"] = config.patch_weight * self._patch(student, tokens, teacher.plain.grid)
        return terms

    def _patch(self, student: Views, tokens: Float[Tensor, "b n dt"], to: tuple[int, int]) -> Float[Tensor, ""]:
        """The masked-view term, unweighted."""
        if student.masked is None or student.mask is None:
            error = self.patch_head(student.plain.tokens[0]).sum(dim=-1)  # gives every parameter a gradient
            grid = student.plain.grid
            return mean_over_hidden(error, torch.zeros_like(error, dtype=torch.bool), grid, grid)
        masked = resize_tokens(student.masked.tokens[0], student.masked.grid, to)
        target = tokens[student.mask.samples.to(tokens.device)]
        error = (self.patch_head(masked) - target).square().mean(dim=-1)  # (M, N)
        return mean_over_hidden(error, student.mask.tokens, student.masked.grid, to)
