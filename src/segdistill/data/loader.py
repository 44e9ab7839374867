"""Batches as a pure function of (seed, stage, step): the same for any number of processes and workers."""

from __future__ import annotations

import itertools
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from segdistill.config import UserError
from segdistill.data.dataset import Dataset, Sample
from segdistill.interrupts import ignored_in_worker
from segdistill.ops import derive_seed, generator
from segdistill.types import Batch

T = TypeVar("T")


def stacked(samples: Sequence[Batch]) -> Batch:
    """Stacks samples whose entries have equal sizes into a batch."""
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


class StepBatches(TorchDataset[Batch]):
    """This process's batches; item ``step`` is the batch of that step.

    Slot ``s = step * batch + position`` reads image ``permutation(epoch)[(s mod N) // repeats]`` of epoch ``s // N``;
    ``repeats`` = 3 is the authors' repeated augmentation (spec A.7): an epoch has N samples of N / 3 images.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Callable[[Sample], Batch],
        *,
        batch: int,
        seed: tuple[int | str, ...],
        collate: Callable[[Sequence[Batch]], Batch] = stacked,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(dataset) == 0:
            raise UserError("the data selection has no images; choose at least one")
        if batch % world_size:
            raise UserError(f"batch {batch} cannot be divided among {world_size} processes; choose a multiple")
        self.dataset, self.transform, self.collate = dataset, transform, collate
        self.batch, self.seed, self.repeats = batch, seed, repeats
        self.positions = range(rank, batch, world_size)  # every process gets its share of the first half of the batch
        self._last: tuple[int, Sample] | None = None  # the image that was read last
        self._orders: dict[int, list[int]] = {}  # of the last two epochs; a plain dict, which can be sent to workers

    def indices(self, step: int) -> list[int]:
        """Indices of this process's samples of ``step``."""
        n = len(self.dataset)
        slots = [step * self.batch + position for position in self.positions]
        return [self._order(slot // n)[(slot % n) // self.repeats] for slot in slots]

    def __getitem__(self, step: int) -> Batch:
        samples, self._last = [], None
        for position, index in zip(self.positions, self.indices(step), strict=True):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(*self.seed, "sample", step, position))
                samples.append(self.drawn(index, step * self.batch + position))
        self._last = None
        return self.collate(samples)

    def drawn(self, index: int, slot: int) -> Batch:
        """The augmented image ``index`` for ``slot``."""
        del slot
        if self._last is None or self._last[0] != index:  # repeats follow each other: an image is read once for them
            self._last = index, self.dataset[index]
        return self.transform(self._last[1])

    def _order(self, epoch: int) -> list[int]:
        """:meth:`_permutation`, which takes time, kept for as long as steps ask for it."""
        if epoch not in self._orders:
            last = list(self._orders.items())[-1:]
            self._orders = {**dict(last), epoch: self._permutation(epoch)}
        return self._orders[epoch]

    def _permutation(self, epoch: int) -> list[int]:
        rng = generator(*self.seed, "epoch", epoch)
        if not self.dataset.weights:
            return torch.randperm(len(self.dataset), generator=rng).tolist()
        return weighted_order(self.dataset.sizes, self.dataset.weights, rng)


def weighted_order(sizes: Sequence[int], weights: Sequence[float], rng: torch.Generator) -> list[int]:
    """Shuffled indices, as many as there are images, with a share of ``weights[d]`` for domain ``d``.

    ``sizes`` are the numbers of images of the domains, in sequence. An image repeats only after all others of its
    domain were used. Shares are rounded by largest remainder (ours: the papers concatenate).
    """
    total, whole = sum(sizes), math.fsum(weights)
    exact = [total * weight / whole for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda domain: counts[domain] - exact[domain])
    for domain in by_remainder[: total - sum(counts)]:
        counts[domain] += 1
    drawn: list[int] = []
    for size, start, count in zip(sizes, itertools.accumulate(sizes, initial=0), counts, strict=False):
        rounds = [torch.randperm(size, generator=rng) for _ in range(math.ceil(count / size))]
        drawn += [start + index for index in torch.cat(rounds).tolist()[:count]] if rounds else []
    return [drawn[index] for index in torch.randperm(total, generator=rng).tolist()]


class _ErrorsAsValues(TorchDataset[Any]):
    """Returns user errors instead of raising them: an exception from a worker arrives with its traceback."""

    def __init__(self, items: TorchDataset[Any]) -> None:
        self.items = items

    def __getitem__(self, index: int) -> Any:
        try:
            return self.items[index]
        except UserError as error:
            return error


def loaded(items: TorchDataset[T], order: Sequence[int], workers: int = 0, *, ahead: int = 4) -> Iterator[T]:
    """The ``items`` of the indices in ``order``; each of ``workers`` processes works up to ``ahead`` items in advance.

    Works with every start method of ``multiprocessing``; no images are sent to the workers.
    """
    loader = DataLoader(
        _ErrorsAsValues(items),
        batch_size=None,
        sampler=order,
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        worker_init_fn=ignored_in_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises wherever the main thread is; without it a lost process is noticed at the next item.
        signal.signal(signal.SIGCHLD, handler)
    return map(_raised, _delivered(iterator) if workers else iterator)


def _delivered(items: Iterator[Any]) -> Iterator[Any]:
    """The items of worker processes; one that is killed while sending a batch is named as torch does."""
    try:
        yield from items
    except (ConnectionError, EOFError) as error:
        if "in DataLoader worker process" in str(error):  # raised by the data set, in a worker
            raise
        raise RuntimeError(f"DataLoader worker was killed while sending a batch ({error})") from error


def _raised(item: Any) -> Any:
    if isinstance(item, UserError):
        raise item
    return item
