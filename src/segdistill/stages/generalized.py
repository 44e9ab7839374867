"""Task learning with generalisation baselines: the task's loss on restyled views of the source images, and more terms.

One baseline may make a second view of every image; the others add terms. The frozen reference encoder is a copy of the
network's encoder before the stage's first step and is not saved. Buffers of the baselines are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from segdistill.config import Config, Part, Range, Shares
from segdistill.data.dataset import DataSelection
from segdistill.data.randaugment import RandAugment
from segdistill.data.transforms import DistillAugment
from segdistill.generalize import GENERALIZERS, Facts, Generalizer, Seen, Wants
from segdistill.models import Model
from segdistill.ops import evaluation_mode
from segdistill.processes import first_micro_batch, gather
from segdistill.train.loop import Objective
from segdistill.types import Batch, Features, LossTerms

Views = Callable[[int, int], Iterator[Batch]]
"""(step, least number) -> this process's source images, augmented, for a collection before that step."""


class StyleAugment(DistillAugment):
    """Style images: whole, in the shape of a crop, flipped half of the time; see :class:`DistillAugment`."""

    crop_scale: Shares = Field((1.0, 1.0), description="area of the random crop")
    crop_ratio: Range = (1.0, 1.0)
    keep_aspect: bool = Field(True, description="multiply crop_ratio by the crop's own width / height")
    rand_augment: RandAugment | None = Field(None, description="timm's RandAugment string; None: off")
    erase: float = Field(0.0, ge=0, le=1)


class StyleConfig(Config):
    """Unlabelled images whose style others take; every step reads as many as labelled images."""

    data: DataSelection
    augment: StyleAugment = StyleAugment()


def wants_of(part: Part) -> Wants:
    """What the baseline ``part`` needs with its settings."""
    return GENERALIZERS[part.type].wants_for(part.settings)


def generalize_faults(parts: Sequence[Part], styles: StyleConfig | None) -> list[str]:
    """Baselines that do not work together, and missing or needless style images."""
    kinds, lines = [part.type for part in parts], []
    if twice := [kind for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]:
        lines.append(f"generalize: {twice[0]} appears twice; name it once")
    makers = [kind for kind in dict.fromkeys(kinds) if GENERALIZERS[kind].views > 1]
    if len(makers) > 1:
        lines.append(f"generalize: {' and '.join(makers)} each make a second view of every image; keep one of them")
    reading = [part.type for part in parts if wants_of(part).styles]
    if reading and styles is None:
        lines.append(f"generalize: {reading[0]} needs style images; add 'styles: {{data: {{domains: ...}}}}'")
    if styles is not None and not reading:
        lines.append("styles: none of the baselines reads style images; add tldr to generalize or remove styles")
    return lines


def build_generalizers(parts: Sequence[Part], model: Model, names: Sequence[str]) -> list[Generalizer]:
    """The baselines for a network with the classes ``names``."""
    channels = model.encoder.spec(model.taps).channels
    built = []
    for part in parts:
        stem = model.encoder.stem_channels() if wants_of(part).stem else None
        build: Any = GENERALIZERS[part.type]
        built.append(build(part.settings, Facts(tuple(names), channels, stem)))
    return built


class GeneralizedObjective(Objective):
    """Trains a model, encoder included, from labels with generalisation baselines.

    ``parts``: their settings and modules. ``sources`` gives the images for :meth:`Generalizer.renew`.
    """

    def __init__(self, model: Model, parts: Sequence[tuple[Part, Generalizer]], sources: Views) -> None:
        super().__init__()
        self.model, self.sources = model, sources
        self.parts = nn.ModuleDict({part.type: module for part, module in parts})
        wants = [wants_of(part) for part, _ in parts]
        self.wants = Wants(**{name: any(getattr(each, name) for each in wants) for name in vars(Wants())})
        model.encoder.requires_grad_(True)
        self.reference: Any = None
        if self.wants.reference:
            self.reference = copy.deepcopy(model.encoder).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> GeneralizedObjective:
        """Set the mode of everything except the reference, which stays in evaluation mode."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def optimized(self) -> dict[str, nn.Module]:
        """Head and encoder."""
        return {"head": self.model.head, "encoder": self.model.encoder}

    def state(self) -> dict[str, nn.Module]:
        """Also the baselines with buffers."""
        return self.optimized() | {name: part for name, part in self.parts.items() if part.state_dict()}

    @property
    def _generalizers(self) -> list[Generalizer]:
        return [part for part in self.parts.values() if isinstance(part, Generalizer)]

    @property
    def _maker(self) -> Generalizer | None:
        """The baseline that makes a second view, if any."""
        return next((part for part in self._generalizers if part.views > 1), None)

    def forward(self, batch: Batch, step: int, steps: int) -> LossTerms:
        """The task's terms on all views, and the baselines'."""
        self._renew(step, steps)
        count, images = len(batch["image"]), [batch["image"].float() / 255.0]
        styles = batch["style"].float() / 255.0 if "style" in batch else None
        if self._maker is not None:
            other = self._maker.restyle(images[0], styles, lambda restyled: self._plain_loss(restyled, batch))
            images += [] if other is None else [other]
        images += [] if styles is None else [styles]
        features, shown = self._features(torch.cat(images)), None
        if styles is not None:
            features, shown = features.part(rows=slice(-count)), features.part(rows=slice(-count, None))
        terms, logits = self._task_terms(features, batch, count)
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference = self.model.whole_features(self.reference, images[0])
        seen = Seen(batch["label"], features, reference, logits, styles=shown, progress=step / steps)
        for part in self._generalizers:
            terms |= part.terms(seen)
        return terms

    def _features(self, images: Tensor) -> Features:
        """The network's features; with a baseline that alters the early map, those of all views."""
        if not self.wants.stem or self._maker is None:
            return self.model.features(images)
        with self.model.encoder.altered(self._maker.alter):
            return self.model.features(images)

    def _task_terms(self, features: Features, batch: Batch, count: int) -> tuple[LossTerms, Tensor | None]:
        """The task's terms on the views of ``count`` images, and the head's logits if they are wanted."""
        views, weights = (1, None) if self._maker is None else (self._maker.views, self._maker.weights())
        if weights is None:
            decoded = self.model.decode(features)
            terms = self.model.loss_of(decoded, {key: torch.cat([value] * views) for key, value in batch.items()})
            return terms, self.model.head.logits_of(decoded) if self.wants.logits else None
        terms: LossTerms = {}
        for view, weight in enumerate(weights):
            decoded = self.model.decode(features.part(rows=slice(view * count, (view + 1) * count)))
            prefix = "restyled_" if view else ""
            terms |= {f"{prefix}{name}": weight * value for name, value in self.model.loss_of(decoded, batch).items()}
        return terms, None

    def _plain_loss(self, images: Tensor, batch: Batch) -> Tensor:
        """The task's loss on ``images``, network in evaluation mode."""
        with evaluation_mode(self.model):
            terms = self.model.loss_of(self.model.decode(self.model.features(images)), batch)
        return torch.stack(list(terms.values())).sum()

    def _renew(self, step: int, steps: int) -> None:
        """Collect the styles of the source images for the baselines that ask for them before this step."""
        encoder = self.model.encoder
        if not first_micro_batch():
            return
        for part in self._generalizers:
            if part.due(step, steps):  # every micro-batch goes on with the same random numbers
                with torch.random.fork_rng(devices=[]), torch.no_grad(), evaluation_mode(encoder):
                    batches = self.sources(step, part.least())
                    images = (batch["image"].to(encoder.mean.device).float() / 255.0 for batch in batches)
                    part.renew(gather(torch.cat([part.style_of(encoder.stem(each)) for each in images])))
