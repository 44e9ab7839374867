"""Channel-wise distillation: matches where in the image each channel is active.

Paper: "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021 (arXiv 2011.13256); checked
against three public implementations, which agree (spec B.2). For maps y (B, C, h, w) of student S and teacher T:

    p = softmax_{hw}( y_c / tau )                           one distribution over the pixels of each channel
    L = weight tau^2 / (B C) sum_{b, c} KL( p_T || p_S )

Two forms, chosen by ``maps``. ``features``: y_S is a 1x1 convolution Ds -> Dt of the final-norm patch tokens as maps,
y_T are the teacher's. How GKD's comparison applies CWD to ViTs is not known; this is the fairest interpretation (spec
B). The convolution has no bias, which the softmax would cancel; the authors' batch norm and ReLU after it, made for
CNNs, are omitted. Tokens on another grid are resampled to the teacher's. ``logits``: y are the heads' class logits
before upsampling, the channels are the classes, and there is no adapter. ``form: cross_entropy`` is G2SD's variant,
which adds the teacher's entropy, a constant.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from segdistill import config as base
from segdistill.methods.kl import channel_cross_entropy, channel_kl, class_scores
from segdistill.ops import resize_tokens, tokens_to_map
from segdistill.types import FeatureSpec, LossTerms, Needs, Views

FORMS = {"kl": channel_kl, "cross_entropy": channel_cross_entropy}


class CWD(nn.Module):
    """The adapter of the feature form, and the divergence per channel; see the module's docstring."""

    needs = Needs()

    class Config(base.Config):
        """Weight and temperature are the authors' for logits; for features they are not published."""

        maps: Literal["features", "logits"] = Field("features", description="what is compared: tokens or class logits")
        weight: float = Field(3.0, ge=0, le=1e6, description="weight of the term")
        tau: float = Field(4.0, ge=1e-3, le=1e3, description="temperature of the softmax over the pixels of a channel")
        form: Literal["kl", "cross_entropy"] = Field("kl", description="cross_entropy: as in G2SD; same gradient")

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.needs = self.needs_for(config)
        self.adapter: nn.Module | None = None
        if config.maps == "features":
            self.adapter = nn.Conv2d(student.channels[0], teacher.channels[0], 1, bias=False)

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The final-norm tokens, or the logits alone."""
        return Needs() if config.maps == "features" else Needs(taps=(), logits=True)

    def forward(self, student: Views, teacher: Views) -> LossTerms:
        """The weighted ``channel`` term."""
        ours, target = self._maps(student, teacher)
        config = self.config
        return {"channel": config.weight * FORMS[config.form](ours, target, config.tau)}

    def _maps(self, student: Views, teacher: Views) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        if self.adapter is None:
            return class_scores(student, teacher)
        grid = teacher.plain.grid
        tokens = resize_tokens(student.plain.tokens[0], student.plain.grid, grid)
        return self.adapter(tokens_to_map(tokens, grid)), tokens_to_map(teacher.plain.tokens[0], grid)
