"""What a task's metric offers: it grows batch by batch, merges over processes, and draws its images anew.

Every score comes with the 95 % percentile interval of a bootstrap over images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from segdistill.models import Model, View
from segdistill.ops import derive_seed

RESAMPLES = 1000
"""How often the bootstrap draws the images anew."""

Array = NDArray[Any]


class Samples:
    """What is kept of every image of a domain, so that the primary score can be drawn anew; ``size`` images."""

    size: int

    def resampled(self, name: str) -> NDArray[np.float64]:
        """The primary score (RESAMPLES,) of as many images, drawn with replacement; NaN with fewer than two images.

        The draws depend on ``name`` (the domain) and the number of images alone: two models that were scored on the
        same images see the same draws. See :func:`draws`.
        """
        raise NotImplementedError

    def by_image(self) -> NDArray[np.float64]:
        """The primary score of every image by itself (N,); NaN where it has none."""
        return np.full(self.size, np.nan)

    def agreement(self, other: Samples) -> float | None:
        """Share of what two models say alike on the same images, in [0, 1]; None where the task has no such thing."""
        del other
        return None

    def arrays(self) -> dict[str, Array]:
        """Everything, as arrays by name."""
        raise NotImplementedError

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> Samples:
        """What :meth:`arrays` gave; a KeyError where one is missing."""
        raise NotImplementedError


class Metric:
    """Scores of one domain. Images are numbered, so that several processes agree on their order."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}  # what is kept of each image, by its number

    def update(self, model: Model, batch: Mapping[str, Tensor], view: View) -> None:
        """Let ``model`` see a batch as ``view`` says and count what it predicts.

        ``image`` (B, 3, H, W) uint8, or float in [0, 1], and the task's own targets. Optional ``index`` (B,): the
        images' numbers in the domain; without it they are counted on.
        """
        raise NotImplementedError

    def merge(self) -> None:
        """Add what the other processes of torch.distributed have seen; nothing happens where there are none."""
        parts: list[dict[int, Any]] = [self.seen]
        if dist.is_available() and dist.is_initialized():
            parts = [{} for _ in range(dist.get_world_size())]
            dist.all_gather_object(parts, self.seen)
        numbered = sorted(((index, rank) for rank, part in enumerate(parts) for index in part))
        self.seen = {place: parts[rank][index] for place, (index, rank) in enumerate(numbered)}

    def result(self, name: str) -> dict[str, Any]:
        """What ``results.json`` keeps of the domain ``name``: plain numbers, None for a score that does not exist.

        The primary score, its ``..._interval``, and ``images``, their number, are always there.
        """
        raise NotImplementedError

    def samples(self) -> Samples:
        """What is kept of every image, in the data set's order; after :meth:`merge`."""
        raise NotImplementedError

    def numbers(self, batch: Mapping[str, Tensor]) -> list[int]:
        """The images' numbers: the batch's ``index``, else counted on from those seen."""
        index, count = batch.get("index"), len(batch["image"])
        return list(range(len(self.seen), len(self.seen) + count)) if index is None else index.tolist()


def draws(name: str, size: int) -> NDArray[np.float64]:
    """How often each of ``size`` images is drawn, (RESAMPLES, size): a function of ``name`` and ``size`` alone."""
    rng = np.random.default_rng(derive_seed("bootstrap", name))
    return rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(np.float64)


def interval(samples: NDArray[np.float64]) -> list[float] | None:
    """The 2.5th and the 97.5th percentile; None where there is no sample or one of them does not exist."""
    if not len(samples) or not np.isfinite(samples).all():
        return None
    return np.quantile(samples, (0.025, 0.975)).tolist()


def resampled_mean(images: Mapping[str, Samples], names: Sequence[str]) -> NDArray[np.float64]:
    """Resampled mean score over the domains ``names``: the images are drawn within each domain. Empty without any."""
    samples = [images[name].resampled(name) for name in names]
    return np.mean(samples, axis=0) if samples else np.empty(0)


def plain(value: float) -> float | None:
    """A score as JSON keeps it: None where it does not exist."""
    return None if math.isnan(value) else value
