"""The student's start: a slice of its teacher, chosen on a few images without labels. Ours.

See :mod:`segdistill.encoders.inherit` for what is cut and how.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from segdistill.data.loader import StepBatches, batches
from segdistill.data.transforms import DistillAugment, DistillTransform
from segdistill.encoders import outline
from segdistill.encoders.inherit import check_pair, inherit
from segdistill.stages.base import ModelConfig, StageConfig, StageContext, StageResult, count, weights_read
from segdistill.weights import save_encoder


class InheritConfig(StageConfig):
    """Settings of an inherit stage; ours."""

    type: Literal["inherit"] = "inherit"
    steps: Literal[0] = Field(0, exclude=True)  # type: ignore[assignment]
    calibrate: int = Field(128, ge=1, le=10**6, description="crops on which the slice is chosen")
    augment: DistillAugment = DistillAugment(crop_scale=(0.3, 1.0), keep_aspect=True, rand_augment=None, erase=0.0)
    blocks: tuple[Annotated[int, Field(ge=0, le=1000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="the teacher's blocks that the student's take after, rising; None: evenly spaced",
    )
    stem_steps: int = Field(
        1000,
        ge=0,
        le=10**6,
        description="steps of Adam that fit a stem of several convolutions to the teacher's patch embedding",
    )

    @property
    def roles(self) -> tuple[str, ...]:
        """The student takes after the teacher."""
        return ("student", "teacher")

    @property
    def measured(self) -> int:
        """The images that the teacher runs on."""
        return self.calibrate

    def faults(self) -> list[str]:
        """Also settings of training."""
        lines = super().faults()
        return [*lines, "accumulate is for stages that train; remove it"] if self.accumulate > 1 else lines

    def misfits(self, models: Mapping[str, ModelConfig], classes: Sequence[str]) -> None:
        """Compares both encoders, without weights."""
        small, large = (outline(models[role].encoder) for role in self.roles)
        check_pair(small, large, self.blocks)

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
    images = [batch["image"].float() / 255.0 for batch in batches(data, order, context.workers)]
    kept, unexplained = inherit(student, teacher, images, blocks, config.stem_steps)
    if context.fabric.is_global_zero:
        save_encoder(student, context.folder / "encoder.safetensors")
    return StageResult(
        time.perf_counter() - began,
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
