"""Batch norms whose statistics are those of the images of all processes, as one process would take them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segdistill.processes import rank_and_size


def share_statistics(network: nn.Module) -> None:
    """Let every batch norm of ``network`` take its statistics over all processes while it is trained.

    Parameters, buffers and their names stay; nothing happens in a single process. torch's own ``SyncBatchNorm`` needs
    a GPU and leaves out the subclasses that timm uses.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if rank_and_size()[1] == 1 or not norms:
        return
    group = dist.new_group()  # of its own: DDP reduces gradients at the same time, in an order of its own
    for norm in norms:
        kind = type(norm)
        norm.__class__ = type(kind.__name__, (SharedStatistics, kind), {"group": group})


class SharedStatistics(_BatchNorm):
    """What :func:`share_statistics` puts before a batch norm's class."""

    group: Any = None

    def forward(self, input: Tensor) -> Tensor:
        """Normalised over the images of all processes; in evaluation mode as ever."""
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
        """The running statistics go after these, with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share: Any = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), share)


class _Summed(torch.autograd.Function):
    """The sum over processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Any) -> Tensor:
        """The sum."""
        ctx.group = group
        total = value.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Every process's sum depends on this one's value."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def _summed(value: Tensor, group: Any) -> Tensor:
    return _Summed.apply(value, group)
