"""The batches of a task stage: labelled images, in epochs or by rare classes, with proxy and style images, as they are
read or from a cache of the teacher's tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field

from segdistill.config import Config
from segdistill.data.dataset import DataSelection, Dataset
from segdistill.data.loader import StepBatches, loaded
from segdistill.data.rare_class import (
    Draws,
    RareClassBatches,
    RareClassConfig,
    count_pixels,
    read_pixels,
    write_pixels,
)
from segdistill.data.transforms import DistillAugment, DistillTransform
from segdistill.stages.base import StageContext
from segdistill.stages.distill import Distillation
from segdistill.stages.teacher_cache import CacheConfig, Numbers, TeacherCache, open_cache
from segdistill.stages.views import joined_views
from segdistill.tasks.table import TASKS
from segdistill.types import Batch, Views

Seed = tuple[int | str, ...]
Batches = Callable[[Sequence[int]], Iterator[Batch]]
"""Order of steps -> their batches."""


class ProxyConfig(Config):
    """Unlabelled images for the distillation term of a task stage alone (control: vanilla KD with proxy images)."""

    data: DataSelection
    augment: DistillAugment = DistillAugment()
    batch: int = Field(16, ge=1, le=2**16, description="proxy images per step, all processes together")
    cache: CacheConfig | None = Field(None, description="as the stage's cache, of the proxy images")


def cache_faults(config: Any) -> list[str]:
    """One line for each way in which the caches of a task stage with the settings ``config`` cannot work."""
    caches = [config.cache, *(() if config.proxy is None else (config.proxy.cache,))]
    if not any(caches):
        return []
    lines = []
    if config.method is None:
        lines.append("cache keeps the teacher's tokens for a distillation term; add a method or remove cache")
    if not all(caches):
        lines.append("cache and proxy.cache: set both, since the teacher runs on all images of a step, or neither")
    if TASKS[config.task].objects:
        lines.append(f"cache stores a class for every pixel; the task '{config.task}' has objects: remove it")
    if config.rare_class is not None:
        lines.append("rare_class draws a new crop at every step; remove it or cache")
    return lines


@dataclass(frozen=True)
class TaskCaches:
    """The caches of a task stage's labelled images and, if it has any, of its proxy images."""

    labelled: TeacherCache
    proxy: TeacherCache | None
    proxy_images: Numbers | None

    def views_of(self, batch: Batch) -> Views:
        """The teacher's views of a batch: of its labelled images, then of its proxy images."""
        views = [self.labelled.views_of(batch)]
        return joined_views(views if self.proxy is None else [*views, self.proxy.views_of(batch, "proxy.")])


def open_task_caches(config: Any, context: StageContext, dataset: Dataset, distillation: Distillation) -> TaskCaches:
    """The caches of a task stage with the settings ``config``; those that are missing are built."""
    size, task = context.source.size, TASKS[config.task]
    shared: dict[str, Any] = {"size": size, "batch": config.batch, "workers": context.workers}
    shared |= {"fabric": context.fabric, "progress": context.progress, "head": distillation.teacher_head}
    teacher, taps = distillation.teacher, distillation.needs.of_teacher

    def opened(part: Any, images: Dataset, transform: Any, *, labelled: bool) -> TeacherCache:
        facts = {"data": context.source.facts(part.data), "augment": part.augment.model_dump(mode="json")}
        return open_cache(part.cache, teacher, taps, images, transform, facts, labelled=labelled, **shared)

    labelled = opened(config, dataset, task.transform(config.augment, size), labelled=True)
    if config.proxy is None:
        return TaskCaches(labelled, None, None)
    images = context.open(config.proxy.data, "proxy_images.txt")
    transform = DistillTransform(config.proxy.augment, size)
    return TaskCaches(labelled, opened(config.proxy, images, transform, labelled=False), Numbers(images))


def task_batches(
    config: Any, context: StageContext, dataset: Dataset, seed: Seed, caches: TaskCaches | None = None
) -> Batches:
    """The labelled batches of a task stage with the settings ``config``, with ``proxy`` and ``style`` images if set.

    With ``caches``, the images are cached views, and the batches have the teacher's tokens.
    """
    kind: Callable[..., StepBatches] = StepBatches
    if config.rare_class is not None:
        kind = partial(RareClassBatches, config.rare_class, _draws(config.rare_class, context, dataset, seed))
    labelled = labelled_batches(config, context, dataset, seed, kind, None if caches is None else caches.labelled)
    parts = (("proxy", config.proxy), ("style", config.styles))
    further = {name: _unlabelled(name, part, config, context, seed, caches) for name, part in parts if part is not None}

    def joined(order: Sequence[int]) -> Iterator[Batch]:
        others = [loaded(images, order, context.workers) for images in further.values()]
        for batch, *extra in zip(loaded(labelled, order, context.workers), *others, strict=True):
            for name, each in zip(further, extra, strict=True):
                batch |= {name if key == "image" else f"{name}.{key}": value for key, value in each.items()}
            yield batch

    return joined if further else lambda order: loaded(labelled, order, context.workers)


def labelled_batches(
    config: Any,
    context: StageContext,
    dataset: Dataset,
    seed: Seed,
    kind: Callable[..., StepBatches] = StepBatches,
    cache: TeacherCache | None = None,
) -> StepBatches:
    """This process's labelled batches, of the class ``kind``; with ``cache``, of its views."""
    task = TASKS[config.task]
    return kind(
        dataset if cache is None else Numbers(dataset),
        task.transform(config.augment, context.source.size) if cache is None else cache,
        collate=task.collate,
        batch=config.batch,
        seed=seed,
        **context.share,
    )


def _unlabelled(
    name: str, part: Any, config: Any, context: StageContext, seed: Seed, caches: TaskCaches | None
) -> StepBatches:
    """Images of ``part``, or their cached views; unless it has a batch of its own, as many as labelled ones."""
    images: Dataset | None = None if caches is None or name != "proxy" else caches.proxy_images
    transform: Any = None if images is None or caches is None else caches.proxy
    return StepBatches(
        context.open(part.data, f"{name}_images.txt") if images is None else images,
        DistillTransform(part.augment, context.source.size) if images is None else transform,
        batch=getattr(part, "batch", config.batch),
        seed=(*seed, name),
        **context.share,
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
