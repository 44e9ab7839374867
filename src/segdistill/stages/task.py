"""Task learning: a head (and, unless frozen, the encoder) learns the task from source labels.

Three protocols of the papers are this one stage (GKD, arXiv 2603.02554; spec A.10, B): frozen encoder (GKD's second
stage, and the teacher's head), trained encoder (no distillation), and trained encoder with a distillation term (the
single-stage protocol of vanilla KD and similar methods).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor, nn

from segdistill.config import Config, choose, parse, part_of
from segdistill.data.dataset import DataSelection, Dataset
from segdistill.data.loader import loaded
from segdistill.data.rare_class import RareClassConfig
from segdistill.encoders import Encoder, build_encoder, outline
from segdistill.generalize import GENERALIZERS
from segdistill.heads import HEADS
from segdistill.methods import METHODS
from segdistill.models import Model
from segdistill.ops import derive_seed
from segdistill.stages.base import (
    ModelConfig,
    StageConfig,
    StageContext,
    StageResult,
    count,
    need,
    need_head,
    weights_read,
)
from segdistill.stages.distill import Distillation
from segdistill.stages.fitting import presence_width, sketch
from segdistill.stages.generalized import (
    GeneralizedObjective,
    StyleConfig,
    build_generalizers,
    generalize_faults,
    wants_of,
)
from segdistill.stages.task_batches import (
    ProxyConfig,
    TaskCaches,
    cache_faults,
    labelled_batches,
    open_task_caches,
    task_batches,
)
from segdistill.stages.teacher_cache import CacheConfig
from segdistill.stages.views import split_taps, student_views
from segdistill.tasks.base import Task
from segdistill.tasks.table import TASKS
from segdistill.train.loop import Objective
from segdistill.train.optim import PolyConfig
from segdistill.types import Batch, LossTerms, Views
from segdistill.weights import LoadReport, load_head_weights, save_encoder, save_head


def _read_augment(value: object, info: Any) -> object:
    """Parse the settings of the task's augmentation."""
    wanted = choose("task", str(info.data.get("task")), TASKS).Augment
    return value if isinstance(value, wanted) else parse(wanted, value)


AnyAugment = Annotated[SerializeAsAny[Config], BeforeValidator(_read_augment)]


class TaskConfig(StageConfig):
    """Settings of a task stage; the defaults are the authors'."""

    type: Literal["task"] = "task"
    model: Literal["student", "teacher"] = "student"
    freeze_encoder: bool = Field(False, description="GKD: true; always true for the teacher")
    adapter: bool = Field(
        False, description="ours: of the encoder, also the teacher's, train its adapter (encoder.rein) alone"
    )
    task: str = Field("semantic", exclude=True, description="set from the recipe")
    augment: AnyAugment = Field(
        {}, validate_default=True, description="augmentation of the labelled images; its settings depend on the task"
    )
    optimizer: PolyConfig = PolyConfig()
    method: part_of("method", METHODS) | None = None  # type: ignore[valid-type]
    proxy: ProxyConfig | None = Field(None, description="unlabelled images for the distillation term alone")
    cache: CacheConfig | None = Field(
        None,
        description="cache of augmented views of the labelled images, with the teacher's tokens, on disk; "
        "None: the teacher runs at every step",
    )
    presence_weight: float = Field(
        0.0, ge=0, le=1e6, description="ours: weight of a class-presence loss on the CLS token"
    )
    generalize: tuple[part_of("generalizer", GENERALIZERS), ...] = Field(  # type: ignore[valid-type]
        (), description="domain generalisation baselines; none: plain training"
    )
    styles: StyleConfig | None = Field(None, description="style images for the baselines that read some")
    rare_class: RareClassConfig | None = Field(
        None, description="choose images and crops with rare classes; None: every image once per epoch"
    )

    @property
    def roles(self) -> tuple[str, ...]:
        """The network that learns, and the teacher if there is a method."""
        return (self.model,) if self.model == "teacher" else super().roles

    @property
    def learner(self) -> str | None:
        """The network whose head learns the task."""
        return self.model

    @property
    def trains(self) -> tuple[str, ...]:
        """The head, and the student's encoder unless it is frozen, or an adapter, which is saved with its encoder."""
        frozen = (self.freeze_encoder or self.model == "teacher") and not self.adapter
        return ("head",) if frozen else ("encoder", "head")

    @property
    def batches(self) -> tuple[int, ...]:
        """Labelled, proxy and style images."""
        further = () if self.proxy is None else (self.proxy.batch,)
        return (self.batch, *further) if self.styles is None else (self.batch, *further, self.batch)

    @property
    def learned_per_step(self) -> int:
        """Images that its head learns from, as many as they cost with all views."""
        return self.batch * max([1, *(GENERALIZERS[part.type].passes for part in self.generalize)])

    @property
    def compares_start(self) -> bool:
        """Whether the encoder is compared with a frozen copy of itself."""
        return any(wants_of(part).reference for part in self.generalize)

    def reads(self) -> tuple[tuple[str, DataSelection, bool], ...]:
        """The labelled images, the proxy images and the style images."""
        others = (("proxy", self.proxy), ("styles", self.styles))
        return ("", self.data, True), *((f", {name}", part.data, False) for name, part in others if part is not None)

    def faults(self) -> list[str]:
        """Also a distillation term that cannot work."""
        lines = super().faults()
        if self.method is not None and (self.freeze_encoder or self.model == "teacher"):
            lines.append("a distillation term cannot train a frozen encoder; remove the method or unfreeze it")
        if self.adapter and self.freeze_encoder:
            lines.append("adapter trains a part of the encoder; remove freeze_encoder")
        if self.proxy is not None and self.method is None:
            lines.append("proxy images are for the distillation term; add a method or remove proxy")
        lines += cache_faults(self)
        if self.presence_weight and TASKS[self.task].network.presence_loss is Model.presence_loss:
            lines.append("presence_weight: this task has no class-presence term; set it to 0")
        if (self.generalize or self.rare_class is not None) and TASKS[self.task].objects:
            lines.append(f"generalize and rare_class need a class for every pixel; the task '{self.task}' has objects")
        if self.generalize and "encoder" not in self.trains:
            lines.append("generalize: the baselines train the encoder; unfreeze the student's or remove them")
        if self.generalize and (self.method is not None or self.presence_weight):
            lines.append("generalize: remove method, proxy and presence_weight, which do not see the restyled images")
        if self.rare_class is not None and self.data.weights:
            lines.append("rare_class chooses the images of every step; remove data.weights")
        return [*lines, *generalize_faults(self.generalize, self.styles)]

    @property
    def caches(self) -> tuple[tuple[DataSelection, CacheConfig, bool], ...]:
        """Of the labelled and of the proxy images."""
        parts = ((self, True), *(() if self.proxy is None else ((self.proxy, False),)))
        return tuple((part.data, part.cache, labelled) for part, labelled in parts if part.cache is not None)

    def misfits(self, models: Mapping[str, ModelConfig], classes: Sequence[str]) -> None:
        """Also a presence term, a batch and baselines; builds the network, with random weights, for these."""
        super().misfits(models, classes)
        model = models[self.model]
        if self.presence_weight:
            presence_width(sketch(model.encoder))
        images = self.images_per_step if self.reads_logits else self.learned_per_step
        HEADS[need_head(model, self.model, self.name).type].check_batch(images // self.accumulate)
        if self.generalize:
            encoder = build_encoder(model.bare().encoder, seed=0)
            network = build_model(TASKS[self.task], model.bare(), encoder, classes, seed=0, stage=self.name)
            build_generalizers(self.generalize, network, classes)

    def run(self, context: StageContext) -> StageResult:
        """See :func:`run_task`."""
        return run_task(self, context)


class TaskObjective(Objective):
    """Trains a model from labels, with an optional distillation term."""

    def __init__(
        self,
        model: Model,
        *,
        frozen: bool,
        distillation: Distillation | None,
        presence_weight: float,
        seed: int,
        adapter: bool = False,
        caches: TaskCaches | None = None,
    ) -> None:
        super().__init__()
        self.model, self.distillation, self.caches = model, distillation, caches
        self.presence_weight = presence_weight
        self.presence: nn.Linear | None = None
        if presence_weight:
            width = presence_width(model.encoder)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.presence = nn.Linear(width, model.head.num_classes)
        set_frozen(model, frozen=frozen, adapter=adapter)

    def optimized(self) -> dict[str, nn.Module]:
        """The head, the encoder unless it is frozen, and the heads of the extra terms."""
        modules = trained_parts(self.model)
        if self.distillation is not None:
            modules["method"] = self.distillation.method
        if self.presence is not None:
            modules["presence"] = self.presence
        return modules

    def forward(self, batch: Batch, step: int, steps: int) -> LossTerms:
        """Task terms on the labelled images; distillation terms on the labelled and the proxy images.

        The head runs once: on all images if the method reads logits, else on the labelled ones.
        """
        if self.distillation is None and self.presence is None:
            return self.model.loss(batch)
        images = batch["image"].float() / 255.0
        if self.distillation is None:
            features = self.model.features(images)
            return self._task_terms(self.model.decode(features), features.cls, batch)
        labelled, taps = images.shape[0], self.model.taps
        if "proxy" in batch:
            images = torch.cat([images, batch["proxy"].float() / 255.0])
        needs, mask = self.distillation.needs, self.distillation.mask(images, step)
        views = student_views(self.model.encoder, images, taps + needs.taps, mask)
        read, plain = split_taps(views.plain, len(taps))
        own = read.part(rows=slice(labelled))
        decoded = self.model.decode(read if needs.logits else own)
        terms = self._task_terms(decoded, own.cls, batch)
        student = Views(
            plain=plain,
            masked=None if views.masked is None else split_taps(views.masked, len(taps))[1],
            mask=views.mask,
            logits=self.model.head.logits_of(decoded) if needs.logits else None,
        )
        teacher = None if self.caches is None else self.caches.views_of(batch)
        return terms | self.distillation(student, images, step, steps, teacher)

    def _task_terms(self, decoded: Any, cls: Tensor | None, batch: Batch) -> LossTerms:
        """The task's terms and the presence term, given the CLS tokens (B, C) of the labelled images."""
        terms = self.model.loss_of(decoded, batch)
        if self.presence is not None:
            assert cls is not None
            terms["presence"] = self.presence_weight * self.model.presence_loss(self.presence(cls), batch)
        return terms

    def diagnostics(self) -> dict[str, float]:
        """The method's, if there is one."""
        return {} if self.distillation is None else self.distillation.diagnostics()


def set_frozen(model: Model, *, frozen: bool, adapter: bool = False) -> None:
    """Freeze the encoder, or all of it except its adapter, or make it trainable."""
    if frozen or adapter:
        model.freeze_encoder(adapter=adapter)
    else:
        model.encoder.requires_grad_(True)


def trained_parts(model: Model) -> dict[str, nn.Module]:
    """The head, and the encoder unless it is frozen."""
    return {"head": model.head} | ({} if model.encoder_is_frozen else {"encoder": model.encoder})


def build_model(
    task: Task, model: ModelConfig, encoder: Encoder, classes: Sequence[str], *, seed: int, stage: str
) -> Model:
    """The encoder with a head on the taps of its record; the head is fresh or loaded from the file in its settings."""
    part = need_head(model, "model", stage)
    taps = HEADS[part.type].taps_of(encoder.record.taps, encoder.strides(encoder.record.taps))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build: Any = HEADS[part.type]  # its Config is the class of part.settings
        head = build(part.settings, encoder.spec(taps).channels, encoder.strides(taps), len(classes))
    if model.head_weights is not None:
        head.loaded = load_head_weights(head, model.head_weights, part.type, classes)
    return task.build(encoder, head, taps, len(classes))


def check_head(task: Task, model: ModelConfig, classes: Sequence[str]) -> LoadReport | None:
    """How the head's weight file was loaded, key by key; a :class:`UserError` if it does not match the head.

    None without such a file.
    """
    if model.head_weights is None:
        return None
    encoder = outline(model.encoder)  # only its widths matter here
    return build_model(task, model, encoder, classes, seed=0, stage="none").head.loaded


def run_task(config: TaskConfig, context: StageContext) -> StageResult:
    """Train on source labels; writes ``head.safetensors`` and, if it was trained, ``encoder.safetensors``."""
    dataset = context.open(config.data)
    network = start_network(config, context, dataset.names)
    seed = (context.seed, config.name)
    if config.generalize:
        return _run_generalized(config, context, network, dataset)
    distillation, caches = _distillation(config, context, network.encoder, dataset.names), None
    read: dict[str, str] = {}
    if distillation is not None:
        read = weights_read(teacher=distillation.teacher, teacher_head=distillation.teacher_head)
    if config.cache is not None and distillation is not None:
        caches = open_task_caches(config, context, dataset, distillation)
        distillation.teacher, distillation.teacher_head = nn.Identity(), None
    objective = TaskObjective(
        network,
        frozen="encoder" not in config.trains,
        adapter=config.adapter,
        distillation=distillation,
        presence_weight=config.presence_weight,
        seed=derive_seed(*seed, "presence"),
        caches=caches,
    )
    seconds = train_network(config, context, objective, task_batches(config, context, dataset, seed, caches))
    result = save_network(config, context, network, seconds, dataset.names)
    result.weights |= read
    return result


def _run_generalized(config: TaskConfig, context: StageContext, network: Model, dataset: Dataset) -> StageResult:
    """The same with generalisation baselines."""
    parts = zip(config.generalize, build_generalizers(config.generalize, network, dataset.names), strict=True)
    seed = (context.seed, config.name)

    def sources(step: int, least: int) -> Iterator[Batch]:
        images = labelled_batches(config, context, dataset, (*seed, "styles", step))
        count = max(1, len(dataset) // config.batch, -(-least // config.batch))  # whole batches of one epoch, or more
        return loaded(images, range(count), context.workers)

    objective = GeneralizedObjective(network, tuple(parts), sources)
    seconds = train_network(config, context, objective, task_batches(config, context, dataset, seed))
    return save_network(config, context, network, seconds, dataset.names)


def start_network(config: TaskConfig, context: StageContext, classes: Sequence[str]) -> Model:
    """The network that learns in the stage, with its start weights."""
    model = need(getattr(context, config.model), config.model, context.label).filled(head=context.start_head)
    encoder = context.build(config.model)
    if "encoder" not in config.trains:
        encoder.eval().requires_grad_(False)
        if config.model == "teacher":
            context.shard(encoder)
    # The seed's word is part of every score: another one draws other weights.
    seed = derive_seed(context.seed, config.name, "decoder")
    return build_model(TASKS[config.task], model, encoder, classes, seed=seed, stage=context.label)


def train_network(config: TaskConfig, context: StageContext, objective: Objective, batches: Any) -> float:
    """Run the loop with the learning rate of the encoder scaled; returns the seconds it took."""
    scales = {"encoder": config.optimizer.encoder_lr_scale}
    trained = [(module, scales.get(name, 1.0)) for name, module in objective.optimized().items()]
    return context.train(config, config.optimizer, objective, trained, batches)


def save_network(
    config: TaskConfig, context: StageContext, network: Model, seconds: float, classes: Sequence[str]
) -> StageResult:
    """Write ``head.safetensors`` and, if it was trained, ``encoder.safetensors``."""
    if context.fabric.is_global_zero:
        save_head(network.head, context.folder / "head.safetensors")
        if "encoder" in config.trains:
            save_encoder(network.encoder, context.folder / "encoder.safetensors")
    parameters = {"encoder": count(network.encoder), "head": count(network.head)}
    weights = weights_read(**{config.model: network.encoder, "head": network.head})
    return StageResult(seconds, parameters, classes=tuple(classes), weights=weights)


def _distillation(
    config: TaskConfig, context: StageContext, student: Encoder, classes: Sequence[str]
) -> Distillation | None:
    """The distillation term, if the stage has one; with the teacher's head if its method reads logits."""
    if config.method is None:
        return None
    teacher, head = context.build_teacher(), None
    if config.reads_logits:
        model = need(context.teacher, "teacher", context.label).filled(head=context.teacher_head)
        assert model.head_weights is not None, "validation of the recipe guarantees it"
        head = build_model(TASKS[config.task], model, teacher, classes, seed=0, stage=context.label).head
        head.eval().requires_grad_(False)
    if config.cache is None:
        context.shard(teacher)
    return Distillation(student, teacher, config.method, (context.seed, config.name), head)
