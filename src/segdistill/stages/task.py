"""Task learning: a decoder (and, unless frozen, the encoder) learns the classes from source labels.

Three of the papers' arms are this one stage (GKD, arXiv 2603.02554; spec A.10, B):
frozen encoder (GKD's second stage, the teacher's decoder), trained encoder (no distillation), and trained encoder
with a distillation term (the single-stage protocol of vanilla KD and its kin).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor, nn

from segdistill.config import Config, UserError, part_of
from segdistill.criteria import presence_loss
from segdistill.data.dataset import DataSelection
from segdistill.data.loader import Batch, StepBatches, batches
from segdistill.data.transforms import DistillAugment, DistillTransform, TaskAugment, TaskTransform
from segdistill.decoders import DECODERS
from segdistill.encoders import Encoder
from segdistill.files import write_atomic
from segdistill.methods import METHODS
from segdistill.ops import derive_seed, tokens_to_map
from segdistill.segmenter import Segmenter
from segdistill.stages.base import ModelConfig, StageConfig, StageContext, StageResult, count, need, need_decoder
from segdistill.stages.distill import Distillation
from segdistill.stages.views import student_views
from segdistill.train.loop import Objective, train
from segdistill.train.optim import PolyConfig, parameter_groups
from segdistill.types import Features, LossTerms, Views
from segdistill.weights import save_encoder


class ProxyConfig(Config):
    """Unlabelled images that only the distillation term of a task stage sees (control: vanilla KD with the proxy)."""

    data: DataSelection
    augment: DistillAugment = DistillAugment()
    batch: int = Field(16, ge=1, description="proxy images per step over all processes")


class TaskConfig(StageConfig):
    """Settings of a task stage; the defaults are the authors'."""

    type: Literal["task"] = "task"
    model: Literal["student", "teacher"] = "student"
    freeze_encoder: bool = Field(False, description="GKD: true; always true for the teacher")
    augment: TaskAugment = TaskAugment()
    optimizer: PolyConfig = PolyConfig()
    method: part_of("method", METHODS) | None = None  # type: ignore[valid-type]
    proxy: ProxyConfig | None = Field(None, description="images for the distillation term alone")
    presence_weight: float = Field(0.0, ge=0, description="ours: weight of a class-presence loss on the CLS token")

    def selections(self) -> tuple[DataSelection, ...]:
        """The labelled images and the proxy's."""
        return (self.data,) if self.proxy is None else (self.data, self.proxy.data)


class TaskObjective(Objective):
    """A segmenter that learns from labels, with an optional distillation term."""

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        frozen: bool,
        distillation: Distillation | None,
        presence_weight: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.segmenter, self.frozen, self.distillation = segmenter, frozen, distillation
        self.presence_weight = presence_weight
        self.presence: nn.Linear | None = None
        if presence_weight:
            width = self.encoder.spec((-1,)).cls_channels
            if width is None:
                raise UserError("presence_weight needs an encoder with a CLS token; set it to 0")
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.presence = nn.Linear(width, segmenter.num_classes)
        segmenter.encoder.requires_grad_(not frozen)

    @property
    def encoder(self) -> Encoder:
        """The segmenter's, which takes any module with an encoder's methods."""
        return cast(Encoder, self.segmenter.encoder)

    def trained(self) -> dict[str, nn.Module]:
        """The decoder, the encoder unless it is frozen, and the heads of the extra terms."""
        modules: dict[str, nn.Module] = {"decoder": self.segmenter.decoder}
        if not self.frozen:
            modules["encoder"] = self.segmenter.encoder
        if self.distillation is not None:
            modules["method"] = self.distillation.method
        if self.presence is not None:
            modules["presence"] = self.presence
        return modules

    def train(self, mode: bool = True) -> TaskObjective:
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.segmenter.encoder.eval()
        return self

    def forward(self, batch: Batch, step: int, steps: int) -> LossTerms:
        """Task terms on the labelled images, distillation terms on them and on the batch's proxy images."""
        images, labels = batch["image"].float() / 255.0, batch["label"]
        taps = self.segmenter.taps
        if self.distillation is None:
            with torch.set_grad_enabled(not self.frozen and torch.is_grad_enabled()):
                features = self.segmenter.encoder(images, taps)
            return self._task_terms(features, labels)
        labelled = images.shape[0]
        if "proxy" in batch:
            images = torch.cat([images, batch["proxy"].float() / 255.0])
        mask = self.distillation.mask(images, step)
        views = student_views(self.encoder, images, taps + self.distillation.needs.taps, mask)
        terms = self._task_terms(_first(views.plain, labelled, len(taps)), labels)
        student = Views(
            plain=_after(views.plain, len(taps)),
            masked=None if views.masked is None else _after(views.masked, len(taps)),
            mask=views.mask,
        )
        return terms | self.distillation(student, images, step, steps)

    def _task_terms(self, features: Features, labels: Tensor) -> LossTerms:
        maps = tuple(tokens_to_map(tokens, features.grid) for tokens in features.tokens)
        terms = self.segmenter.decoder.loss(maps, labels)
        if self.presence is not None:
            assert features.cls is not None
            terms["presence"] = self.presence_weight * presence_loss(self.presence(features.cls), labels)
        return terms

    def diagnostics(self) -> dict[str, float]:
        """What the method measured at the last step."""
        values = {} if self.distillation is None else getattr(self.distillation.method, "diagnostics", {})
        return {name: value.item() for name, value in values.items()}


def build_segmenter(model: ModelConfig, encoder: Encoder, num_classes: int, *, seed: int, stage: str) -> Segmenter:
    """The encoder with a fresh decoder on the taps of its record."""
    part = need_decoder(model, "model", stage)
    taps = encoder.record.taps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build: Any = DECODERS[part.type]  # its Config is part.settings' class
        decoder = build(part.settings, encoder.spec(taps).channels, encoder.patch, num_classes)
    return Segmenter(encoder, decoder, taps, num_classes)


def run_task(config: TaskConfig, context: StageContext) -> StageResult:
    """Train on source labels; leaves ``decoder.safetensors`` and, where it was trained, ``encoder.safetensors``."""
    is_teacher = config.model == "teacher"
    model = need(context.teacher if is_teacher else context.student, config.model, context.label)
    encoder = context.build_teacher() if is_teacher else context.build_student()
    frozen = config.freeze_encoder or is_teacher
    check_terms(config)
    dataset = context.open(config.data)
    seed = (context.seed, config.name)
    segmenter = build_segmenter(
        model, encoder, len(dataset.names), seed=derive_seed(*seed, "decoder"), stage=context.label
    )
    distillation = None
    if config.method is not None:
        distillation = Distillation(encoder, context.build_teacher(), config.method, seed)
    objective = TaskObjective(
        segmenter,
        frozen=frozen,
        distillation=distillation,
        presence_weight=config.presence_weight,
        seed=derive_seed(*seed, "presence"),
    )
    scales = {"encoder": config.optimizer.encoder_lr_scale}
    trained = [(module, scales.get(name, 1.0)) for name, module in objective.trained().items()]
    seconds = train(
        context.fabric,
        objective,
        parameter_groups(trained, config.optimizer.weight_decay),
        _task_batches(config, context, seed),
        schedule=config.optimizer.schedule(config.batch),
        betas=config.optimizer.betas,
        settings=context.loop_settings(config, config.optimizer.clip),
        folder=context.folder / "checkpoint",
        log=context.log,
    )
    if context.fabric.is_global_zero:
        state = {key: value.detach().cpu().contiguous() for key, value in segmenter.decoder.state_dict().items()}
        write_atomic(context.folder / "decoder.safetensors", lambda file: file.write(save(state)))
        if not frozen:
            save_encoder(encoder, context.folder / "encoder.safetensors")
    return StageResult(seconds, parameters={"encoder": count(encoder), "decoder": count(segmenter.decoder)})


def check_terms(config: TaskConfig) -> None:
    """Raise a :class:`UserError` where the extra terms of a task stage cannot work."""
    frozen = config.freeze_encoder or config.model == "teacher"
    if config.method is not None and frozen:
        raise UserError(f"stage {config.name}: a distillation term cannot train a frozen encoder; drop one of them")
    if config.proxy is not None and config.method is None:
        raise UserError(f"stage {config.name}: proxy images are for the distillation term; add a method or drop proxy")


def _task_batches(config: TaskConfig, context: StageContext, seed: tuple[int | str, ...]):  # noqa: ANN202
    """Order of steps -> labelled batches, each with the step's proxy images where the stage has some."""
    fabric, size = context.fabric, context.source.size
    dataset = context.open(config.data)
    if problems := context.source.problems(config.data, labelled=True):
        raise UserError(f"stage {config.name}: {'; '.join(problems)}")
    processes = {"rank": fabric.global_rank, "world_size": fabric.world_size}
    labelled = StepBatches(dataset, TaskTransform(config.augment, size), batch=config.batch, seed=seed, **processes)
    if config.proxy is None:
        return lambda order: batches(labelled, order, context.workers)
    proxy = StepBatches(
        context.open(config.proxy.data, "proxy_images.txt"),
        DistillTransform(config.proxy.augment, size),
        batch=config.proxy.batch,
        seed=(*seed, "proxy"),
        **processes,
    )

    def both(order: Sequence[int]) -> Iterator[Batch]:
        pairs = zip(batches(labelled, order, context.workers), batches(proxy, order, context.workers), strict=True)
        return (batch | {"proxy": extra["image"]} for batch, extra in pairs)

    return both


def _first(features: Features, rows: int, taps: int) -> Features:
    """The first ``taps`` taps of the first ``rows`` images."""
    cls = None if features.cls is None else features.cls[:rows]
    return Features(tokens=tuple(tokens[:rows] for tokens in features.tokens[:taps]), cls=cls, grid=features.grid)


def _after(features: Features, taps: int) -> Features:
    """All taps but the first ``taps``."""
    return Features(tokens=features.tokens[taps:], cls=features.cls, grid=features.grid)
