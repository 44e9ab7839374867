"""Domain generalisation baselines: one paper, one file. They train on labelled source images alone.

An entry of :data:`GENERALIZERS` is a :class:`~segdistill.generalize.base.Generalizer`; a task stage uses those that its
setting ``generalize`` lists. It sees images, maps and features, never a network. Rare-class sampling, which chooses
the images, is in :mod:`segdistill.data.rare_class`.
"""

from __future__ import annotations

from segdistill.generalize.advstyle import AdvStyle
from segdistill.generalize.base import Facts, Generalizer, Seen, Wants
from segdistill.generalize.feature_distance import FeatureDistance
from segdistill.generalize.shade import Shade
from segdistill.generalize.tldr import TLDR

GENERALIZERS: dict[str, type[Generalizer]] = {
    "advstyle": AdvStyle,
    "feature_distance": FeatureDistance,
    "shade": Shade,
    "tldr": TLDR,
}

__all__ = ["GENERALIZERS", "TLDR", "AdvStyle", "Facts", "FeatureDistance", "Generalizer", "Seen", "Shade", "Wants"]
