"""What several processes agree on, so that the result of a run does not depend on their number.

Row ``i`` of process ``rank`` among ``size`` is row ``i * size + rank`` of the whole batch; that also holds for a batch
that is put together from several. DDP averages the gradients of the processes. So a sum over a process's own rows has
to be divided by the mean count per process (:func:`shared_count`), and random numbers of samples are drawn for the
whole batch by every process, from one seed (:func:`rand`).

Without torch.distributed there is one process, and nothing here changes a value or a random stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor


def rank_and_size() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_rows(whole: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "_n ..."]:
    """This process's rows of a tensor with one row for each sample of the whole batch."""
    rank, size = rank_and_size()
    return whole[rank::size]


def rand(rows: int, *sizes: int, device: torch.device | None = None) -> Float[Tensor, "b ..."]:
    """Uniform numbers in [0, 1) for this process's ``rows`` samples; a sample's do not depend on its process.

    They come from torch's global generator, which must be in the same state in every process.
    """
    return own_rows(torch.rand(rows * rank_and_size()[1], *sizes, device=device))


def total(value: Shaped[Tensor, ""]) -> Shaped[Tensor, ""]:
    """The sum over the processes; a constant."""
    if rank_and_size()[1] == 1:
        return value.detach()
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def mean_over_processes(value: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The mean over the processes; a constant."""
    return total(value) / rank_and_size()[1]


def shared_count(count: Shaped[Tensor, ""]) -> Shaped[Tensor, ""]:
    """The mean of ``count`` over the processes, as if it were at least 1 in all of them together.

    The count by which a process divides its own sum. Every process has to call this, also one that counts nothing.
    """
    whole, size = total(count).clamp(min=1), rank_and_size()[1]
    return whole if size == 1 else whole / size


def gather_rows(values: Sequence[int], device: torch.device) -> list[int]:
    """``values``, one for each of this process's samples, of the whole batch in its order."""
    size = rank_and_size()[1]
    if size == 1:
        return list(values)
    own = torch.tensor(list(values), device=device)
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own)
    return torch.stack(parts, dim=1).flatten().tolist()


def least(value: Tensor) -> Tensor:
    """The smallest ``value`` of all processes, element by element."""
    if rank_and_size()[1] == 1:
        return value
    smallest = value.detach().clone()
    dist.all_reduce(smallest, dist.ReduceOp.MIN)
    return smallest
