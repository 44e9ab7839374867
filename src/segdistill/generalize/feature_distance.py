"""ImageNet feature distance of DAFormer: Hoyer et al., DAFormer (CVPR 2022, arXiv 2111.14887), section 3.4.

    L = weight * mean over thing cells of || F(x) - F_start(x) ||_2          deepest tap of the head, norm not squared

F_start is the frozen encoder as it was when the stage began (ImageNet's weights in the paper). Cells: see
:mod:`segdistill.generalize.things`. With several views of an image, as with SHADE, every view is compared with the
features of the image itself (DAFormer's domain generalisation code).
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from segdistill.generalize.base import Facts, Generalizer, Seen, Wants
from segdistill.generalize.things import ThingsConfig, inside, thing_classes, thing_distance
from segdistill.ops import full_precision
from segdistill.types import LossTerms


class FeatureDistance(Generalizer):
    """The distance; see the module's text."""

    class Config(ThingsConfig):
        """The authors' values."""

        weight: float = Field(0.005, gt=0, le=1e6, description="weight of the distance")

    wants: ClassVar[Wants] = Wants(reference=True)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config, self.things = config, thing_classes(config, facts.names)

    def terms(self, seen: Seen) -> LossTerms:
        """Weighted ``feature_distance`` term."""
        assert seen.reference is not None
        with full_precision(seen.labels):
            shown = partial(inside, seen.labels, ratio=self.config.ratio, classes=self.things)
            distance = thing_distance(seen.features, seen.reference, shown, lengths)
        return {"feature_distance": self.config.weight * distance}


def lengths(difference: Tensor) -> Tensor:
    """L2 norm over the channels; its gradient at 0 is 0."""
    return torch.linalg.vector_norm(difference, dim=-1)
