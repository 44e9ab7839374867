"""Knowledge distillation of class logits, pixel by pixel.

Paper: "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), applied per pixel as in
segmentation papers (Af-DCD's L_kd, spec B.3). For the logits z (B, K, h, w) of student S and teacher T:

    L = weight tau^2 / (B h w) sum_{b, pixels} KL( softmax_k( z_T / tau ) || softmax_k( z_S / tau ) )

The logits are those of both heads before upsampling, at the teacher's size. No pixel is ignored, since the teacher
predicts every pixel. The defaults are Af-DCD's (tau 1, weight 1). "Vanilla KD" in GKD's comparison is feature MSE
(spec B.1), not this loss; no row of its tables uses this loss.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from segdistill import config as base
from segdistill.methods.kl import class_scores, pixel_kl
from segdistill.types import FeatureSpec, LossTerms, Needs, Views


class LogitKD(nn.Module):
    """A divergence per pixel, without parameters; see the module's docstring."""

    needs = Needs(taps=(), logits=True)

    class Config(base.Config):
        """Defaults as in Af-DCD's pixel term."""

        weight: float = Field(1.0, ge=0, le=1e6, description="weight of the term")
        tau: float = Field(1.0, ge=1e-3, le=1e6, description="temperature of the softmax over the classes of a pixel")

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        del student, teacher  # nothing to adapt: both have the same classes
        self.config = config

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The logits, whatever the settings."""
        return LogitKD.needs

    def forward(self, student: Views, teacher: Views) -> LossTerms:
        """The weighted ``pixel`` term."""
        return {"pixel": self.config.weight * pixel_kl(*class_scores(student, teacher), self.config.tau)}
