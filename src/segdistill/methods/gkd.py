"""Generalizable Knowledge Distillation: query-based soft distillation of encoder tokens.

Paper: "Generalizable Knowledge Distillation from Vision Foundation Models for Semantic Segmentation", CVPR 2026
(arXiv 2603.02554); checked against the authors' code. For student tokens S (B, N, Ds) and teacher tokens T
(B, N, Dt), both after the final norm, a head with the projections phi_q and phi_v (LayerNorm, Linear) computes

    A = softmax_j( phi_q(S)_i . T_j )            over the N teacher tokens of the image; no 1/sqrt(d), no temperature
    R = A phi_v(S)                               the values are the student's, indexed by teacher position

and three heads give the loss (all weights 1):

    token    = MSE( R_cls, T_cls )               one key: softmax = 1, so phi_q of this head gets a zero gradient
    feature  = MSE( [R_cls, R_plain], [T_cls, T] )
    patch    = MSE( R_masked, T )                student with hidden tokens; over *all* tokens of *all* samples

Only half of the samples have hidden tokens. The masked view of the others equals their plain one, so
``student.masked`` holds the masked samples only and the plain tokens are used for the rest: same value, same gradient.

Deviations: attention logits, softmax and weighted sum accumulate in at least fp32 (``methods.qsd``; the authors' fp16
logits are unscaled and can overflow); tokens on another grid are resampled to the teacher's. Settings marked "ours" are
off by default; one of them, ``token``, replaces R_cls and T_cls for networks without a CLS token (``methods.masked``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from segdistill.methods.masked import MaskedDistillation, image_token
from segdistill.methods.qsd import QSDHead
from segdistill.ops import mean_over_hidden, resize_tokens
from segdistill.types import FeatureSpec, LossTerms, Views


class GKD(MaskedDistillation):
    """The three heads and their loss; see the module's docstring."""

    class Config(MaskedDistillation.Config):
        """Defaults are the authors'."""

        masked_only: bool = Field(False, description="patch term over hidden tokens only (as in Proteus)")
        scale: float | None = Field(
            None, gt=0, le=1e6, description="ours: factor on the attention logits; None: as published"
        )
        own_position_bias: float = Field(
            0.0, ge=0, le=1e6, description="ours: bias added to the logit of a token's own position"
        )
        own_position_anneal: float = Field(
            0.6, gt=0, le=1, description="ours: share of the stage over which that bias falls linearly to zero"
        )

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__(config, student, teacher)
        self.patch_head = QSDHead(*self.widths, scale=config.scale)
        self.fea_head = QSDHead(*self.widths, scale=config.scale)
        self.token_head = None if self.token_widths is None else QSDHead(*self.token_widths, scale=config.scale)
        self.progress = 0.0
        self._seen: tuple[Tensor, Tensor, float] | None = None

    def set_progress(self, fraction: float) -> None:
        """Set the completed share of the stage, from 0 to 1."""
        self.progress = float(fraction)

    def forward(self, student: Views, teacher: Views) -> LossTerms:
        """Weighted ``token``, ``feature`` and ``patch`` terms."""
        config = self.config
        tokens, to = teacher.plain.tokens[0].detach(), teacher.plain.grid
        plain = resize_tokens(student.plain.tokens[0], student.plain.grid, to)
        bias = config.own_position_bias * max(0.0, 1.0 - self.progress / config.own_position_anneal)
        terms: LossTerms = {}
        goal, own = tokens, None
        if self.token_head is not None:
            cls = image_token(teacher.plain, config.token).detach().unsqueeze(1)  # (B, 1, Dt)
            own = self.token_head(image_token(student.plain, config.token).unsqueeze(1), cls)
            terms["token"] = config.token_weight * F.mse_loss(own, cls)
            goal = torch.cat([cls, tokens], dim=1)
        plain_out = self.fea_head(plain, tokens, bias)
        self._seen = plain[:1].detach().clone(), tokens[:1].clone(), bias  # a view would keep the whole batch
        reconstructed = plain_out if own is None else torch.cat([own, plain_out], dim=1)
        terms["feature"] = config.feature_weight * F.mse_loss(reconstructed, goal)
        terms["patch"] = config.patch_weight * self._patch(student, plain, tokens, to, bias)
        return terms

    def _patch(
        self,
        student: Views,
        plain: Float[Tensor, "b n ds"],
        tokens: Float[Tensor, "b n dt"],
        to: tuple[int, int],
        bias: float,
    ) -> Float[Tensor, ""]:
        """The masked-view term, unweighted."""
        if student.masked is None or student.mask is None:
            if self.config.masked_only:  # a zero loss that still gives every parameter a gradient
                none = torch.zeros(plain.shape[:2], dtype=torch.bool, device=plain.device)
                return mean_over_hidden(self.patch_head(plain, tokens, bias).sum(dim=-1), none, to, to)
            return F.mse_loss(self.patch_head(plain, tokens, bias), tokens)
        samples = student.mask.samples.to(plain.device)
        masked = resize_tokens(student.masked.tokens[0], student.masked.grid, to)
        if not self.config.masked_only:
            view = plain.index_copy(0, samples, masked.to(plain.dtype))
            return F.mse_loss(self.patch_head(view, tokens, bias), tokens)
        target = tokens[samples]
        error = (self.patch_head(masked, target, bias) - target).square().mean(dim=-1)  # (M, N)
        return mean_over_hidden(error, student.mask.tokens, student.masked.grid, to)

    @property
    @torch.no_grad()
    def diagnostics(self) -> dict[str, Tensor]:
        """How much the plain-view head attends to its own position, and how peaked its logits are.

        Of the first image of the last step, with the head as it is now: nothing is computed unless it is asked for.
        """
        if self._seen is None:
            return {}
        student, teacher, bias = self._seen
        student = student.to(next(self.fea_head.parameters()).dtype)  # autocast, which gave it, may have ended
        attention, logits = self.fea_head.attention(student, teacher, bias)
        return {
            "own_position_share": attention.diagonal(dim1=1, dim2=2).mean(),
            "logit_std": logits.std(correction=0),
        }
