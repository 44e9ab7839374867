"""The batches of a task stage: labelled images, in epochs or by rare classes, with proxy and style images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from segdistill.data.dataset import Dataset
from segdistill.data.loader import StepBatches, batches
from segdistill.data.rare_class import (
    Draws,
    RareClassBatches,
    RareClassConfig,
    count_pixels,
    read_pixels,
    write_pixels,
)
from segdistill.data.transforms import DistillTransform
from segdistill.stages.base import StageContext
from segdistill.tasks.table import TASKS
from segdistill.types import Batch

Seed = tuple[int | str, ...]
Batches = Callable[[Sequence[int]], Iterator[Batch]]
"""Order of steps -> their batches."""


def task_batches(config: Any, context: StageContext, dataset: Dataset, seed: Seed) -> Batches:
    """The labelled batches of a task stage with the settings ``config``, with ``proxy`` and ``style`` images if set."""
    kind: Callable[..., StepBatches] = StepBatches
    if config.rare_class is not None:
        kind = partial(RareClassBatches, config.rare_class, _draws(config.rare_class, context, dataset, seed))
    labelled = labelled_batches(config, context, dataset, seed, kind)
    parts = (("proxy", config.proxy), ("style", config.styles))
    further = {name: _unlabelled(name, part, config, context, seed) for name, part in parts if part is not None}

    def joined(order: Sequence[int]) -> Iterator[Batch]:
        others = [batches(images, order, context.workers) for images in further.values()]
        for batch, *extra in zip(batches(labelled, order, context.workers), *others, strict=True):
            yield batch | {name: each["image"] for name, each in zip(further, extra, strict=True)}

    return joined if further else lambda order: batches(labelled, order, context.workers)


def labelled_batches(
    config: Any,
    context: StageContext,
    dataset: Dataset,
    seed: Seed,
    kind: Callable[..., StepBatches] = StepBatches,
) -> StepBatches:
    """This process's labelled batches, of the class ``kind``."""
    task = TASKS[config.task]
    return kind(
        dataset,
        task.transform(config.augment, context.source.size),
        collate=task.collate,
        batch=config.batch,
        seed=seed,
        rank=context.fabric.global_rank,
        world_size=context.fabric.world_size,
    )


def _unlabelled(name: str, part: Any, config: Any, context: StageContext, seed: Seed) -> StepBatches:
    """Images of ``part``; unless it has a batch of its own, as many as labelled ones."""
    return StepBatches(
        context.open(part.data, f"{name}_images.txt"),
        DistillTransform(part.augment, context.source.size),
        batch=getattr(part, "batch", config.batch),
        seed=(*seed, name),
        rank=context.fabric.global_rank,
        world_size=context.fabric.world_size,
    )


def _draws(config: RareClassConfig, context: StageContext, dataset: Dataset, seed: tuple[int | str, ...]) -> Draws:
    """The draws of rare-class sampling; the first process counts the labels' classes while the others wait."""
    if context.fabric.is_global_zero and read_pixels(context.folder, context.fingerprint) is None:
        counts = count_pixels(dataset, context.workers, context.progress)
        write_pixels(context.folder, context.fingerprint, dataset.names, counts)
    context.fabric.barrier()
    pixels = read_pixels(context.folder, context.fingerprint)
    assert pixels is not None, "the first process wrote it"
    return Draws(config, pixels, seed)
