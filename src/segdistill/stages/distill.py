"""Feature distillation without labels: GKD's task-agnostic stage on proxy images and its domain-agnostic stage on
source images are this one function with different data (GKD, arXiv 2603.02554; spec A.0, A.7, A.8).

Only the student's encoder is handed over; the method's heads are discarded, and the next stage creates new ones.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from segdistill.config import Part, Size, parse, part_of
from segdistill.data.gpu_decode import EncodedBatches, on_device
from segdistill.data.loader import StepBatches, loaded
from segdistill.data.transforms import DistillAugment, DistillTransform
from segdistill.encoders import Encoder, EncoderConfig, record_of
from segdistill.heads import Head
from segdistill.methods import METHODS
from segdistill.ops import derive_seed, generator, own_mask, random_mask, resize
from segdistill.processes import share
from segdistill.stages.base import StageConfig, StageContext, StageResult, count, weights_read
from segdistill.stages.fitting import build_method, needs_of
from segdistill.stages.teacher_cache import CacheConfig, Numbers, TeacherCache, open_cache
from segdistill.stages.views import student_views, teacher_views
from segdistill.train.loop import Objective
from segdistill.train.optim import CosineConfig
from segdistill.types import LossTerms, Mask, Views
from segdistill.weights import Resample, save_encoder


class DistillConfig(StageConfig):
    """Settings of a distillation stage; the defaults are the authors'."""

    type: Literal["distill"] = "distill"
    method: part_of("method", METHODS)  # type: ignore[valid-type]
    augment: DistillAugment = DistillAugment()
    optimizer: CosineConfig = CosineConfig()
    repeats: int = Field(3, ge=1, le=1000, description="repeated augmentation: an epoch sees 1 / repeats of the images")
    size: Size | None = Field(None, description="(H, W) of this stage's crops, pixels; None: data.size")
    patch: int | None = Field(
        None, ge=1, le=1024, description="patch size of plain ViTs in this stage, pixels; None: the model's"
    )
    teacher_resample: Resample | None = Field(
        None, description="how to resample the teacher's weights to size and patch: papers | hub | timm; None: its own"
    )

    decode: Literal["cpu", "gpu"] = Field(
        "cpu",
        description="gpu: it decodes, crops and flips JPEG files; needs rand_augment null, erase 0 and no cache",
    )
    cache: CacheConfig | None = Field(
        None,
        description="cache of augmented views and the teacher's tokens on disk; None: the teacher runs at every step",
    )

    def fit(self, encoder: EncoderConfig, *, teacher: bool = False) -> EncoderConfig:
        """The encoder's settings with this stage's size and patch, if given (spec A.6)."""
        changes: dict[str, Any] = {}
        if self.size is not None and record_of(encoder.name).sized:
            changes["image_size"] = self.size
        if self.patch is not None and record_of(encoder.name).plain:
            changes["patch"] = self.patch
        if self.teacher_resample is not None and teacher:
            changes["resample"] = self.teacher_resample
        return parse(EncoderConfig, encoder.model_dump() | changes, encoder.name) if changes else encoder

    @property
    def needs_gpu(self) -> bool:
        """Whether it decodes there."""
        return self.decode == "gpu"

    def crop(self, default: tuple[int, int]) -> tuple[int, int]:
        """Its own size, or the default."""
        return self.size or default

    def faults(self) -> list[str]:
        """Also a method whose inputs this stage cannot provide."""
        lines = super().faults()
        if self.decode == "gpu" and (self.augment.rand_augment or self.augment.erase or self.cache is not None):
            lines.append("decode=gpu only crops and flips: set augment.rand_augment=null, augment.erase=0 and no cache")
        if not self.reads_logits:
            return lines
        return [
            *lines,
            f"{self.method.type} compares class scores, but a distill stage has no head; "
            "use it in a task stage, or choose settings that compare features",
        ]

    def run(self, context: StageContext) -> StageResult:
        """See :func:`run_distill`."""
        return run_distill(self, context)


class Distillation(nn.Module):
    """A frozen teacher and the method that compares a student with it; used by this stage and by single-stage KD.

    ``teacher_head`` is given if and only if the method reads logits.
    """

    def __init__(
        self,
        student: Encoder,
        teacher: Encoder,
        part: Part,
        seed: tuple[int | str, ...],
        teacher_head: Head | None = None,
    ) -> None:
        super().__init__()
        self.teacher: Any = teacher
        self.teacher_head = teacher_head
        self.seed, self.mask_grid = seed, student.mask_grid
        self.needs = needs_of(part)
        assert self.needs.logits == (teacher_head is not None), part.type
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(*seed, "method"))
            self.method: Any = build_method(part, student, teacher)

    def train(self, mode: bool = True) -> Distillation:
        """Set the mode of everything except the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        if self.teacher_head is not None:
            self.teacher_head.eval()
        return self

    def mask(self, images: Tensor, step: int) -> Mask | None:
        """The tokens hidden in the student's masked view at this step: a function of (seed, step, sample).

        The mask is drawn for the global batch; each process and micro-batch keeps its own samples.
        """
        if not self.needs.masked:
            return None
        h, w = self.mask_grid(images.shape[-2], images.shape[-1])
        rng, batch = generator(*self.seed, "mask", step, 0), images.shape[0] * share()[1]
        mask = own_mask(random_mask(batch, h * w, rng=rng, **self.method.mask_settings()))
        return Mask(samples=mask.samples.to(images.device), tokens=mask.tokens.to(images.device))

    def forward(self, student: Views, images: Tensor, step: int, steps: int, teacher: Views | None = None) -> LossTerms:
        """The method's loss terms, given the student's views of ``images`` (B, 3, H, W) in [0, 1].

        ``teacher``: its views, if already computed. If the heads' strides differ, the student's logits are resampled to
        the size of the teacher's.
        """
        if hasattr(self.method, "set_progress"):
            self.method.set_progress(step / steps)
        if teacher is None:
            teacher = teacher_views(self.teacher, images, self.needs.of_teacher, self.teacher_head)
        if teacher.logits is not None:
            assert student.logits is not None
            height, width = teacher.logits.shape[-2:]
            student = replace(student, logits=resize(student.logits, (height, width)))
        return self.method(student, teacher)

    def diagnostics(self) -> dict[str, float]:
        """The method's diagnostics of the last step."""
        return {name: value.item() for name, value in getattr(self.method, "diagnostics", {}).items()}


class DistillObjective(Objective):
    """Trains the student's encoder with a distillation loss."""

    def __init__(self, student: Encoder, distillation: Distillation, cache: TeacherCache | None = None) -> None:
        super().__init__()
        self.student, self.distillation, self.cache = student, distillation, cache

    def optimized(self) -> dict[str, nn.Module]:
        """The student and the method's own parameters."""
        return {"student": self.student, "method": self.distillation.method}

    def forward(self, batch: dict[str, Tensor], step: int, steps: int) -> LossTerms:
        """The method's loss terms on the batch's images (B, 3, H, W) uint8."""
        images = batch["image"].float() / 255.0
        mask = self.distillation.mask(images, step)
        needs = self.distillation.needs
        views = student_views(self.student, images, needs.taps, mask, plain=needs.plain)
        teacher = None if self.cache is None else self.cache.views_of(batch)
        return self.distillation(views, images, step, steps, teacher)

    def diagnostics(self) -> dict[str, float]:
        """The method's."""
        return self.distillation.diagnostics()


def run_distill(config: DistillConfig, context: StageContext) -> StageResult:
    """Distil the teacher's encoder into the student's; writes ``encoder.safetensors`` to the stage's folder."""
    student, seed = context.build_student(config.fit), (context.seed, config.name)
    teacher = context.build_teacher(partial(config.fit, teacher=True))
    read = weights_read(student=student, teacher=teacher)
    distillation = Distillation(student, teacher, config.method, seed)
    dataset, size = context.open(config.data), config.size or context.source.size
    transform: Any = DistillTransform(config.augment, size)
    cache = None
    if config.cache is not None:
        facts = {"data": context.source.facts(config.data), "augment": config.augment.model_dump(mode="json")}
        cache = open_cache(
            config.cache,
            teacher,
            distillation.needs.of_teacher,
            dataset,
            transform,
            facts,
            size=size,
            batch=config.batch,
            workers=context.workers,
            fabric=context.fabric,
            progress=context.progress,
        )
        distillation.teacher, dataset, transform = nn.Identity(), Numbers(dataset), cache
    else:
        context.shard(teacher)
    del teacher  # with a cache its memory is free from here on
    data: Any = (EncodedBatches if config.needs_gpu else StepBatches)(
        dataset,
        transform,
        batch=config.batch,
        seed=seed,
        repeats=config.repeats,
        **context.share,
    )
    made: Any = partial(on_device, batches=data, device=context.fabric.device) if config.needs_gpu else iter
    seconds = context.train(
        config,
        config.optimizer,
        DistillObjective(student, distillation, cache),
        [(student, 1.0), (distillation.method, 1.0)],
        lambda order: made(loaded(data, order, context.workers)),
    )
    if context.fabric.is_global_zero:
        save_encoder(student, context.folder / "encoder.safetensors")
    parameters = {"encoder": count(student), "method": count(distillation.method)}
    return StageResult(seconds, parameters, weights=read)
