"""Stages: what reads networks from disk, trains, and writes what it made to its folder. One table of their kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from segdistill.stages.base import StageConfig, StageContext, StageResult
from segdistill.stages.distill import DistillConfig, run_distill
from segdistill.stages.task import TaskConfig, run_task


class Kind(NamedTuple):
    """A kind of stage: its settings, and what runs it."""

    config: type[StageConfig]
    run: Callable[[Any, StageContext], StageResult]


STAGES: dict[str, Kind] = {"distill": Kind(DistillConfig, run_distill), "task": Kind(TaskConfig, run_task)}

__all__ = ["STAGES", "Kind", "StageConfig", "StageContext", "StageResult"]
