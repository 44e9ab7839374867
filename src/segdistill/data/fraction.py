"""Label fractions: a share of the images, each smaller share part of the larger ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segdistill.data.dataset import DataSelection
from segdistill.ops import generator


def chosen_rows(selection: DataSelection, domain: str, count: int) -> Sequence[int]:
    """Which of the domain's ``count`` images ``selection.fraction`` leaves, ascending.

    They are the first of an order that depends on the domain, the split and ``fraction_seed`` alone. 1/16, 1/8 and
    1/4 of the 2,975 images of Cityscapes are the customary 186, 372 and 744; which lists the papers drew is not
    established (spec G.5), so the order is ours, and an official list goes into ``list``.
    """
    if selection.fraction is None:
        return range(count)
    order = torch.randperm(count, generator=generator("fraction", domain, selection.split, selection.fraction_seed))
    return sorted(order[: max(1, round(count * selection.fraction))].tolist())
