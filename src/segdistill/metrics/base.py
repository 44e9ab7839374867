"""The interface of a task's metric: it accumulates batches, merges over processes, and resamples its images.

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
from segdistill.processes import rank_and_size

RESAMPLES = 1000
"""Number of bootstrap draws."""

Array = NDArray[Any]


class Samples:
    """Per-image data of a domain of ``size`` images, from which the primary score can be resampled."""

    size: int

    def resampled(self, name: str) -> NDArray[np.float64]:
        """The primary score of each bootstrap draw (RESAMPLES,); NaN with fewer than two images.

        The draws depend only on ``name`` (the domain) and the number of images, so two models scored on the same images
        get the same draws. See :func:`draws`.
        """
        raise NotImplementedError

    def by_image(self) -> NDArray[np.float64]:
        """The primary score of every single image (N,); NaN where undefined."""
        return np.full(self.size, np.nan)

    def agreement(self, other: Samples) -> float | None:
        """Share of predictions on which two models agree, in [0, 1]; None if the task does not define it."""
        del other
        return None

    def arrays(self) -> dict[str, Array]:
        """All data as arrays by name."""
        raise NotImplementedError

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> Samples:
        """The inverse of :meth:`arrays`; raises KeyError if an array is missing."""
        raise NotImplementedError


class Metric:
    """Scores of one domain. Images are indexed, so the order does not depend on the number of processes."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}  # per-image data, by index in the domain

    def update(self, model: Model, batch: Mapping[str, Tensor], view: View) -> None:
        """Run ``model`` on a batch with ``view`` and accumulate its predictions.

        The batch holds ``image`` (B, 3, H, W), uint8 or float in [0, 1], and the task's own targets. Optional ``index``
        (B,): the images' indices in the domain; without it, numbering continues.
        """
        raise NotImplementedError

    def merge(self) -> None:
        """Merge with the other processes of torch.distributed; does nothing in a single process."""
        parts: list[dict[int, Any]] = [self.seen]
        if (size := rank_and_size()[1]) > 1:
            parts = [{} for _ in range(size)]
            dist.all_gather_object(parts, self.seen)
        numbered = sorted(((index, rank) for rank, part in enumerate(parts) for index in part))
        self.seen = {place: parts[rank][index] for place, (index, rank) in enumerate(numbered)}

    def result(self, name: str) -> dict[str, Any]:
        """The entry of domain ``name`` in ``results.json``: plain numbers, None for an undefined score.

        It always has the primary score, its ``..._interval`` and the number of ``images``.
        """
        raise NotImplementedError

    def samples(self) -> Samples:
        """The per-image data in dataset order; call after :meth:`merge`."""
        raise NotImplementedError

    def numbers(self, batch: Mapping[str, Tensor]) -> list[int]:
        """The images' indices: the batch's ``index``, or else the next free ones."""
        index, count = batch.get("index"), len(batch["image"])
        return list(range(len(self.seen), len(self.seen) + count)) if index is None else index.tolist()


def draws(name: str, size: int) -> NDArray[np.float64]:
    """How often each of ``size`` images is drawn, (RESAMPLES, size): a function of ``name`` and ``size`` alone."""
    rng = np.random.default_rng(derive_seed("bootstrap", name))
    return rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(np.float64)


def interval(samples: NDArray[np.float64]) -> list[float] | None:
    """The 2.5th and 97.5th percentiles; None without samples or if one of them is not finite."""
    if not len(samples) or not np.isfinite(samples).all():
        return None
    return np.quantile(samples, (0.025, 0.975)).tolist()


def resampled_domains(images: Mapping[str, Samples], names: Sequence[str]) -> NDArray[np.float64]:
    """Resampled scores (domains, RESAMPLES) of the domains ``names``; images are drawn within each domain."""
    return np.array([images[name].resampled(name) for name in names])


def resampled_mean(images: Mapping[str, Samples], names: Sequence[str]) -> NDArray[np.float64]:
    """Mean over the domains of :func:`resampled_domains` (RESAMPLES,). Empty without domains."""
    return np.mean(resampled_domains(images, names), axis=0) if names else np.empty(0)


def redrawn_mean(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the domains of ``scores`` (domains, RESAMPLES) in which the domains are drawn with replacement, too.

    A bootstrap of two levels (Davison and Hinkley 1997, section 3.8): it covers the choice of domains as well as the
    choice of images within them. A domain that is drawn twice has the same images twice. With few domains the
    intervals are too narrow rather than too wide.
    """
    drawn = draws("domains", len(scores))
    return (drawn * scores.T).sum(axis=1) / len(scores)


def plain(value: float) -> float | None:
    """A score for JSON: None instead of NaN."""
    return None if math.isnan(value) else value
