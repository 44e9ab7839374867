"""Helpers that make results independent of the number of processes, and of micro-batches as far as possible.

Row ``i`` of process ``rank`` of ``size`` is row ``i * size + rank`` of the whole batch, also for a batch concatenated
from several. Row ``i`` of micro-batch ``m`` of ``n`` is row ``i * n + m`` of its process, so that a micro-batch has the
rows that process ``m * size + rank`` of ``n * size`` would have: its *share* of the whole batch. DDP averages gradients
over processes. A sum over a process's own rows is therefore divided by the mean count per process
(:func:`shared_count`), and every process draws the random numbers of the whole batch from one seed (:func:`rand`).

Without torch.distributed there is one process, and these functions change no value and no random stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@dataclass
class _Micro:
    number: int = 0
    count: int = 1


_micro = _Micro()  # the current micro-batch; a plain object, since a backward pass may run in another thread


@contextmanager
def micro_batch(number: int, count: int) -> Iterator[None]:
    """While the block runs, this process computes micro-batch ``number`` of ``count``."""
    _micro.number, _micro.count = number, count
    try:
        yield
    finally:
        _micro.number, _micro.count = 0, 1


def first_micro_batch() -> bool:
    """Whether this is the first pass of a step, for what happens once per step, such as a moving average."""
    return _micro.number == 0


def share() -> tuple[int, int]:
    """Which share of the whole batch this process computes now, and the number of shares."""
    rank, size = rank_and_size()
    return _micro.number * size + rank, _micro.count * size


def own_rows(whole: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "_n ..."]:
    """This share's rows of a tensor with one row per sample of the whole batch."""
    number, count = share()
    return whole[number::count]


def rand(rows: int, *sizes: int, device: torch.device | None = None) -> Float[Tensor, "b ..."]:
    """Uniform numbers in [0, 1) for this share's ``rows`` samples, independent of the number of shares.

    Drawn from torch's global generator, which must be in the same state in every process.
    """
    return own_rows(torch.rand(rows * share()[1], *sizes, device=device))


def total(value: Shaped[Tensor, "*s"]) -> Shaped[Tensor, "*s"]:
    """The sum over the processes, detached."""
    if rank_and_size()[1] == 1:
        return value.detach()
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def mean_over_processes(value: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """The mean over the processes, detached."""
    return total(value) / rank_and_size()[1]


def shared_count(count: Shaped[Tensor, ""]) -> Shaped[Tensor, ""]:
    """The mean of ``count`` over the processes; the total counts as at least 1.

    The mean is over the current micro-batch: the counts of the others are not known yet. A process divides its own sum
    by this. Every process must call it, even with a count of 0.
    """
    whole, size = total(count).clamp(min=1), rank_and_size()[1]
    return whole if size == 1 else whole / size


def gather_rows(values: Sequence[int], device: torch.device) -> list[int]:
    """``values``, one per sample of this process, gathered for the whole batch in its order."""
    size = rank_and_size()[1]
    if size == 1:
        return list(values)
    own = torch.tensor(list(values), device=device)
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own)
    return torch.stack(parts, dim=1).flatten().tolist()


def gather(own: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "_m ..."]:
    """The rows of all processes, each with as many, in the order of the whole batch; detached."""
    size = rank_and_size()[1]
    if size == 1:
        return own.detach()
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def least(value: Tensor) -> Tensor:
    """The elementwise minimum of ``value`` over all processes."""
    if rank_and_size()[1] == 1:
        return value
    smallest = value.detach().clone()
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return smallest
