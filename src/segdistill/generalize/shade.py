"""SHADE: Zhao et al., Style-Hallucinated Dual Consistency Learning for Domain Generalized Semantic Segmentation
(ECCV 2022, arXiv 2204.02548).

Style hallucination, per image on the early map e with channel mean m and standard deviation s (both constant):

    e' = (e - m) / s * (w S) + (w M)         w ~ Dirichlet(1 / K, ..., 1 / K),  (M, S): K prototypes (mean, std)

Prototypes are the farthest points among the styles (mean, sqrt(var + 1e-7)) of all source images, from a random one on;
they are collected before the first step and again every ``every`` steps, until ``until`` of the stage. The head learns
from x and x' together. With class probabilities p and p' and their mean q, clamped to at least 1e-7:

    L = consistency * mean over pixels of (KL(p || q) + KL(p' || q)) / 2
      + retrospection * mean over thing cells of mean_c (F(x) - F_start(x))^2          both views, deepest tap

F_start: the frozen encoder as it was when the stage began (ImageNet's weights in the paper) on the image itself. Cells:
see :mod:`segdistill.generalize.things`. Our interpretation: the authors collect every three epochs, DAFormer's code
every 4,000 steps (our default); the network is in evaluation mode meanwhile; probabilities are those of the head's
logits before upsampling; variances are unbiased. The auxiliary loss of DeepLabV3+ belongs to the head.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from segdistill.config import UserError
from segdistill.generalize.base import Facts, Generalizer, Seen, Wants
from segdistill.generalize.things import ThingsConfig, inside, thing_classes, thing_distance
from segdistill.ops import full_precision
from segdistill.processes import own_rows, share
from segdistill.types import LossTerms

EPS = 1e-7


class Shade(Generalizer):
    """Style hallucination and its two losses; see the module's text."""

    views: int = 2
    passes: int = 2
    prototypes: Tensor

    class Config(ThingsConfig):
        """The authors' values."""

        prototypes: int = Field(64, ge=1, le=4096, description="styles that are mixed")
        concentration: float | None = Field(
            None, gt=0, le=1e6, description="of the Dirichlet distribution; None: 1 / prototypes"
        )
        every: int = Field(4000, ge=1, le=10**8, description="steps between two collections of prototypes")
        until: float = Field(0.95, ge=0, le=1, description="share of the stage after which none is collected")
        consistency: float = Field(10.0, ge=0, le=1e6, description="weight of the style consistency")
        retrospection: float = Field(1.0, ge=0, le=1e6, description="weight of the distance to the start features")

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        assert facts.stem_channels is not None
        self.config = config
        self.things = thing_classes(config, facts.names) if config.retrospection else ()
        self.register_buffer("prototypes", torch.zeros(config.prototypes, 2 * facts.stem_channels))

    @classmethod
    def wants_for(cls, config: Config) -> Wants:
        """The early map, and what its two losses read if they have a weight."""
        return Wants(stem=True, reference=config.retrospection > 0, logits=config.consistency > 0)

    def due(self, step: int, steps: int) -> bool:
        """Before the first step, and every so many steps until the end is near."""
        return step == 0 or (step % self.config.every == 0 and step <= self.config.until * steps)

    def style_of(self, early: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Channel means and deviations, in float32."""
        return style_of(early.float())

    def renew(self, styles: Float[Tensor, "n d"]) -> None:
        """Choose the prototypes among the styles; draws the first one from torch's global generator."""
        first = int(torch.randint(len(styles), ()).item())
        self.prototypes.copy_(styles[farthest_points(styles, self.config.prototypes, first)])

    def least(self) -> int:
        """As many as there are prototypes."""
        return self.config.prototypes

    def alter(self, early: Float[Tensor, "b c h w"]) -> Float[Tensor, "n c h w"]:
        """e and e', with other weights in every call."""
        count, most = len(self.prototypes), len(early) * share()[1]
        concentration = torch.full((most, count), self.config.concentration or 1 / count, dtype=torch.float64)
        weights = own_rows(torch.distributions.Dirichlet(concentration).sample())  # on the CPU, for every device
        styles = weights.to(early.device, torch.float32) @ self.prototypes.float()
        with full_precision(early):
            return torch.cat([early, restyled(early.float(), styles).to(early.dtype)])

    def terms(self, seen: Seen) -> LossTerms:
        """Weighted ``consistency`` and ``retrospection`` terms; one of weight 0 is left out."""
        terms, config = {}, self.config
        with full_precision(seen.labels):
            if config.consistency:
                assert seen.logits is not None
                terms["consistency"] = config.consistency * consistency(seen.logits.float())
            if config.retrospection:
                assert seen.reference is not None
                shown = partial(inside, seen.labels, ratio=config.ratio, classes=self.things)
                distance = thing_distance(seen.features, seen.reference, shown, mean_squares)
                terms["retrospection"] = config.retrospection * distance
        return terms


def style_of(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
    """(mean, sqrt(var + 1e-7)) of every channel, concatenated."""
    variance, mean = torch.var_mean(maps, dim=(2, 3))
    return torch.cat([mean, (variance + EPS).sqrt()], dim=1)


def restyled(maps: Float[Tensor, "b c h w"], styles: Float[Tensor, "b d"]) -> Float[Tensor, "b c h w"]:
    """The maps with means and deviations ``styles``; their own statistics are constants."""
    std, mean = torch.std_mean(maps.detach(), dim=(2, 3), keepdim=True)
    new_mean, new_std = styles[..., None, None].chunk(2, dim=1)
    return (maps - mean) / (std + EPS) * new_std + new_mean


def farthest_points(points: Float[Tensor, "n d"], count: int, first: int) -> Int[Tensor, " k"]:
    """Indices of ``count`` points: ``first``, then each time the one farthest from all chosen before it."""
    if len(points) < count:
        raise UserError(f"shade: {count} prototypes of {len(points)} styles; lower prototypes")
    chosen = [first]
    near = torch.full((len(points),), torch.inf, dtype=points.dtype, device=points.device)
    for _ in range(count - 1):
        near = torch.minimum(near, (points - points[chosen[-1]]).square().sum(dim=1))
        chosen.append(int(near.argmax()))
    return torch.tensor(chosen, device=points.device)


def consistency(logits: Float[Tensor, "n k h w"]) -> Float[Tensor, ""]:
    """Jensen-Shannon divergence of the two views' class probabilities, mean over pixels."""
    logs = logits.log_softmax(dim=1).chunk(2)
    middle = ((logs[0].exp() + logs[1].exp()) / 2).clamp(EPS, 1).log()
    each = [(log.exp() * (log - middle)).sum(dim=1).mean() for log in logs]
    return (each[0] + each[1]) / 2


def mean_squares(difference: Tensor) -> Tensor:
    """Mean square over the channels."""
    return difference.square().mean(dim=-1)
