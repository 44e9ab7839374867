"""CAST's instance-aware pixel contrast, from "Training a Student Expert via Semi-Supervised Foundation Model
Distillation".

Paper: arXiv 2604.03841 (spec sskd, 4). For K queries and C classes, mask logits M (B, K, N) at N positions and class
logits L (B, K, C + 1) of the network's own prediction of the weak view:

    P_m = softmax_K(M),  P_c = softmax_{C+1}(L),  F_c[b, p] = sum_k P_m[b, k, p] P_c[b, k]
    y = [P_m || F_c] / |.|,  s(p, q) = max(0, 1 - <y_p, y_q>)                    "debiased dissimilarity"
    R negatives of each anchor p, drawn without replacement with probability proportional to s(p, .)
    L = -mean_p log( exp(z_p . z'_p / T) / (exp(z_p . z'_p / T) + sum_r exp(z_p . z_{q_r} / T)) )

z and z' are L2-normalised projections of the encoder's features of the weak and of the strong view at the same
position. The features of the strong view carry no gradient, and neither does the drawing of negatives.

Not established by the paper, chosen here: y is normalised over the concatenated vector; negatives come from the weak
view; both projections are trained (figure 1; the research code leaves the strong one at its random start); R = 200 and
the weight 0.1 are the research code's; T is constant. Query k of two images is not the same object, so across images
only the class part counts. The research code takes negatives from other images alone and clips them with a ``margin``.
Ours: ``anchors`` positions per image instead of all, which bounds the cost at anchors x positions per image pair. With
several processes each one contrasts its own images, so that the term depends on their number.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from segdistill import config as base
from segdistill.config import UserError
from segdistill.ops import full_precision, map_to_tokens, resize
from segdistill.processes import total
from segdistill.types import LossTerms

_LEAST = 1e-6  # weight of a candidate with dissimilarity 0


class PixelContrast(nn.Module):
    """Two projections, the sampler of negatives and the loss; see the module's docstring."""

    class Config(base.Config):
        """``cue``: what tells two positions apart, as in the paper's Table 4."""

        weight: float = Field(0.1, gt=0, le=1e6, description="weight of the term")
        cue: Literal["fusion", "mask", "class", "uniform"] = "fusion"
        candidates: Literal["within", "across", "both"] = Field(
            "both", description="negatives from the same image, from the others of the batch, or from both"
        )
        negatives: int = Field(200, ge=1, le=10**5, description="R, negatives of each anchor")
        anchors: int = Field(128, ge=1, le=10**5, description="positions per image that are compared, at random")
        temperature: float = Field(0.1, gt=0, le=100)
        last_temperature: float | None = Field(
            None, gt=0, le=100, description="at the last step, linear; None: constant"
        )
        margin: float | None = Field(None, ge=0, le=100, description="negatives count as max(z.z / T - margin, 0)")
        hidden: int = Field(128, ge=1, le=8192, description="width of the projections' hidden layers")
        width: int = Field(128, ge=1, le=8192, description="width of the projections")

    def __init__(self, config: Config, channels: int) -> None:
        """``channels``: width of the features."""
        super().__init__()
        self.config = config
        self.weak, self.strong = (_projection(channels, config.hidden, config.width) for _ in range(2))
        self.margin: Tensor | None = None  # of the last step, as the counts
        self.counts: Tensor | None = None
        self.progress = 0.0

    def set_progress(self, done: float) -> None:
        """``done``: share of the stage's steps, for the temperature."""
        self.progress = done

    @property
    def temperature(self) -> float:
        """T at this step."""
        first, last = self.config.temperature, self.config.last_temperature
        return first if last is None else first + (last - first) * self.progress

    def forward(
        self,
        weak: Float[Tensor, "b c h w"],
        strong: Float[Tensor, "b c h w"],
        masks: Float[Tensor, "b q _h _w"],
        classes: Float[Tensor, "b q _k"],
        ids: Int[Tensor, "b h w"] | None = None,
    ) -> LossTerms:
        """The weighted ``pixel_contrast`` term; all inputs belong to the weak view, except the features ``strong``.

        ``ids``: the true object of each position, 0 = none, -1 = not labelled, for diagnostics alone.
        """
        with full_precision(weak):
            count, grid = len(weak), (weak.shape[-2], weak.shape[-1])
            ours = F.normalize(self.weak(map_to_tokens(weak.float())), dim=-1)  # (B, N, D)
            other = F.normalize(self.strong(map_to_tokens(strong.detach().float())), dim=-1)
            positions = ours.shape[1]
            some = min(self.config.anchors, positions)
            anchors = torch.rand(count, positions, device=weak.device).topk(some, dim=1).indices  # (B, A)
            at = anchors[..., None].expand(-1, -1, ours.shape[-1])
            query = ours.gather(1, at)  # (B, A, D)
            drawn = self.draw(masks, classes, grid, anchors)  # (B, A, R) into B N
            positive = (query * other.gather(1, at)).sum(-1)  # (B, A)
            negative = (query.flatten(0, 1) @ ours.flatten(0, 1).T).view(count, some, -1).gather(2, drawn)
            loss = info_nce(positive / self.temperature, negative / self.temperature, self.config.margin)
        self.margin = (positive.mean() - negative.mean()).detach()
        self.counts = None if ids is None else _true_counts(ids, anchors, drawn)
        return {"pixel_contrast": self.config.weight * loss}

    @property
    def diagnostics(self) -> dict[str, Tensor]:
        """Of the last step: the margin between positives and negatives, and the share p of negatives off the anchor's
        own object, over the anchors on objects of all processes (1 - FNR in the paper); every process must read it.
        """
        found = {} if self.margin is None else {"contrast_margin": self.margin}
        if self.counts is not None:
            apart, every = total(self.counts)
            found |= {"inter_instance": apart / every} if every else {}
        return found

    @torch.no_grad()
    def draw(
        self,
        masks: Float[Tensor, "b q _h _w"],
        classes: Float[Tensor, "b q _k"],
        grid: tuple[int, int],
        anchors: Int[Tensor, "b a"],
    ) -> Int[Tensor, "b a _r"]:
        """Negatives of the anchors as indices into the B N positions of the batch.

        The R largest of weight / Exp(1): the same draw as the Gumbel-top-R trick, without logarithms.
        """
        count, some = anchors.shape
        weights = self.dissimilarity(masks, classes, grid, anchors)  # (B, A, B, N)
        own = torch.eye(count, dtype=torch.bool, device=anchors.device)[:, None, :, None]
        usable = {"within": own, "across": ~own, "both": own | ~own}[self.config.candidates].expand_as(weights).clone()
        rows, columns = torch.arange(count, device=anchors.device)[:, None], torch.arange(some, device=anchors.device)
        usable[rows, columns, rows, anchors] = False
        keys = weights.clamp(min=_LEAST) / torch.empty_like(weights).exponential_()
        positions = grid[0] * grid[1]
        candidates = {
            "within": positions - 1, "across": (count - 1) * positions, "both": count * positions - 1
        }[self.config.candidates]  # fmt: skip
        if not candidates:
            raise UserError("pixel contrast has no negatives: with candidates: across a batch needs several images")
        keys = keys.masked_fill_(~usable, -1.0).flatten(2)
        return keys.topk(min(self.config.negatives, candidates), dim=2, sorted=False).indices

    @torch.no_grad()
    def dissimilarity(
        self,
        masks: Float[Tensor, "b q _h _w"],
        classes: Float[Tensor, "b q _k"],
        grid: tuple[int, int],
        anchors: Int[Tensor, "b a"],
    ) -> Float[Tensor, "b a b n"]:
        """The debiased dissimilarity in [0, 1] of every anchor and every position; 1 for ``uniform``."""
        count, some = anchors.shape
        positions = grid[0] * grid[1]
        if self.config.cue == "uniform":
            return torch.ones(count, some, count, positions, device=masks.device)
        logits = resize(masks.float(), grid)
        shares = logits.flatten(2).softmax(dim=1).transpose(1, 2)  # (B, N, Q)
        votes = shares @ classes.float().softmax(dim=-1)  # (B, N, K)
        cue = self.config.cue
        within = {"mask": shares, "class": votes, "fusion": torch.cat([shares, votes], dim=-1)}[cue]
        within = F.normalize(within, dim=-1)
        across = F.normalize(votes, dim=-1)
        if cue == "mask":  # queries of different images have nothing to do with each other
            found = torch.ones(count, some, count, positions, device=masks.device)
        else:
            picked = across.gather(1, anchors[..., None].expand(-1, -1, across.shape[-1]))
            found = 1 - torch.einsum("bac,dnc->badn", picked, across)
        picked = within.gather(1, anchors[..., None].expand(-1, -1, within.shape[-1]))
        same = torch.arange(count, device=masks.device)
        found[same, :, same] = 1 - torch.einsum("bac,bnc->ban", picked, within)
        return found.clamp_(min=0)


def info_nce(
    positive: Float[Tensor, "b a"], negative: Float[Tensor, "b a r"], margin: float | None = None
) -> Float[Tensor, ""]:
    """-log of the positive's share among exp(similarities); log(1 + R) if all are equal."""
    if margin is not None:
        negative = (negative - margin).clamp(min=0)
    every = torch.cat([positive[..., None], negative], dim=-1)
    return (every.logsumexp(dim=-1) - positive).mean()


def _projection(channels: int, hidden: int, width: int) -> nn.Sequential:
    """The research code's: three layers without bias."""
    layers = [nn.Linear(channels, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, hidden, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, width, bias=False))


def _true_counts(
    ids: Int[Tensor, "b h w"], anchors: Int[Tensor, "b a"], drawn: Int[Tensor, "b a r"]
) -> Float[Tensor, " 2"]:
    """Negatives off the anchor's own object, and all, of the anchors on objects."""
    flat = ids.flatten(1).long()
    number = torch.arange(len(flat), device=flat.device)[:, None]
    unique = torch.where(flat > 0, flat * len(flat) + number, flat)  # differs between images
    own = unique.gather(1, anchors)[..., None]
    apart = (unique.flatten()[drawn] != own).float()
    counted = (own > 0).float()
    return torch.stack([(apart * counted).sum(), counted.sum() * drawn.shape[-1]])
