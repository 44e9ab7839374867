"""TLDR: Kim et al., Texture Learning Domain Randomization for Domain Generalized Segmentation
(ICCV 2023, arXiv 2303.11546).

x: the image, x': the image in the style of a style image r. G_l = F_l F_l^T / (H W): Gram matrix of the head's tap l
with C_l channels, G_l^start that of the frozen encoder as it was when the stage began (the paper: ImageNet's weights).

    L = original CE(x) + stylised CE(x')
      + (1 - t) sum_l u_l || G_l(x) - G_l^start(x) ||_F / C_l                       texture regularisation
      + (1 - t) sum_l v_l || M_l (G_l(r) - G_l(x')) ||_F / C_l                      texture generalisation
        M_l = [ G_l(x') - G_l(x) > threshold ]

t is the completed share of the stage; the norm is over the Gram matrices of the whole batch. Deviations: the authors
stylise with PhotoWCT on VGG's features; here the stylisation is :mod:`segdistill.generalize.wct`, which needs no
weights. Style images are normalised by the encoder like all others (the authors' code leaves that out). Our
interpretation: r goes through the trained encoder, and its Gram matrix is a constant. x and x' go through the head in
separate passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from segdistill import config as base
from segdistill.config import UserError
from segdistill.generalize.base import Facts, Generalizer, Loss, Seen, Wants
from segdistill.generalize.wct import transfer
from segdistill.ops import full_precision
from segdistill.processes import rank_and_size, total
from segdistill.types import LossTerms

Weight = Annotated[float, Field(ge=0, le=1e6)]


class TLDR(Generalizer):
    """Stylised images and two losses on Gram matrices; see the module's text."""

    views: int = 2
    passes: int = 3  # both views and the style image

    class Config(base.Config):
        """The authors' values; with ResNet-101 ``original`` is 0.1 and ``stylised`` 0.9."""

        original: float = Field(0.5, ge=0, le=1e6, description="weight of the task loss of the image")
        stylised: float = Field(0.5, ge=0, le=1e6, description="weight of the task loss of the stylised image")
        regularisation: tuple[Weight, ...] = Field(
            (5e-3, 5e-4, 5e-5, 5e-6),
            min_length=1,
            description="weight of the texture regularisation of each tap, shallow to deep",
        )
        generalisation: tuple[Weight, ...] = Field(
            (5e-3, 5e-4), min_length=1, description="weight of the texture generalisation of the first taps"
        )
        threshold: float = Field(0.1, ge=0, le=1e6, description="least growth of a Gram entry that counts as style")
        block: int = Field(4, ge=1, le=16, description="side of the blocks whose statistics are transferred, pixels")

    wants: ClassVar[Wants] = Wants(reference=True, styles=True)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config, taps = config, len(facts.channels)
        for name in ("regularisation", "generalisation"):
            if len(getattr(config, name)) > taps:
                raise UserError(f"tldr: {name} has {len(getattr(config, name))} weights, the head reads {taps} taps")

    def weights(self) -> tuple[float, ...]:
        """Of the two task losses."""
        return self.config.original, self.config.stylised

    def restyle(
        self, images: Float[Tensor, "b 3 h w"], styles: Float[Tensor, "b 3 h w"] | None, loss: Loss
    ) -> Float[Tensor, "b 3 h w"]:
        """x'."""
        del loss
        assert styles is not None
        with full_precision(images):
            return transfer(images, styles, self.config.block)

    def terms(self, seen: Seen) -> LossTerms:
        """Weighted ``texture_regularisation`` and ``texture_generalisation`` terms."""
        with full_precision(seen.labels):
            return self._terms(seen)

    def _terms(self, seen: Seen) -> LossTerms:
        assert seen.reference is not None and seen.styles is not None
        count, left, config = len(seen.labels), 1 - seen.progress, self.config
        start = [gram(tokens.float()) for tokens in seen.reference.tokens[: len(config.regularisation)]]
        style = [gram(tokens.float()) for tokens in seen.styles.tokens[: len(config.generalisation)]]
        own = [
            gram(tokens.float() if level < len(style) else tokens[:count].float())  # x', too, where it is compared
            for level, tokens in enumerate(seen.features.tokens[: max(len(start), len(style))])
        ]
        kept = [gram_distance(ours[:count], first.detach()) for ours, first in zip(own, start, strict=False)]
        widened = [
            gram_distance(ours[count:], drawn.detach(), gained(ours[count:], ours[:count], config.threshold))
            for ours, drawn in zip(own, style, strict=False)
        ]
        return {
            "texture_regularisation": left * _weighted(config.regularisation, kept),
            "texture_generalisation": left * _weighted(config.generalisation, widened),
        }


def gram(tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b c c"]:
    """F F^T / (H W) of every image."""
    return tokens.transpose(1, 2) @ tokens / tokens.shape[1]


def gained(new: Float[Tensor, "b c c"], old: Float[Tensor, "b c c"], threshold: float) -> Bool[Tensor, "b c c"]:
    """M: the entries that the stylisation raised by more than ``threshold``."""
    return (new - old).detach() > threshold


def gram_distance(
    own: Float[Tensor, "b c c"], other: Float[Tensor, "b c c"], mask: Bool[Tensor, "b c c"] | None = None
) -> Float[Tensor, ""]:
    """Frobenius norm of the difference of all images (of a micro-batch) of all processes, over the channels.

    Its gradient at 0 is 0.
    """
    difference = own - other if mask is None else (own - other) * mask
    norm, size = torch.linalg.vector_norm(difference), rank_and_size()[1]
    if size > 1:  # the gradient of the norm over all processes, which DDP averages
        whole = total(norm.square()).sqrt()
        own_part = size * difference.square().sum() / (2 * whole.clamp(min=1e-12))
        norm = whole + own_part - own_part.detach()
    return norm / own.shape[-1]


def _weighted(weights: Sequence[float], values: Sequence[Tensor]) -> Float[Tensor, ""]:
    return torch.stack([weight * value for weight, value in zip(weights, values, strict=True)]).sum()
