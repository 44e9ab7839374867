"""ViTKD: mimic the teacher's shallow blocks, generate its last block from half of the student's tokens.

Paper: "ViTKD: Feature-based Knowledge Distillation for Vision Transformers" (Yang et al., CVPR workshops 2024, arXiv
2209.02432; spec B.5). For patch tokens S_l (B, N, Ds) and T_l (B, N, Dt) of the blocks l = 0, 1 (raw outputs) and of
the last one (after the final norm), fc a Linear(Ds -> Dt) each, M the hidden tokens and e a learnt token:

    mimic    = alpha / B             sum_{l = 0, 1} || fc_l(S_l) - T_l ||^2
    generate = beta / (lambda B)     sum_{i in M} || G( fc(S) with e at M )_i - T_i ||^2
    G        = conv3x3, ReLU, conv3x3 on the token grid; M is drawn anew for each sample, a share lambda of its tokens

alpha = 3e-5, beta = 3e-6, lambda = 0.5, as published. Both terms are *sums* over tokens and channels: the published
weights are for N = 196 and have to be retuned for other grids and widths. Networks of equal width have no fc, as
published. The CLS token and the logit term of the classification recipes are omitted.

Ours: grids need not be square; student tokens on another grid are resampled (bilinearly) to the teacher's before fc;
squared errors are summed in at least fp32.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from segdistill import config as base
from segdistill.ops import map_to_tokens, resize_tokens, tokens_to_map
from segdistill.processes import rand
from segdistill.types import FeatureSpec, LossTerms, Needs, Views


class ViTKD(nn.Module):
    """The projections, the mask token and the generator; see the module's docstring."""

    needs = Needs(taps=(0, 1, -1))

    class Config(base.Config):
        """Defaults are the authors'."""

        mimic_weight: float = Field(
            3e-5, ge=0, le=1e6, description="weight of the summed error of blocks 0 and 1 (alpha)"
        )
        generate_weight: float = Field(
            3e-6, ge=0, le=1e6, description="weight of the summed error of the last block (beta)"
        )
        drop: float = Field(0.5, gt=0, le=1, description="share of the last block's tokens to be generated (lambda)")

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        *shallow, deep = map(_projection, student.channels, teacher.channels)
        width = teacher.channels[-1]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mimics = nn.ModuleList(shallow)
        self.align = deep
        self.generator = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The first two blocks and the last, whatever the settings."""
        return ViTKD.needs

    def forward(self, student: Views, teacher: Views, noise: Float[Tensor, "b n"] | None = None) -> LossTerms:
        """Weighted ``mimic`` and ``generate`` terms.

        ``noise`` ranks the teacher's tokens: those with the largest values in each sample are hidden. By default it is
        drawn from torch's global generator (:func:`segdistill.processes.rand`).
        """
        config, ours, theirs = self.config, student.plain, teacher.plain
        targets = [tokens.detach() for tokens in theirs.tokens]
        sources = list(map(resize_tokens, ours.tokens, ours.grids, theirs.grids))
        batch, count, _ = targets[-1].shape
        shallow = zip(self.mimics, sources[:-1], targets[:-1], strict=True)
        mimic = torch.stack([_errors(mimic(source), target).sum() for mimic, source, target in shallow]).sum()

        hidden = hide(rand(batch, count) if noise is None else noise, config.drop).to(targets[-1].device)
        errors = _errors(self.generate(sources[-1], hidden, theirs.grids[-1]), targets[-1])  # (B, N)
        return {
            "mimic": config.mimic_weight / batch * mimic,
            "generate": config.generate_weight / config.drop / batch * (errors * hidden).sum(),
        }

    def generate(
        self, tokens: Float[Tensor, "b n ds"], hidden: Bool[Tensor, "b n"], grid: tuple[int, int]
    ) -> Float[Tensor, "b n dt"]:
        """The teacher's last tokens, predicted from the student's tokens that are not ``hidden``."""
        aligned = self.align(tokens)
        visible = torch.where(hidden.unsqueeze(-1), self.mask_token.to(aligned.dtype), aligned)
        return map_to_tokens(self.generator(tokens_to_map(visible, grid)))


def hide(noise: Float[Tensor, "b n"], drop: float) -> Bool[Tensor, "b n"]:
    """True for all but the ``int(n (1 - drop))`` smallest values of each row (the rounding of MAE's masking)."""
    order = noise.argsort(dim=1)
    kept = int(noise.shape[1] * (1 - drop))
    return torch.ones_like(noise, dtype=torch.bool).scatter_(1, order[:, :kept], False)


def _projection(student: int, teacher: int) -> nn.Module:
    return nn.Identity() if student == teacher else nn.Linear(student, teacher)


def _errors(output: Float[Tensor, "b n c"], target: Float[Tensor, "b n c"]) -> Float[Tensor, "b n"]:
    """Squared error of each token, summed over its channels."""
    precision = torch.promote_types(output.dtype, torch.float32)
    return (output.to(precision) - target.to(precision)).square().sum(dim=-1)
