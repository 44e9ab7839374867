"""Evaluates a model on named domains: scores per domain, mean over the unseen ones, retention against the teacher.

Each domain is evaluated by its dataset's protocol (spec A.11). All scores come with the 95 % percentile interval of a
bootstrap over images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from segdistill.averages import complete_mean
from segdistill.config import UserError, nearest
from segdistill.metrics.base import Metric, Samples, interval, resampled_mean
from segdistill.models import Model, View
from segdistill.ops import evaluation_mode

Progress = Callable[[str, int, int | None], None]
"""Called after every batch with the domain, its images done so far, and its total (None: unknown)."""


def evaluate(
    model: Model,
    domains: Mapping[str, Iterable[Mapping[str, Tensor]]],
    metric: Callable[[], Metric],
    *,
    views: Mapping[str, View] | None = None,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    progress: Progress | None = None,
) -> dict[str, Metric]:
    """One metric per domain, updated with the domain's batches and merged over the processes.

    ``metric()`` creates a fresh one. ``views`` says per domain how images are fed to the model; the default is
    unchanged. ``precision()`` is entered around every batch, for example ``fabric.autocast``. Under torch.distributed
    each process evaluates its own share of the images, and all return the scores over all images. The model is in
    evaluation mode during the call; its mode is restored afterwards.
    """
    results = {}
    with evaluation_mode(model), torch.inference_mode():
        for name, batches in domains.items():
            found, view, total = metric(), (views or {}).get(name, View()), _count_images(batches)
            for batch in batches:
                with precision():
                    found.update(model, batch, view)
                if progress is not None:
                    progress(name, len(found.seen), total)
            found.merge()
            results[name] = found
    return results


def mean_score(domains: Mapping[str, Mapping[str, float | None]], primary: str, unseen: Sequence[str]) -> float | None:
    """Mean of the score ``primary`` over the ``unseen`` domains; None without such domains or if one has no score.

    Source domains listed for reference and validation domains never count.
    """
    for name in unseen:
        if name not in domains:
            raise UserError(
                f"unseen domain '{name}' was not evaluated: {nearest(name, domains)}evaluated: {', '.join(domains)}"
            )
    return complete_mean(domains[name][primary] for name in unseen)


def mean_interval(images: Mapping[str, Samples], unseen: Sequence[str]) -> list[float] | None:
    """95 % interval of :func:`mean_score`, or None."""
    return interval(resampled_mean(images, unseen))


def retention(student: float | None, teacher: float | None) -> float | None:
    """The student's mean divided by the teacher's; None if either is missing or the teacher's is zero."""
    return student / teacher if student is not None and teacher else None


def retention_interval(
    student: Mapping[str, Samples], teacher: Mapping[str, Samples], unseen: Sequence[str]
) -> list[float] | None:
    """95 % interval of :func:`retention` for two models scored on the same images, by a paired bootstrap.

    None without unseen domains, or if in any draw a score is undefined or the teacher's score is zero.
    """
    assert all(student[name].size == teacher[name].size for name in unseen), "both models are scored on the same images"
    above, below = (resampled_mean(images, unseen) for images in (student, teacher))
    return interval(above / below) if (below > 0).all() else None


def _count_images(batches: Iterable) -> int | None:
    """Number of images of a loader over a sized dataset; None for any other iterable."""
    dataset = getattr(batches, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None
