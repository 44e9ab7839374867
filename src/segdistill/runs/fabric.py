"""Devices, precision and processes of a run, and what torch says when one of its processes was killed."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from segdistill.config import UserError, first_line
from segdistill.recipe import Recipe
from segdistill.runs.folder import settled

if TYPE_CHECKING:
    from lightning.fabric import Fabric

CONNECTION = r"connection (closed|reset|refused)|broken pipe|gloo|nccl|socket|store"

PATIENCE = timedelta(days=1)
"""How long processes wait for one that works alone, such as for pseudo-labels or a rendered data set."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn the error that torch raises after another process was killed into a one-line message."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker" in text:
            raise UserError(
                f"a data-loading process was killed ({first_line(error, 120)}), often because memory ran out; run the "
                "command again to continue, with workers=0 to load data in this process"
            ) from None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and re.search(CONNECTION, text, re.IGNORECASE):
            raise UserError(
                f"another process of this run was killed ({first_line(error, 120)}); run the command again to continue"
            ) from None
        raise


def make_fabric(recipe: Recipe) -> Fabric:
    """Fabric for one process, or for all processes that ``torchrun`` started."""
    from lightning.fabric import Fabric  # brings torchmetrics and matplotlib: scoring and training need it, loading not
    from lightning.fabric.strategies import DDPStrategy
    from lightning_utilities.core import rank_zero

    precision: Any = settled(recipe).precision
    if recipe.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator=cuda, but torch sees no GPU here; use accelerator=cpu or auto")
    rank_zero.log.setLevel(logging.WARNING)  # the command's first lines already name the precision
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    fabric = Fabric(
        accelerator=recipe.accelerator,
        devices=local,
        num_nodes=max(1, processes // local),
        strategy=DDPStrategy(find_unused_parameters=True, timeout=PATIENCE) if processes > 1 else "auto",
        precision=precision,
    )
    if fabric.device.type == "cpu" and (stages := [stage.name for stage in recipe.stages if stage.needs_gpu]):
        raise UserError(f"stage {stages[0]}: decode=gpu, but this run is on the CPU; use decode=cpu")
    fabric.launch()
    if fabric.device.type == "cuda":  # products that mixed precision keeps in fp32 have bf16 or fp16 factors
        torch.set_float32_matmul_precision("highest" if precision == "32-true" else "high")
    return fabric
