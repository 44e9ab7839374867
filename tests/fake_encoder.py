"""The smallest module that keeps the encoders' contract: one linear map per patch; and looks at what torch makes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segdistill.ops import map_to_tokens
from segdistill.types import Features


class FakeEncoder(nn.Module):
    """Patches of 8 pixels -> ``width`` channels; tap t is the same map times (t + 2). Any other side is refused."""

    patch = 8

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, self.patch, self.patch)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        return height + -height % self.patch, width + -width % self.patch

    def forward(self, images: Tensor, taps: tuple[int, ...] = (-1,), hidden: Tensor | None = None) -> Features:
        assert images.shape[-2] % self.patch == images.shape[-1] % self.patch == 0, images.shape
        assert hidden is None
        embedded = self.embed(images - 0.5)
        tokens = map_to_tokens(embedded)
        return Features(
            tokens=tuple(tokens * (tap + 2) for tap in taps), cls=tokens.mean(1), grid=tuple(embedded.shape[-2:])
        )


def seeded(make, seed: int = 0):
    """``make()`` with torch's global generator seeded, and put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


class Largest(TorchDispatchMode):
    """Remembers the most values that any new tensor had that was made inside; views are not new."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {arg.untyped_storage().data_ptr() for arg in tree_leaves((args, kwargs)) if isinstance(arg, Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in old:
                self.values = max(self.values, tensor.numel())
        return out


class Held(TorchDispatchMode):
    """The most bytes that new tensors made inside held at one time, each storage once; ``most``."""

    def __init__(self) -> None:
        super().__init__()
        self.most, self.alive = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {arg.untyped_storage()._cdata for arg in tree_leaves((args, kwargs)) if isinstance(arg, Tensor)}
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in old:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out
