"""The student's start: a slice of its teacher, chosen on a few images without labels. Ours.

See :mod:`segdistill.encoders.inherit` for what is cut and how, and :mod:`segdistill.models.inherit` for the head.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from segdistill.data.loader import StepBatches, loaded
from segdistill.data.transforms import DistillAugment, DistillTransform
from segdistill.encoders import Encoder, outline
from segdistill.encoders.inherit import check_pair, inherit
from segdistill.models import Model, check_heads, inherit_head
from segdistill.stages.base import ModelConfig, StageConfig, StageContext, StageResult, count, need, weights_read
from segdistill.stages.task import build_model
from segdistill.tasks.table import TASKS
from segdistill.weights import save_encoder, save_head


class InheritConfig(StageConfig):
    """Settings of an inherit stage; ours. With ``hands_over: [encoder, head]`` the head is the teacher's, too."""

    type: Literal["inherit"] = "inherit"
    task: str = Field("semantic", exclude=True, description="set from the recipe")
    steps: Literal[0] = Field(0, exclude=True)  # type: ignore[assignment]
    calibrate: int = Field(128, ge=1, le=10**6, description="crops on which the slice is chosen")
    augment: DistillAugment = DistillAugment(crop_scale=(0.3, 1.0), keep_aspect=True, rand_augment=None, erase=0.0)
    blocks: tuple[Annotated[int, Field(ge=0, le=1000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="the teacher block that initialises each student block, in ascending order; None: evenly spaced",
    )
    stem_steps: int = Field(
        2000,
        ge=0,
        le=10**6,
        description="steps of Adam that fit a stem of several convolutions to the teacher's patch embedding",
    )

    @property
    def roles(self) -> tuple[str, ...]:
        """The teacher, whose blocks initialise the student's, too."""
        return ("student", "teacher")

    @property
    def trains(self) -> tuple[str, ...]:
        """The head only if it is handed over."""
        return ("encoder", "head") if "head" in (self.hands_over or ()) else ("encoder",)

    @property
    def predicts(self) -> str | None:
        """The teacher, whose head is inherited."""
        return "teacher" if "head" in self.trains else None

    @property
    def measured(self) -> int:
        """The images that the teacher runs on."""
        return self.calibrate

    def faults(self) -> list[str]:
        """Also settings of training."""
        lines = super().faults()
        return [*lines, "accumulate is for stages that train; remove it"] if self.accumulate > 1 else lines

    def misfits(self, models: Mapping[str, ModelConfig], classes: Sequence[str]) -> None:
        """Compares both encoders and, if it is inherited, both heads, without weights."""
        encoders = [outline(models[role].encoder) for role in self.roles]
        check_pair(*encoders, self.blocks)  # type: ignore[call-arg]
        if "head" in self.trains:
            pairs = zip(self.roles, encoders, strict=True)
            check_heads(*(_network(self, models[role].bare(), encoder, classes).head for role, encoder in pairs))

    def run(self, context: StageContext) -> StageResult:
        """See :func:`run_inherit`."""
        return run_inherit(self, context)


def run_inherit(config: InheritConfig, context: StageContext) -> StageResult:
    """Slice the teacher's encoder into the student's; writes ``encoder.safetensors`` to the stage's folder.

    Every process does the same on the CPU; the first one writes.
    """
    began = time.perf_counter()
    student, teacher = context.build_student().eval(), context.build_teacher()
    blocks = check_pair(student, teacher, config.blocks)
    transform: Any = DistillTransform(config.augment, context.source.size)
    data = StepBatches(context.open(config.data), transform, batch=config.batch, seed=(context.seed, config.name))

    order: Sequence[int] = range(-(-config.calibrate // config.batch))
    images = [batch["image"].float() / 255.0 for batch in loaded(data, order, context.workers)]
    kept, unexplained = inherit(student, teacher, images, blocks, config.stem_steps)
    result = StageResult(
        0.0,
        {"encoder": count(student)},
        weights=weights_read(student=student, teacher=teacher),
        facts={
            "blocks": list(blocks),
            "spread": kept,
            "unexplained": list(unexplained),
            "summary": f"keeps {100 * kept:.0f} % of the variance of the teacher's tokens and reproduces "
            f"{100 * (1 - unexplained[-1]):.0f} % of it after the last block",
        },
    )
    if context.fabric.is_global_zero:
        save_encoder(student, context.folder / "encoder.safetensors")
    if "head" in config.trains:
        _run_head(config, context, student, teacher, images, result)
    result.seconds = time.perf_counter() - began
    return result


def _run_head(
    config: InheritConfig,
    context: StageContext,
    student: Encoder,
    teacher: Encoder,
    images: Sequence[Tensor],
    result: StageResult,
) -> None:
    """Write ``head.safetensors``, and what is known about it to ``result``."""
    classes = context.classes()
    finished = need(context.finished, "teacher", context.label)
    ours = _network(config, need(context.student, "student", context.label).bare(), student, classes).eval()
    theirs = _network(config, finished, teacher, classes).eval()
    left = inherit_head(ours, theirs, images)
    if context.fabric.is_global_zero:
        save_head(ours.head, context.folder / "head.safetensors")
    result.classes = tuple(classes)
    result.parameters["head"] = count(ours.head)
    result.weights |= weights_read(teacher_head=theirs.head)
    result.facts["head_unexplained"] = list(left)
    result.facts["summary"] += f"; the head's first layers reproduce {100 * (1 - max(left)):.0f} % or more"


def _network(config: InheritConfig, model: ModelConfig, encoder: Encoder, classes: Sequence[str]) -> Model:
    """The network of ``model`` around an existing encoder."""
    return build_model(TASKS[config.task], model, encoder, classes, seed=0, stage=config.name)
