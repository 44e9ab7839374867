"""The procedural driving world: deterministic street scenes with classes, instances and depth, in many domains.

``render("night", "val", 3, size=(96, 192))`` is a pure function of its arguments; nothing is downloaded or saved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segdistill.config import UserError, choose
from segdistill.world import scene, style
from segdistill.world.classes import CLASSES, COLORS, IGNORE, LABEL_SPACES, THINGS, LabelSpace
from segdistill.world.dice import Dice
from segdistill.world.domains import DOMAINS, Domain, redrawn
from segdistill.world.lens import expose
from segdistill.world.proxy import proxy
from segdistill.world.render import geometry
from segdistill.world.shade import shade

__all__ = [
    "CLASSES",
    "COLORS",
    "DOMAINS",
    "IGNORE",
    "LABEL_SPACES",
    "SIDES",
    "SPLITS",
    "THINGS",
    "Domain",
    "LabelSpace",
    "Rendered",
    "render",
]

# Disjoint ranges of scene numbers: index i of a split is scene SPLITS[split][i], so no scene is in two splits.
SPLITS: dict[str, range] = {
    "train": range(0, 1_000_000),
    "val": range(1_000_000, 1_100_000),
    "test": range(1_100_000, 1_200_000),
    "pretrain": range(2_000_000, 12_000_000),
}


SIDES = range(16, 4097)
"""Height and width of an image that can be rendered, in pixels."""


@dataclass(frozen=True, eq=False)
class Rendered:
    """One image with its full ground truth."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    label: np.ndarray  # (H, W) uint8 trainIds, 255 = ignore
    instance: np.ndarray  # (H, W) int32, 0 = none; positive only on the classes of THINGS
    depth: np.ndarray  # (H, W) float32 metres, at most 1000 (the sky)


def render(domain: str, split: str, index: int, *, size: tuple[int, int], seed: int = 0, redraw: int = 0) -> Rendered:
    """Image ``index`` of a domain's split at ``size`` (height, width).

    The scene is the same at every size. ``seed`` re-draws the scenes, a non-zero ``redraw`` the domain's parameters
    (each within its own box). A `UserError` names the allowed values.
    """
    key, record = _key(domain, split, index, seed, redraw)
    height, width = size
    if height not in SIDES or width not in SIDES:
        raise UserError(f"size is (height, width) in pixels, each from {SIDES[0]} to {SIDES[-1]}, got {size!r}")
    layout = Dice(*key, 1)
    described = proxy(record.city, layout) if record.role == "proxy" else scene.street(record.city, layout)
    drawn = style.draw(record.look, Dice(*key, 2))
    buffers = geometry(described, (height, width))
    image = expose(shade(described, buffers, drawn), drawn, (*key, 3))
    return Rendered(image, buffers.label, buffers.instance, buffers.depth)


def _key(domain: str, split: str, index: int, seed: int, redraw: int) -> tuple[tuple[int, ...], Domain]:
    """The integers that seed one image, and the domain's (possibly re-drawn) record; checks all arguments."""
    record = choose("domain", domain, DOMAINS)
    numbers = choose("split", split, SPLITS)
    if not 0 <= index < len(numbers):
        raise UserError(f"index of split '{split}' must be from 0 to {len(numbers) - 1}, got {index}")
    if seed < 0 or redraw < 0:
        raise UserError(f"seed and redraw must not be negative, got seed={seed}, redraw={redraw}")
    return (record.key, seed, redraw, numbers[index]), redrawn(record, redraw)
