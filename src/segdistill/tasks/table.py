"""The tasks that a recipe can name."""

from __future__ import annotations

from segdistill.tasks.base import Task
from segdistill.tasks.semantic import Semantic

TASKS: dict[str, Task] = {"semantic": Semantic()}
