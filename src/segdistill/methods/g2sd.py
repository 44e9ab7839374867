"""G2SD: reconstruct the teacher's tokens from a masked image; then match its class scores while learning from labels.

Paper: "Generic-to-Specific Distillation of Masked Autoencoders", CVPR 2023 (arXiv 2302.14771); checked against the
authors' code (spec B.4). The setting ``phase`` selects one of two:

generic (for ``distill`` stages), three quarters of the tokens hidden in every sample, a decoder D of small transformer
blocks with a mask token m of its own:

    X       = [W CLS_s, W S_i where i is visible, m where i is hidden] + positions          (B, 1 + N, 256)
    generic = smooth-L1( MLP(D(X)), LN(T'), beta 2 )    mean over B (1 + N) Dt elements: CLS, visible and hidden tokens;
                                                        LN without affine parameters, eps 1e-6

specific (for ``task`` stages), on class scores y (B, K, h, w) of both networks:

    specific = 3 CE( softmax_hw(y_t / tau), softmax_hw(y_s / tau) ) tau^2       mean over images and classes, tau 1

For a teacher without a masked autoencoder's decoder, T' is not defined by the paper. Ours: the teacher's final-norm CLS
and patch tokens of the *unmasked* image; the authors take the hidden states of the fourth block of their teacher's
decoder, which sees the same mask. Deviations: at hidden positions the student's encoder sees mask tokens (as in BEiT),
theirs drops them; in both cases the decoder ignores these positions. The MLP's inner width is twice the decoder's
(theirs: 512, which is also the width of their targets). Predictions on another grid are resampled to the teacher's. The
authors' second term, on the encoder's own tokens, has weight 0 and is omitted. For networks without a CLS token the
setting ``token: pooled`` uses the mean of the student's *visible* tokens and of all tokens of the teacher.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from segdistill.methods.kl import channel_cross_entropy, class_scores
from segdistill.methods.masked import TokenConfig, image_token, token_widths
from segdistill.ops import resize_tokens
from segdistill.types import FeatureSpec, LossTerms, Needs, Views


class TokenDecoder(nn.Module):
    """Pre-norm transformer blocks (MLP ratio 4) that predict ``outputs`` channels for CLS and every token of a grid.

    Initialised like masked autoencoders: Xavier-uniform weights, zero biases, a mask token of small random values.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        ))  # fmt: skip
        self.predict = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, outputs))
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        cls: Float[Tensor, "b ds"] | None,
        tokens: Float[Tensor, "b n ds"],
        hidden: Bool[Tensor, "b n"],
        grid: tuple[int, int],
    ) -> Float[Tensor, "b n1 dt"]:
        """Predictions for [CLS, tokens], n1 = 1 + n; without CLS for the tokens, n1 = n.

        The values of ``hidden`` tokens are not used.
        """
        patches = torch.where(hidden.unsqueeze(-1), self.mask_token, self.embed(tokens))
        patches = patches + positions(grid, patches.shape[-1]).to(patches)
        if cls is not None:  # position 0
            patches = torch.cat([self.embed(cls).unsqueeze(1).to(patches.dtype), patches], dim=1)
        return self.predict(self.blocks(patches))


class G2SD(nn.Module):
    """The term of one of the two phases; see the module's docstring."""

    needs = Needs(plain=False, masked=True)

    class Config(TokenConfig):
        """Defaults are the authors' (specific: those of their segmentation script)."""

        phase: Literal["generic", "specific"] = Field("generic", description="generic: distill stages; specific: task")
        generic_weight: float = Field(1.0, ge=0, le=1e6, description="generic: weight of the term")
        mask_ratio: float = Field(0.75, ge=0, lt=1, description="generic: share of the tokens hidden in every sample")
        decoder_width: int = Field(256, ge=4, le=8192, description="generic: channels of the decoder, a multiple of 4")
        decoder_depth: int = Field(4, ge=1, le=100, description="generic: blocks of the decoder")
        decoder_heads: int = Field(
            8, ge=1, le=8192, description="generic: attention heads of the decoder; divide its channels"
        )
        beta: float = Field(2.0, gt=0, le=1e6, description="generic: error at which smooth-L1 becomes linear")
        specific_weight: float = Field(3.0, ge=0, le=1e6, description="specific: weight of the term")
        tau: float = Field(1.0, ge=1e-3, le=1e3, description="specific: temperature of the softmax over pixels")

        @model_validator(mode="after")
        def _widths(self) -> G2SD.Config:
            if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
                raise ValueError(
                    f"decoder_width {self.decoder_width} must be a multiple of 4 (sine and cosine of two axes) "
                    f"and of decoder_heads {self.decoder_heads}"
                )
            return self

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.needs = self.needs_for(config)
        self.decoder: TokenDecoder | None = None
        if config.phase == "generic":
            token_widths("g2sd", config.token, student, teacher)
            self.decoder = TokenDecoder(
                student.channels[0],
                teacher.channels[0],
                width=config.decoder_width,
                depth=config.decoder_depth,
                heads=config.decoder_heads,
            )

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """Generic: only the masked view; specific: only class scores."""
        return G2SD.needs if config.phase == "generic" else Needs(taps=(), logits=True)

    def mask_settings(self) -> dict[str, float | bool]:
        """Keyword arguments for :func:`segdistill.ops.random_mask`: every sample is masked."""
        return {"probability": 1.0, "ratio": self.config.mask_ratio}

    def forward(self, student: Views, teacher: Views) -> LossTerms:
        """The weighted ``generic`` or ``specific`` term."""
        config = self.config
        if self.decoder is not None:
            return {"generic": config.generic_weight * self._generic(self.decoder, student, teacher)}
        error = channel_cross_entropy(*class_scores(student, teacher), config.tau)
        return {"specific": config.specific_weight * error}

    def _generic(self, decoder: TokenDecoder, student: Views, teacher: Views) -> Float[Tensor, ""]:
        """Smooth-L1 between the decoder's predictions and the normalised teacher tokens, unweighted."""
        view, mask, goal, kind = student.masked, student.mask, teacher.plain, self.config.token
        assert view is not None
        assert mask is not None
        tokens, target, own = view.tokens[0], goal.tokens[0], None
        samples, hidden = mask.samples.to(target.device), mask.tokens.to(tokens.device)
        target = target[samples]
        if kind != "none":
            own = mean_of_visible(tokens, hidden) if kind == "pooled" else image_token(view, kind)
            target = torch.cat([image_token(goal, kind)[samples].unsqueeze(1), target], dim=1)  # (M, 1 + N, Dt)
        target = target.detach().to(torch.promote_types(target.dtype, torch.float32))
        target = F.layer_norm(target, target.shape[-1:], eps=1e-6)
        predicted = decoder(own, tokens, hidden, view.grid).to(target.dtype)
        first = predicted.shape[1] - tokens.shape[1]  # the CLS token, or nothing
        patches = resize_tokens(predicted[:, first:], view.grid, goal.grid)
        return F.smooth_l1_loss(torch.cat([predicted[:, :first], patches], dim=1), target, beta=self.config.beta)


def mean_of_visible(tokens: Float[Tensor, "b n c"], hidden: Bool[Tensor, "b n"]) -> Float[Tensor, "b c"]:
    """The mean of the tokens that are not ``hidden``."""
    shown = (~hidden).unsqueeze(-1).to(tokens.dtype)
    return (tokens * shown).sum(dim=1) / shown.sum(dim=1).clamp(min=1)


@cache
def positions(grid: tuple[int, int], width: int) -> Float[Tensor, "n c"]:
    """Fixed sine-cosine positions of a grid's tokens, row by row: the first half of the channels encodes the token's
    column, the second half its row, as in masked autoencoders.

    Each half: sines, then cosines, of the coordinate times ``10000 ** (-k / (width / 4))`` (the same).
    """
    bands = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side, device="cpu") for side in grid), indexing="ij")
    coordinates = torch.stack([columns, rows]).flatten(1)
    angles = coordinates.T.unsqueeze(-1) * bands  # (N, 2, width / 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)
