"""Distance to the features of a frozen encoder on the pixels of countable objects (things).

Labels are reduced to the features' grid: a cell has a class if at least ``ratio`` of its pixels have it, and is ignored
otherwise. Networks pretrained on ImageNet know things, not the "stuff" of a street.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from segdistill.config import Config, Names, UserError
from segdistill.criteria import IGNORE
from segdistill.processes import shared_count
from segdistill.types import Features

THINGS = (
    "traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    "traffic object", "human", "heavy vehicle", "two-wheeler",
)  # fmt: skip
"""DAFormer's and SHADE's choice among the classes of Cityscapes, and its merged classes in the built-in world."""


class ThingsConfig(Config):
    """Which cells are compared."""

    things: Names | None = Field(
        None, min_length=1, description="names of the classes; None: traffic lights, signs, people and vehicles"
    )
    ratio: float = Field(0.75, gt=0.5, le=1, description="least share of a cell's pixels that have its class")


def thing_classes(config: ThingsConfig, names: Sequence[str]) -> tuple[int, ...]:
    """Their indices in ``names``; a :class:`UserError` for unknown names, or if none of the default ones is there.

    The default ones are found in any case: "Car" is a car.
    """
    allowed = f"allowed: {', '.join(names)}"
    if strange := [name for name in config.things or () if name not in names]:
        raise UserError(f"things: the data has no class '{strange[0]}'; {allowed}")
    if config.things is None:
        found = tuple(index for index, name in enumerate(names) if name.lower() in THINGS)
    else:
        found = tuple(index for index, name in enumerate(names) if name in config.things)
    if not found:
        raise UserError(
            f"things: the data has none of {', '.join(THINGS)}; name the classes that are objects; {allowed}"
        )
    return found


def reduced(
    labels: Int[Tensor, "b h w"], grid: tuple[int, int], ratio: float, classes: Sequence[int]
) -> Int[Tensor, "b _p _q"]:
    """Labels on ``grid``: the one of ``classes`` that a share ``ratio`` (above 0.5) of a cell's pixels has, or 255."""
    small = torch.full((len(labels), *grid), IGNORE, dtype=torch.int64, device=labels.device)
    for each in classes:
        share = F.adaptive_avg_pool2d((labels == each).float()[:, None], grid)[:, 0]
        small = torch.where(share >= ratio - 1e-6, each, small)
    return small


def inside(
    labels: Int[Tensor, "b h w"], grid: tuple[int, int], *, ratio: float, classes: Sequence[int]
) -> Bool[Tensor, "b _n"]:
    """The cells of ``grid`` that show one of ``classes``."""
    return (reduced(labels, grid, ratio, classes) != IGNORE).flatten(1)


def thing_distance(
    own: Features,
    frozen: Features,
    inside: Callable[[tuple[int, int]], Bool[Tensor, "b _n"]],
    distance: Callable[[Tensor], Tensor],
) -> Float[Tensor, ""]:
    """Mean of ``distance`` of the deepest tap's difference (..., C) over the cells ``inside``, all views and processes.

    ``own`` has the rows of every view, ``frozen`` those of the images alone. 0 if no cell is inside.
    """
    views = len(own.tokens[-1]) // len(frozen.tokens[-1])
    mask = inside(own.grid).repeat(views, 1)
    target = frozen.tokens[-1].detach().float().repeat(views, 1, 1)
    error = distance(own.tokens[-1].float() - target)  # (views * B, N)
    return (error * mask).sum() / shared_count(mask.sum())
