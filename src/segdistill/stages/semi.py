"""Semi-supervised instance learning: J = L_sup(labelled) + w_semi L_semi(unlabelled) + w_pxl L_pxl(both).

One stage serves all five rows of the paper's stage table ("Training a Student Expert via Semi-Supervised Foundation
Model Distillation", arXiv 2604.03841; spec sskd, 3): the adaptation of the teacher on labels (1a) and on labels and
pseudo-labels (1c), and the transfer to the student (2). Refinement (3) is a plain task stage. Every step has a labelled
and an unlabelled batch of their own, so that w_semi is explicit; the research code mixes both in one data set.

With ``ema`` the pseudo-labels are made at every step by a moving average of the network, which gives the compared
methods: Unbiased Teacher (Liu et al., ICLR 2021, arXiv 2102.09480) without ``start``, Guided Distillation (Berrada et
al., WACV 2024, arXiv 2308.02668) with it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from segdistill.config import Config
from segdistill.data.dataset import DataSelection, Dataset
from segdistill.data.loader import StepBatches, loaded
from segdistill.data.pseudo_labelled import PseudoLabelled, with_classes
from segdistill.data.strong import Strong, StrongAugment
from segdistill.encoders import build_encoder
from segdistill.methods.pixel_contrast import PixelContrast
from segdistill.models import Model
from segdistill.models.instance import object_masks
from segdistill.ops import derive_seed, maps
from segdistill.processes import first_micro_batch
from segdistill.stages.base import StageConfig, StageContext, StageResult, need
from segdistill.stages.pseudo_label import LABELS, labels_faults
from segdistill.stages.task import (
    TaskConfig,
    build_model,
    save_network,
    set_frozen,
    start_network,
    train_network,
    trained_parts,
)
from segdistill.stages.task_batches import labelled_batches
from segdistill.tasks.table import TASKS
from segdistill.train.loop import Objective
from segdistill.types import Batch, LossTerms

_OTHER = "unlabelled_"  # prefix of the unlabelled images' keys in a batch


class UnlabelledConfig(Config):
    """The unlabelled images of a semi-supervised stage."""

    data: DataSelection
    batch: int = Field(16, ge=1, le=2**16, description="unlabelled images per step, all processes together")
    weight: float = Field(1.0, ge=0, le=1e6, description="w_semi; 0: the images serve the pixel contrast alone")
    labels: str | None = Field(None, description="the pseudo_label stage whose labels they have")
    score: float = Field(0.3, ge=0, le=1, description="least score of a pseudo-label that is learned")
    no_object: float = Field(
        1.0, ge=0, le=1e6, description="factor on the weight of queries without a pseudo-label, which may miss objects"
    )


class EmaConfig(Config):
    """A moving average of the network that makes the pseudo-labels; the defaults are Guided Distillation's."""

    decay: float = Field(0.9996, ge=0, lt=1)
    burn_in: int = Field(
        0, ge=0, le=10**8, description="steps before the average moves; without start no pseudo-labels are used before"
    )
    start: str | None = Field(
        None, description="the earlier stage whose network initialises the average; None: this stage's own network"
    )
    score: float = Field(0.7, ge=0, le=1, description="class probability above which a query becomes a pseudo-label")
    least: int = Field(5, ge=1, le=10**6, description="minimum mask size, in cells")


class SemiConfig(TaskConfig):
    """Settings of a semi-supervised stage."""

    type: Literal["semi"] = "semi"  # type: ignore[assignment]
    unlabelled: UnlabelledConfig | None = None
    contrast: PixelContrast.Config | None = Field(None, description="the pixel contrast; None: off")
    strong: StrongAugment = Field(StrongAugment(), description="the strong view of the pixel contrast and of ema")
    ema: EmaConfig | None = Field(None, description="pseudo-labels at every step; None: read from a pseudo_label stage")

    @property
    def trains(self) -> tuple[str, ...]:
        """Encoder and head, of the teacher too."""
        return ("head",) if self.freeze_encoder else ("encoder", "head")

    @property
    def batches(self) -> tuple[int, ...]:
        """Labelled and unlabelled images."""
        return (self.batch,) if self.unlabelled is None else (self.batch, self.unlabelled.batch)

    @property
    def learned_per_step(self) -> int:
        """All of them."""
        return self.images_per_step

    @property
    def earlier(self) -> tuple[str, ...]:
        """The stages of the pseudo-labels and of the moving average's start."""
        labels = None if self.unlabelled is None else self.unlabelled.labels
        start = None if self.ema is None else self.ema.start
        return tuple(name for name in (labels, start) if name is not None)

    def earlier_faults(self, stages: Mapping[str, StageConfig]) -> list[str]:
        """A stage that writes no pseudo-labels, and a start that is no whole network of this one's kind."""
        labels = None if self.unlabelled is None else self.unlabelled.labels
        lines = [] if labels is None else labels_faults(stages[labels])
        start = None if self.ema is None or self.ema.start is None else stages[self.ema.start]
        if start is not None and (start.learner != self.model or set(start.trains) != {"encoder", "head"}):
            lines.append(
                f"ema.start: stage {start.name} does not train encoder and head of the {self.model}; name one that does"
            )
        return lines

    def pseudo_labelled(self) -> tuple[tuple[DataSelection, str], ...]:
        """The unlabelled images, if a stage labels them."""
        other = self.unlabelled
        return () if other is None or other.labels is None else ((other.data, other.labels),)

    def reads(self) -> tuple[tuple[str, DataSelection, bool], ...]:
        """The labelled and the unlabelled images."""
        labelled = ("", self.data, True)
        return (labelled,) if self.unlabelled is None else (labelled, (", unlabelled", self.unlabelled.data, False))

    def faults(self) -> list[str]:
        """Also settings that contradict each other."""
        lines = super().faults()
        if not TASKS[self.task].objects or TASKS[self.task].boxes:
            lines.append(f"a semi stage learns objects; the task '{self.task}' has none with masks")
        if self.method is not None or self.proxy is not None or self.presence_weight:
            lines.append("method, proxy and presence_weight are for task stages; remove them")
        if self.adapter:
            lines.append("adapter is for task stages; remove it")
        if self.generalize or self.styles is not None or self.rare_class is not None:
            lines.append("generalize, styles and rare_class are for task stages; remove them")
        if self.contrast is not None and self.freeze_encoder:
            lines.append("the pixel contrast trains the encoder; unfreeze it or remove contrast")
        other = self.unlabelled
        if other is None and self.ema is not None:
            lines.append("ema labels unlabelled images; add 'unlabelled: {data: ...}'")
        if other is not None and self.ema is not None and other.labels is not None:
            lines.append("unlabelled images have the labels of a stage or of ema, not of both; remove one")
        if other is not None and self.ema is None and other.labels is None and other.weight:
            lines.append("unlabelled images need labels: name a pseudo_label stage, add ema, or set weight: 0")
        return lines

    def run(self, context: StageContext) -> StageResult:
        """See :func:`run_semi`."""
        return run_semi(self, context)


class MovingAverage(nn.Module):
    """A network whose weights follow another's, and the objects that it is sure of."""

    def __init__(self, config: EmaConfig, network: nn.Module, *, copies: bool) -> None:
        """``copies``: it starts as a copy of the network when the burn-in ends."""
        super().__init__()
        self.config, self.copies = config, copies
        self.network: Any = network.requires_grad_(False)

    @torch.no_grad()
    def follow(self, network: nn.Module, step: int) -> None:
        """Move towards ``network`` before ``step``; see :class:`EmaConfig`."""
        first = self.copies and step <= self.config.burn_in
        if step < self.config.burn_in and not first:
            return
        for own, other in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if first or not own.is_floating_point():
                own.copy_(other)
            else:
                own.lerp_(other.to(own.dtype), 1 - self.config.decay)

    def ready(self, step: int) -> bool:
        """Whether its labels are used at ``step``."""
        return not self.copies or step >= self.config.burn_in

    @torch.no_grad()
    def objects(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Classes (n,) and masks (n, h, w), at the masks' own stride, of each image."""
        self.network.eval()
        logits, masks = (each[-1] for each in self.network.decode(self.network.features(images)))
        best, kinds = logits.float().softmax(-1)[..., :-1].max(-1)
        inside = masks > 0
        kept = (best > self.config.score) & (inside.sum(dim=(2, 3)) >= self.config.least)
        rows = range(len(images))
        return [kinds[row][kept[row]] for row in rows], [inside[row][kept[row]].float() for row in rows]


class SemiObjective(Objective):
    """The terms of J; see the module's docstring."""

    def __init__(
        self,
        model: Model,
        *,
        weight: float,
        no_object: float,
        frozen: bool,
        strong: Strong,
        contrast: PixelContrast | None,
        average: MovingAverage | None,
    ) -> None:
        super().__init__()
        self.model, self.contrast, self.average = model, contrast, average
        self.weight, self.no_object, self.strong = weight, no_object, strong
        self.found: dict[str, Tensor] = {}
        set_frozen(model, frozen=frozen)

    def optimized(self) -> dict[str, nn.Module]:
        """Head, encoder unless it is frozen, and the contrast's projections."""
        modules = trained_parts(self.model)
        if self.contrast is not None:
            modules["contrast"] = self.contrast
        return modules

    def state(self) -> dict[str, nn.Module]:
        """Also the moving average."""
        return self.optimized() | ({} if self.average is None else {"average": self.average})

    def forward(self, batch: Batch, step: int, steps: int) -> LossTerms:
        """One pass over both batches, then the terms."""
        labelled, other = batch["image"], batch.get(_OTHER + "image")
        images = labelled if other is None else torch.cat([labelled, other])
        seen = images
        if self.average is not None:
            assert other is not None
            if first_micro_batch():
                self.average.follow(self.model, step)
            seen = torch.cat([labelled, self.strong(other)])
        features = self.model.features(seen.float() / 255.0)
        decoded = self.model.decode(features)
        terms = self.model.loss_of(decoded, batch)
        if other is not None and self.weight:
            terms |= self._semi(decoded, batch, other, step)
        if self.contrast is not None:
            terms |= self._contrast(features, decoded, images, batch, step / steps)
        return terms

    def _semi(self, decoded: Any, batch: Batch, images: Tensor, step: int) -> LossTerms:
        """The set loss against the pseudo-labels."""
        head: Any = self.model.head
        rest = tuple([rows[len(batch["image"]) :] for rows in outputs] for outputs in decoded)
        if self.average is not None and not self.average.ready(step):
            nothing = decoded[0][-1].sum() * 0.0  # the log has the same terms at every step
            return {f"semi_{name}": nothing for name in ("class", "mask", "dice")}
        if self.average is None:
            own = {key.removeprefix(_OTHER): value for key, value in batch.items() if key.startswith(_OTHER)}
            classes, masks = zip(*(object_masks(own, row) for row in range(len(images))), strict=True)
        else:
            classes, masks = self.average.objects(images.float() / 255.0)
        self.found["pseudo_objects"] = torch.tensor(sum(map(len, classes)) / len(images), device=images.device)
        terms = head.set_loss(rest, classes, masks, no_object=self.no_object)
        return {f"semi_{name}": self.weight * value for name, value in terms.items()}

    def _contrast(self, features: Any, decoded: Any, images: Tensor, batch: Batch, progress: float) -> LossTerms:
        """The pixel contrast of all images, on the deepest map that the head reads."""
        assert self.contrast is not None
        self.contrast.set_progress(progress)
        with torch.no_grad():
            strong = maps(self.model.features(self.strong(images).float() / 255.0))[-1]
        weak = maps(features)[-1]
        classes, masks = (outputs[-1] for outputs in decoded)
        ids = nn.functional.interpolate(batch["ids"].amax(1, keepdim=True).float(), size=weak.shape[-2:])[:, 0].long()
        unknown = ids.new_full((len(images) - len(ids), *ids.shape[1:]), -1)
        return self.contrast(weak, strong, masks, classes, torch.cat([ids, unknown]))

    def diagnostics(self) -> dict[str, float]:
        """Of the contrast: its margin and the true share of negatives on other objects; pseudo-labels per image."""
        found = self.found | ({} if self.contrast is None else self.contrast.diagnostics)
        return {name: value.item() for name, value in found.items()}


def run_semi(config: SemiConfig, context: StageContext) -> StageResult:
    """Train; writes ``head.safetensors`` and, unless it is frozen, ``encoder.safetensors``."""
    dataset = context.open(config.data)
    network = start_network(config, context, dataset.names)
    contrast = None
    if config.contrast is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(context.seed, config.name, "contrast"))
            contrast = PixelContrast(config.contrast, network.encoder.spec(network.taps[-1:]).channels[0])
    objective = SemiObjective(
        network,
        weight=0.0 if config.unlabelled is None else config.unlabelled.weight,
        no_object=1.0 if config.unlabelled is None else config.unlabelled.no_object,
        frozen=config.freeze_encoder,
        strong=Strong(config.strong),
        contrast=contrast,
        average=_average(config, context, network, dataset.names),
    )
    seconds = train_network(config, context, objective, _batches(config, context, dataset))
    return save_network(config, context, network, seconds, dataset.names)


def _average(config: SemiConfig, context: StageContext, network: Model, classes: Sequence[str]) -> MovingAverage | None:
    """The moving average: a copy of the network, or the network of its ``start`` stage."""
    if config.ema is None:
        return None
    if config.ema.start is None:
        return MovingAverage(config.ema, copy.deepcopy(network), copies=True)
    folder = context.earlier[config.ema.start]
    settings = need(getattr(context, config.model), config.model, context.label)
    settings = settings.filled(head=folder / "head.safetensors", encoder=folder / "encoder.safetensors")
    own = build_encoder(settings.encoder, seed=0)
    other = build_model(TASKS[config.task], settings, own, classes, seed=0, stage=context.label)
    return MovingAverage(config.ema, other, copies=False)


def _batches(config: SemiConfig, context: StageContext, dataset: Dataset):  # noqa: ANN202
    """A function: order of steps -> labelled batches, with the step's unlabelled images if the stage has any."""
    seed, task = (context.seed, config.name), TASKS[config.task]
    labelled, other = labelled_batches(config, context, dataset, seed), config.unlabelled
    if other is None:
        return lambda order: loaded(labelled, order, context.workers)
    path = None if other.labels is None else context.earlier[other.labels] / LABELS
    images = with_classes(context.open(other.data, "unlabelled_images.txt"), lambda: dataset.names)
    images = PseudoLabelled(images, path, score=other.score)
    weak = config.augment if config.ema is None else config.augment.model_copy(update={"photometric": False})
    unlabelled = StepBatches(
        images,
        task.transform(weak, context.source.size),
        collate=task.collate,
        batch=other.batch,
        seed=(*seed, "unlabelled"),
        **context.share,
    )

    def both(order: Sequence[int]) -> Iterator[Batch]:
        pairs = zip(loaded(labelled, order, context.workers), loaded(unlabelled, order, context.workers), strict=True)
        return (batch | _prefixed(extra) for batch, extra in pairs)

    return both


def _prefixed(batch: Mapping[str, Tensor]) -> Batch:
    return {_OTHER + key: value for key, value in batch.items()}
