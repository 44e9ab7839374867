"""Which block of an encoder is worth distilling: a frozen linear probe per block, fitted on the source's labels.

Tokens of a block predict the share of every class in their cell, by ridge regression in closed form; every fifth image
chooses the penalty. The class with the highest value, resampled to the image, is scored as mIoU on the validation
domains. No network is trained, so the answer takes one pass over the images. Ours; no paper has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor
from torchvision.transforms import v2

from segdistill.config import UserError
from segdistill.data.dataset import Dataset, Sample
from segdistill.encoders import Encoder, build_encoder
from segdistill.metrics.confusion import ConfusionMatrix
from segdistill.ops import LeastSquares, map_to_tokens
from segdistill.recipe import Recipe, last_task
from segdistill.runlog import Watcher

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridge penalties that are tried, times the mean variance of the tokens."""
HELD_OUT = 5  # every fifth image chooses the penalty
BATCH = 8

Batched = tuple[range, Tensor, tuple[Tensor, ...], tuple[tuple[int, int], ...]]
"""Image numbers, labels (B, H, W), and the tokens and grid of every tap."""


@dataclass(frozen=True)
class Probed:
    """One block: its mIoU per domain. ``block`` is -1 for the tokens after the final norm."""

    block: int
    domains: dict[str, float]
    mean: float  # over the domains that the answer is chosen on


@dataclass(frozen=True)
class Probe:
    """The blocks in order."""

    encoder: str
    source: tuple[str, ...]
    images: int
    blocks: tuple[Probed, ...]
    chosen_on: tuple[str, ...]  # the validation domains; without any, the source

    @property
    def best(self) -> Probed:
        """The block with the highest mean over the domains that the answer is chosen on."""
        return max(self.blocks, key=lambda each: each.mean)

    def table(self) -> list[list[str]]:
        """Header and rows, mIoU in percent."""
        rows = [["block", *self.blocks[0].domains, f"mean of {', '.join(self.chosen_on)}"]]
        for each in self.blocks:
            scores = [f"{100 * value:.1f}" for value in (*each.domains.values(), each.mean)]
            rows.append([name_of(each.block), *scores])
        return rows

    def line(self) -> str:
        """The answer."""
        return (
            f"{self.encoder}: {name_of(self.best.block)} is best on {', '.join(self.chosen_on)} "
            f"({100 * self.best.mean:.1f} mIoU; fitted on {self.images} images of {', '.join(self.source)})"
        )


def name_of(block: int) -> str:
    """How a table names a block."""
    return "final norm" if block == -1 else str(block)


class Sums(LeastSquares):
    """The regression of class shares on tokens, whose constant has no penalty."""

    def add(self, read: Float[Tensor, "n _c"], target: Float[Tensor, "n _k"]) -> None:
        """Add cells; those without a labelled pixel have shares of 0 and count nothing."""
        kept = target.sum(dim=1) > 0
        super().add(read[kept], target[kept])

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        found = Sums(self.xx.shape[0] - 1, self.xy.shape[1])
        found.xx, found.xy, found.yy = self.xx + other.xx, self.xy + other.xy, self.yy + other.yy
        return found

    def penalty(self, ridge: float, own: Float[Tensor, "_d _d"]) -> Float[Tensor, "_d _d"]:
        """``ridge`` times the tokens' summed variance, and next to nothing for the constant."""
        count, mean = own[-1, -1].clamp(min=1), own[-1, :-1] / own[-1, -1].clamp(min=1)
        variance = (own.diagonal()[:-1] / count - mean.square()).mean().clamp(min=1e-12)
        share = torch.full((len(own),), (ridge * variance * count).item(), dtype=torch.float64)
        share[-1] = 1e-9 * count.item()
        return share.diag()

    def error(self, weights: Float[Tensor, "_d k"]) -> float:
        """The squared error of ``weights`` on these cells."""
        return self.yy.item() + ((weights * (self.xx @ weights)).sum() - 2 * (weights * self.xy).sum()).item()


def fit(learned: Sums, held: Sums) -> Float[Tensor, "_d k"]:
    """The weights from all cells, with the penalty that does best on the held-out ones."""
    if held.yy == 0:
        return learned.solve(PENALTIES[len(PENALTIES) // 2])
    best = min(PENALTIES, key=lambda penalty: held.error(learned.solve(penalty)))
    return learned.plus(held).solve(best)


def shares_of(label: Integer[Tensor, "b H W"], classes: int, grid: tuple[int, int]) -> Float[Tensor, "_n k"]:
    """The share of every class among the pixels of each cell of a grid (h, w); ignored pixels belong to none."""
    one_hot = (label[:, None] == torch.arange(classes)[:, None, None]).float()
    pooled = F.adaptive_avg_pool2d(one_hot, grid)
    return map_to_tokens(pooled).flatten(0, 1)


def probe(recipe: Recipe, *, model: str = "teacher", images: int = 200, watcher: Watcher) -> Probe:
    """Probe every block of the recipe's teacher or student, with its start weights.

    The source's images are those of the last task stage, at most ``images`` of them; images and labels are resized to
    ``data.size``. Without validation domains the answer is chosen on the source's own test images. Raises a
    :class:`UserError` if the recipe has no such model, no source labels, or no domain to score.
    """
    config, stage = recipe.evaluate, last_task(recipe, "probe")
    network = getattr(recipe, model)
    if network is None:
        raise UserError(f"the recipe has no {model}; add one, or choose the other with --model")
    if recipe.task != "semantic":
        raise UserError(f"probe needs a class for every pixel; the recipe's task is '{recipe.task}'")
    domains = () if config is None else tuple(name for name in config.domains if name not in config.unseen)
    if config is None or not domains:
        raise UserError("probe scores the source and validation domains; name some: evaluate.validation=[NAME]")
    encoder = build_encoder(network.encoder, seed=recipe.seed).eval()
    size = recipe.data.size
    encoder.config.check(*size)
    few = stage.data.model_copy(update={"images": min(images, stage.data.images or images)})
    source = recipe.data.open(few, watcher.work)
    taps = (*range(encoder.spec((-1,)).depth), -1)
    batches = _batches(encoder, taps, source, size, "probing the source", watcher=watcher)
    weights = _learned(batches, encoder.spec(taps).channels, len(source.names))
    found: dict[str, list[float]] = {}
    for name in domains:
        dataset = recipe.scored_source.open(config.selection(recipe.scored_source, name), watcher.work)
        if dataset.names != source.names:
            raise UserError(f"probe: '{name}' has other classes than the source; leave it out of evaluate.domains")
        batches = _batches(encoder, taps, dataset, size, f"probing {name}", watcher=watcher)
        found[name] = _scored(batches, weights, size, len(source.names))
    blocks, chosen_on = [], config.validation or domains
    for number, tap in enumerate(taps):
        scores = {name: values[number] for name, values in found.items()}
        blocks.append(Probed(tap, scores, fmean(scores[name] for name in chosen_on)))
    return Probe(network.encoder.name, stage.data.domains, len(source), tuple(blocks), chosen_on)


def _learned(found: Iterator[Batched], widths: Sequence[int], classes: int) -> list[Tensor]:
    """The weights (C + 1, K) of every tap, from the batches of the source."""
    sums = [[Sums(width, classes) for width in widths] for _ in range(2)]
    for rows, label, tokens, grids in found:
        held = torch.tensor([row % HELD_OUT == HELD_OUT - 1 for row in rows])
        shares = {grid: shares_of(label, classes, grid).view(len(rows), -1, classes) for grid in set(grids)}
        for number, (values, grid) in enumerate(zip(tokens, grids, strict=True)):
            for part, kept in ((0, ~held), (1, held)):
                sums[part][number].add(values[kept].flatten(0, 1), shares[grid][kept].flatten(0, 1))
    return [fit(learned, held) for learned, held in zip(*sums, strict=True)]


def _scored(found: Iterator[Batched], weights: Sequence[Tensor], size: tuple[int, int], classes: int) -> list[float]:
    """mIoU of every tap on one domain, whose batches are ``found``."""
    matrices = [ConfusionMatrix(classes) for _ in weights]
    for _, label, tokens, grids in found:
        for matrix, values, grid, weight in zip(matrices, tokens, grids, weights, strict=True):
            scores = values.double() @ weight[:-1] + weight[-1]
            maps = scores.transpose(1, 2).unflatten(2, grid).float()
            matrix.add(F.interpolate(maps, size=size, mode="bilinear").argmax(dim=1), label)
    return [matrix.miou() for matrix in matrices]


@torch.inference_mode()
def _batches(
    encoder: Encoder, taps: tuple[int, ...], dataset: Dataset, size: tuple[int, int], what: str, *, watcher: Watcher
) -> Iterator[Batched]:
    """Image numbers, labels (B, H, W), and the tokens and grid of every tap."""
    for start in range(0, len(dataset), BATCH):
        rows = range(start, min(start + BATCH, len(dataset)))
        pairs = [_resized(dataset[row], size) for row in rows]
        images, labels = (torch.stack(list(part)) for part in zip(*pairs, strict=True))
        found = encoder(images.float() / 255.0, taps)
        yield rows, labels, tuple(tokens.float() for tokens in found.tokens), found.grids
        watcher.work(what, rows.stop, len(dataset))


def _resized(sample: Sample, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Image (3, H, W) and label (H, W), both of ``size``."""
    assert sample.label is not None, "labelled domains alone are probed"
    image = v2.functional.resize(torch.tensor(sample.image).permute(2, 0, 1), list(size), antialias=True)
    nearest = v2.InterpolationMode.NEAREST
    return image, v2.functional.resize(torch.tensor(sample.label)[None], list(size), interpolation=nearest)[0]
