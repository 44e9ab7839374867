"""Base of GKD and Proteus: three weighted terms, one of them on a masked view.

GKD (arXiv 2603.02554) keeps the terms and masks of Proteus (arXiv 2407.10366) and changes the heads; spec A.4-A.5, B.6.

The setting ``token`` (ours) is for networks without a CLS token (ConvNeXt, MobileNet, SAM's ViT): "pooled" replaces the
CLS token by the mean of the patch tokens, in both networks; "none" uses patch tokens only.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from segdistill import config as base
from segdistill.config import UserError
from segdistill.types import Features, FeatureSpec, Needs

Token = Literal["cls", "pooled", "none"]


class TokenConfig(base.Config):
    """Settings of a method that compares one token per image besides the patch tokens."""

    token: Token = Field(
        "cls",
        description="the token that stands for the image: cls | pooled (ours: the mean of the patch tokens, in "
        "both networks) | none (ours); pooled and none work for networks without a CLS token",
    )


def token_widths(name: str, token: Token, student: FeatureSpec, teacher: FeatureSpec) -> tuple[int, int] | None:
    """Widths of the two networks' image tokens, None where ``token`` is "none".

    A :class:`UserError` for the method ``name`` where ``token`` is "cls" and a network has none.
    """
    if token == "none":
        return None
    if token == "pooled":
        return student.channels[-1], teacher.channels[-1]
    if student.cls_channels is None or teacher.cls_channels is None:
        both = student.cls_channels is None and teacher.cls_channels is None
        who = "student and teacher have" if both else f"the {'student' if teacher.cls_channels else 'teacher'} has"
        raise UserError(
            f"{name} distils the CLS token, and {who} none: set the method's token to 'pooled' (the mean of the patch "
            "tokens takes its place) or to 'none' (that term is left out), or choose networks that have one"
        )
    return student.cls_channels, teacher.cls_channels


def image_token(features: Features, token: Token) -> Float[Tensor, "b c"]:
    """The image's own token: the CLS token, or the mean of the patch tokens of the last tap."""
    assert token != "none"
    if token == "pooled":
        return features.tokens[-1].mean(dim=1)
    assert features.cls is not None, "checked when the method was built"
    return features.cls


class MaskedDistillation(nn.Module):
    """Base of a method with the terms ``token`` (the image's), ``feature`` (plain view) and ``patch`` (masked view)."""

    needs = Needs(masked=True)

    class Config(TokenConfig):
        """Defaults are the authors' of both papers."""

        token_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the token term (GKD: gamma)")
        feature_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the plain-view term (GKD: alpha)")
        patch_weight: float = Field(1.0, ge=0, le=1e6, description="weight of the masked-view term (GKD: beta)")
        mask_probability: float = Field(0.5, ge=0, le=1, description="share of the samples with hidden tokens")
        mask_ratio: float = Field(0.5, ge=0, le=1, description="share of the tokens hidden in such a sample")
        mask_first: bool = Field(True, description="mask the first samples of the (shuffled) batch, else random ones")

    def __init__(self, config: Config, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        self.config: Any = config  # of the method's own class
        self.widths = student.channels[0], teacher.channels[0]
        self.token_widths = token_widths(type(self).__name__.lower(), config.token, student, teacher)

    @staticmethod
    def needs_for(config: Config) -> Needs:
        """The masked view, whatever the settings; ``mask_probability=0`` makes it empty."""
        return MaskedDistillation.needs

    def mask_settings(self) -> dict[str, float | bool]:
        """Keyword arguments for :func:`segdistill.ops.random_mask`."""
        config = self.config
        return {"probability": config.mask_probability, "ratio": config.mask_ratio, "first": config.mask_first}
