"""Batch norms with statistics over the images of all processes, as a single process would compute them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segdistill.processes import rank_and_size


def share_statistics(network: nn.Module) -> None:
    """Make every batch norm of ``network`` compute its training statistics over all processes.

    Parameters, buffers and their names do not change; in a single process nothing happens. torch's own
    ``SyncBatchNorm`` needs a GPU and skips the subclasses that timm uses.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if rank_and_size()[1] == 1 or not norms:
        return
    group = dist.new_group()  # a separate group: DDP reduces gradients at the same time, in another order
    for norm in norms:
        kind = type(norm)
        norm.__class__ = type(kind.__name__, (SharedStatistics, kind), {"group": group})


class SharedStatistics(_BatchNorm):
    """The base class that :func:`share_statistics` inserts before a batch norm's class."""

    group: Any = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise over the images of all processes; in evaluation mode as usual."""
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = (1, -1) + (1,) * (input.dim() - 2)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        count = _summed(torch.tensor(input.numel() / input.shape[1], device=input.device), self.group)
        mean = _summed(values.sum(axes), self.group) / count
        centred = values - mean.view(shape)
        variance = _summed(centred.square().sum(axes), self.group) / count
        self._follow(mean.detach(), variance.detach(), count)
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        output = output.to(input.dtype)
        for name in ("drop", "act"):  # timm's batch norms with an activation
            after = getattr(self, name, None)
            output = output if after is None else after(output)
        return output

    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share: Any = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), share)


class _Summed(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        """The sum."""
        ctx.group = group
        total = value.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Sum of the gradients, since every process's sum depends on this one's value."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _summed(value: Tensor, group: Any) -> Tensor:
    return _Summed.apply(value, group)
