"""AdvStyle: Zhong et al., Adversarial Style Augmentation for Domain Generalized Urban-Scene Segmentation, NeurIPS 2022.

Per image and RGB channel, with mu and sigma = sqrt(unbiased variance + 1e-5) over the pixels:

    x_n = (x - mu) / sigma
    mu' = mu + gamma dL/dmu,   sigma' = sigma + gamma dL/dsigma         one ascent step on the task loss L
    x' = clamp(x_n sigma' + mu', 0, 1)                                  constant; the head learns from x and x'

The ascent runs with the network in evaluation mode, so batch norms keep their statistics, and differentiates with
respect to mu and sigma alone, so no gradient reaches the network's parameters. Under fp16 autocast it runs in full
precision. Our interpretation: gamma is not established (re-implementations: 1.0 and 3.0); here it applies to pixels in
[0, 1].
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from segdistill import config as base
from segdistill.generalize.base import Facts, Generalizer, Loss
from segdistill.ops import full_precision
from segdistill.processes import share

EPS = 1e-5


class AdvStyle(Generalizer):
    """A second view of every image in the style that raises the loss; see the module's text."""

    views: int = 2
    passes: int = 3  # the ascent and both views

    class Config(base.Config):
        """``step``: gamma."""

        step: float = Field(1.0, gt=0, le=1e6, description="size of the ascent step, for pixels in [0, 1]")

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        del facts
        self.config = config

    def restyle(
        self, images: Float[Tensor, "b 3 h w"], styles: Float[Tensor, "b 3 h w"] | None, loss: Loss
    ) -> Float[Tensor, "b 3 h w"]:
        """x', clamped."""
        del styles
        return ascended(images, self.config.step, loss).clamp(0, 1)


def ascended(images: Float[Tensor, "b 3 h w"], step: float, loss: Loss) -> Float[Tensor, "b 3 h w"]:
    """x' before it is clamped, detached."""
    mean, std = statistics(images.detach())
    flat = (images.detach() - mean) / std
    mean, std = mean.requires_grad_(), std.requires_grad_()
    half = torch.is_autocast_enabled(images.device.type) and torch.get_autocast_dtype(images.device.type) is torch.half
    with torch.enable_grad(), full_precision(images) if half else nullcontext():
        value = loss(flat * std + mean)
    slopes = torch.autograd.grad(value, (mean, std))
    own = step / share()[1]  # the loss of a share counts its images as often as there are shares
    return (flat * (std + own * slopes[1]) + mean + own * slopes[0]).detach()


def statistics(images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b c 1 1"], Float[Tensor, "b c 1 1"]]:
    """mu and sigma."""
    variance, mean = torch.var_mean(images, dim=(2, 3), keepdim=True)
    return mean, (variance + EPS).sqrt()
