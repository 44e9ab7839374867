"""Heir: relative feature distillation plus the teacher's class scores, on labelled and unlabelled images alike. Ours.

    L = feature_weight 1/C sum_c  E[ (adapter(S)_c - T_c)^2 ] / Var[ T_c ]       over the tokens of the batch
      + class_weight tau^2 E_pixels KL( softmax( z_T / tau ) || softmax( z_S / tau ) )

The first term is :mod:`segdistill.methods.mse` with ``relative``, the second :mod:`segdistill.methods.logit_kd`. Why
both: the first asks for everything that the teacher knows, which a small network learns slowly; the second asks only
for what the task needs of it, also on images without labels, where it acts like soft pseudo-labels. Meant for a task
stage with ``proxy`` images, after an ``inherit`` stage (:mod:`segdistill.encoders.inherit`) if both networks are plain
ViTs. Defaults: weight 1 each, which is the share of variance left unexplained, at most about 1, and nats per pixel.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from torch import nn

from segdistill import config as base
from segdistill.methods.kl import class_scores, pixel_kl
from segdistill.methods.mse import MSE, Taps, check_pairs
from segdistill.types import FeatureSpec, LossTerms, Needs, Views


class Heir(nn.Module):
    """Adapters of the feature term; see the module's docstring."""

    needs = Needs(logits=True)

    class Config(base.Config):
        """Ours."""

        feature_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the feature term")
        class_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the divergence per pixel")
        tau: float = Field(1.0, ge=1e-3, le=1e6, description="temperature of the softmax over the classes of a pixel")
        taps: Taps = Field(
            (-1,), min_length=1, max_length=100, description="the student's blocks; -1: final-norm tokens"
        )
        teacher_taps: Taps | None = Field(
            None, min_length=1, max_length=100, description="the teacher's blocks; None: those of taps"
        )

        @model_validator(mode="after")
        def _pairs(self) -> Heir.Config:
            check_pairs("heir", self.taps, self.teacher_taps)
            return self

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        self.config = config
        self.needs = self.needs_for(config)
        features = MSE.Config(
            weight=config.feature_weight, relative=True, taps=config.taps, teacher_taps=config.teacher_taps
        )
        self.features = MSE(features, student, teacher)

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The configured taps and the logits."""
        return Needs(taps=config.taps, teacher_taps=config.teacher_taps, logits=True)

    def forward(self, student: Views, teacher: Views) -> LossTerms:
        """The weighted ``feature`` and ``pixel`` terms."""
        pixel = self.config.class_weight * pixel_kl(*class_scores(student, teacher), self.config.tau)
        return self.features(student, teacher) | {"pixel": pixel}
