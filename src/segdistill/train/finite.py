"""Checks that the loss stays finite, without synchronising with the device at every step."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segdistill.processes import least, rank_and_size
from segdistill.types import LossTerms


class Finite:
    """Records, on the device, the first step whose loss is not finite, and its terms.

    :meth:`see` never synchronises; :meth:`broken` does, and is called before anything is logged or saved.
    """

    def __init__(self) -> None:
        self.never = torch.iinfo(torch.int64).max
        self.names: list[str] = []
        self.step: Tensor | None = None  # the first step with a non-finite loss, else `never`
        self.values: Tensor | None = None  # its terms

    def see(self, step: int, loss: Tensor, terms: LossTerms) -> None:
        """Record one step."""
        values = torch.stack([value.detach() for value in terms.values()])
        if self.step is None or self.values is None:
            self.names = list(terms)
            self.step = torch.full((), self.never, device=loss.device)
            self.values = torch.zeros_like(values)
        first = ~loss.detach().isfinite() & (self.step == self.never)
        self.step = torch.where(first, step, self.step)
        self.values = torch.where(first, values, self.values)

    def broken(self) -> tuple[int, dict[str, float]] | None:
        """The first step at which any process had a non-finite loss, and that process's terms; None if there is none.

        A collective call: every process must make it, and all get the same result.
        """
        assert self.step is not None and self.values is not None, "no step yet"
        step = int(least(self.step).item())
        if step == self.never:
            return None
        own = self.values.tolist() if step == self.step.item() else None
        found: list[Any] = [own]
        if rank_and_size()[1] > 1:
            found *= rank_and_size()[1]
            dist.all_gather_object(found, own)
        values = next(values for values in found if values is not None)
        return step, dict(zip(self.names, values, strict=True))
