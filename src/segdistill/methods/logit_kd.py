"""Knowledge distillation of class logits, pixel by pixel.

Paper: "Distilling the Knowledge in a Neural Network", 2015 (arXiv 1503.02531), carried from images to pixels as the
segmentation papers do (Af-DCD's L_kd, spec B.3). For the logits z (B, K, h, w) of student S and teacher T:

    L = weight tau^2 / (B h w) sum_{b, pixels} KL( softmax_k( z_T / tau ) || softmax_k( z_S / tau ) )

The logits are those of both heads before upsampling, at the teacher's size; no pixel is ignored, since the teacher
has a word on each. The defaults are Af-DCD's (tau 1, weight 1). In GKD's comparison "vanilla KD" is not this loss but
feature MSE (spec B.1), so no row of its tables is this one.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from segdistill import config as base
from segdistill.methods.kl import pixel_kl
from segdistill.types import FeatureSpec, LossTerms, Needs, Views


class LogitKD(nn.Module):
    """A divergence per pixel, without parameters; see the module's text."""

    needs = Needs(taps=(), logits=True)

    class Config(base.Config):
        """Defaults as in Af-DCD's pixel term."""

        weight: float = Field(1.0, ge=0, le=1e6, description="weight of the term")
        tau: float = Field(1.0, ge=1e-3, le=1e6, description="temperature of the softmax over the classes of a pixel")

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        del student, teacher  # nothing to adapt: both speak of the same classes
        self.config = config

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The logits, whatever the settings."""
        return LogitKD.needs

    def forward(self, student: Views, teacher: Views) -> LossTerms:
        """The weighted ``pixel`` term."""
        assert student.logits is not None
        assert teacher.logits is not None
        return {"pixel": self.config.weight * pixel_kl(student.logits, teacher.logits, self.config.tau)}
