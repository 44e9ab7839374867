"""The table of tasks."""

from __future__ import annotations

from segdistill.tasks.base import Task
from segdistill.tasks.detection import Detection
from segdistill.tasks.instance import Instance
from segdistill.tasks.semantic import Semantic

TASKS: dict[str, Task] = {"semantic": Semantic(), "instance": Instance(), "detection": Detection()}
