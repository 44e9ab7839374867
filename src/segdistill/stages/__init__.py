"""Stages: what reads networks from disk, trains, and writes what it made to its folder. One table of their kinds."""

from segdistill.stages.base import StageConfig, StageContext, StageResult
from segdistill.stages.distill import DistillConfig
from segdistill.stages.task import TaskConfig

STAGES: dict[str, type[StageConfig]] = {"distill": DistillConfig, "task": TaskConfig}

__all__ = ["STAGES", "StageConfig", "StageContext", "StageResult"]
