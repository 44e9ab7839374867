"""Label fractions: a share of the images, or the rest of them; smaller shares are subsets of larger ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from segdistill.data.dataset import DataSelection
from segdistill.ops import generator


def chosen_rows(selection: DataSelection, domain: str, count: int) -> Sequence[int]:
    """The indices of the domain's ``count`` images that ``selection.fraction`` keeps, ascending.

    They are the first of a random order that depends only on the domain, the split and ``fraction_seed``. 1/16, 1/8 and
    1/4 of the 2,975 images of Cityscapes are the customary 186, 372 and 744. The papers' lists are unknown (spec G.5):
    the order is ours; use ``list`` for an official list. ``rest`` takes the others; of one image they are none.
    """
    if selection.fraction is None:
        return range(count)
    order = torch.randperm(count, generator=generator("fraction", domain, selection.split, selection.fraction_seed))
    kept = max(1, round(count * selection.fraction))
    return sorted((order[kept:] if selection.rest else order[:kept]).tolist())
