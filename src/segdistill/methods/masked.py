"""What GKD and Proteus share: three weighted terms, one of them on a masked view, and who is masked; no method itself.

GKD (arXiv 2603.02554) keeps the terms and masks of Proteus (arXiv 2407.10366) and changes the heads; spec A.4-A.5, B.6.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from segdistill import config as base
from segdistill.config import UserError
from segdistill.types import FeatureSpec, Needs


class MaskedDistillation(nn.Module):
    """Base of a method with the terms ``token`` (CLS), ``feature`` (plain view) and ``patch`` (masked view)."""

    needs = Needs(masked=True)

    class Config(base.Config):
        """Defaults are the authors' of both papers."""

        token_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the CLS term (GKD: gamma)")
        feature_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the plain-view term (GKD: alpha)")
        patch_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the masked-view term (GKD: beta)")
        mask_probability: float = Field(0.5, ge=0, le=1, description="share of the samples with hidden tokens")
        mask_ratio: float = Field(0.5, ge=0, le=1, description="share of the tokens hidden in such a sample")
        mask_first: bool = Field(True, description="hide in the first samples of the (shuffled) batch, else in random")

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        if student.cls_channels is None or teacher.cls_channels is None:
            name = type(self).__name__.lower()
            raise UserError(f"{name} distils the CLS token: choose a student and a teacher that have one")
        self.config: Any = config  # of the method's own class
        self.widths = student.channels[0], teacher.channels[0]
        self.cls_widths = student.cls_channels, teacher.cls_channels

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The masked view, whatever the settings; ``mask_probability=0`` makes it empty."""
        return MaskedDistillation.needs

    def mask_settings(self) -> dict[str, float | bool]:
        """Keyword arguments for :func:`segdistill.ops.random_mask`."""
        config = self.config
        return {"probability": config.mask_probability, "ratio": config.mask_ratio, "first": config.mask_first}
