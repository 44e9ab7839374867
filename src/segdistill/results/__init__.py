"""Reads finished run folders and compares them; the input of reports and tables. Does not import torch."""

from segdistill.results.compare import (
    TEACHER,
    Arm,
    Comparison,
    Row,
    Stat,
    arm_of,
    collect,
    panels,
    picture_indices,
    worst_images,
)
from segdistill.results.corruptions import Corruptions
from segdistill.results.lead import Lead
from segdistill.results.run import DomainScore, Metric, ModelResult, Run, Stage, Step, load_run

__all__ = [
    "TEACHER",
    "Arm",
    "Comparison",
    "Corruptions",
    "DomainScore",
    "Lead",
    "Metric",
    "ModelResult",
    "Row",
    "Run",
    "Stage",
    "Stat",
    "Step",
    "arm_of",
    "collect",
    "load_run",
    "panels",
    "picture_indices",
    "worst_images",
]
