"""Adaptation of an open-vocabulary teacher to images with objects (spec sskd, 2.3, 3): its detector, its segmenter.

The two are trained one after the other, each from its start weights: on labelled images (1a), or on labelled images
and pseudo-labels that an earlier stage wrote (1c). The teacher is none of the recipe's networks: stages that use it
name this stage. The authors' pixel contrast in this teacher is not established and not part of it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from segdistill.config import Config, Size
from segdistill.data.dataset import DataSelection, Dataset
from segdistill.data.loader import StepBatches, loaded
from segdistill.data.pseudo_labelled import Mixed, PseudoLabelled, with_classes
from segdistill.files import read_signed, write_signed
from segdistill.models.open_vocabulary import OpenVocabulary, OpenVocabularyConfig
from segdistill.models.open_vocabulary_parts import save_licence
from segdistill.models.open_vocabulary_tuning import DetectorTuning, SegmenterTuning, Tuned
from segdistill.stages.base import CHECKPOINT, Pass, StageConfig, StageContext, StageResult, count
from segdistill.stages.pseudo_label import LABELS, labels_faults
from segdistill.stages.task import AnyAugment
from segdistill.tasks.table import TASKS
from segdistill.train.loop import Objective, train
from segdistill.train.optim import AdamW
from segdistill.types import Batch, LossTerms


class DetectorPart(DetectorTuning):
    """How the detector is adapted: AdamW; the text encoder is frozen. The defaults are the authors'."""

    steps: int | None = Field(None, ge=1, le=10**8, description="None: the stage's")
    batch: int | None = Field(None, ge=1, le=2**16, description="images per step; None: the stage's")


class SegmenterPart(SegmenterTuning):
    """How the segmenter is adapted: AdamW on its prompt encoder and mask decoder. The defaults are the authors'."""

    steps: int | None = Field(None, ge=1, le=10**8, description="None: the stage's")
    batch: int | None = Field(1, ge=1, le=2**16, description="images per step; None: the stage's")


class PseudoLabels(Config):
    """Images with pseudo-labels that are mixed with the labelled ones."""

    data: DataSelection
    labels: str = Field(description="the pseudo_label stage whose labels they have")
    score: float = Field(0.3, ge=0, le=1, description="least score of a pseudo-label that is learned")


class OpenVocabularyStageConfig(StageConfig):
    """Settings of an open_vocabulary stage."""

    type: Literal["open_vocabulary"] = "open_vocabulary"
    model: OpenVocabularyConfig = OpenVocabularyConfig()
    task: str = Field("semantic", exclude=True, description="set from the recipe")
    steps: int = Field(1000, ge=1, le=10**8)
    batch: int = Field(8, ge=1, le=2**16, description="images per step, all processes together")
    detector: DetectorPart | None = Field(DetectorPart(), description="None: not adapted")
    segmenter: SegmenterPart | None = Field(SegmenterPart(), description="None: not adapted")
    size: Size | None = Field(None, description="height and width of the crops; None: those of the data")
    augment: AnyAugment = Field(
        {}, validate_default=True, description="augmentation of the images; its settings depend on the task"
    )
    unlabelled: PseudoLabels | None = Field(None, description="None: labelled images alone")

    @property
    def roles(self) -> tuple[str, ...]:
        """None of the recipe's."""
        return ()

    @property
    def trains(self) -> tuple[str, ...]:
        """None of the recipe's."""
        return ()

    @property
    def parts(self) -> dict[Tuned, Any]:
        """The networks that are adapted, and how."""
        every: dict[Tuned, Any] = {"detector": self.detector, "segmenter": self.segmenter}
        return {part: tuning for part, tuning in every.items() if tuning is not None}

    def images_of(self, part: Tuned) -> int:
        """Images per step of ``part``."""
        return self.parts[part].batch or self.batch

    def steps_of(self, part: Tuned) -> int:
        """Steps of ``part``."""
        return self.parts[part].steps or self.steps

    @property
    def batches(self) -> tuple[int, ...]:
        """Of each part."""
        return tuple(map(self.images_of, self.parts)) or (self.batch,)

    @property
    def images_per_step(self) -> int:
        """Of the part with the larger batch."""
        return max(map(self.images_of, self.parts), default=self.batch)

    @property
    def earlier(self) -> tuple[str, ...]:
        """The stage of the pseudo-labels."""
        return () if self.unlabelled is None else (self.unlabelled.labels,)

    def earlier_faults(self, stages: Mapping[str, StageConfig]) -> list[str]:
        """A stage that writes no pseudo-labels."""
        return [line for name in self.earlier for line in labels_faults(stages[name])]

    def pseudo_labelled(self) -> tuple[tuple[DataSelection, str], ...]:
        """The unlabelled images."""
        return () if self.unlabelled is None else ((self.unlabelled.data, self.unlabelled.labels),)

    def own_digests(self) -> dict[str, str]:
        """Those of the teacher."""
        return self.model.digests()

    def own_licences(self) -> dict[str, str]:
        """Those of the teacher."""
        return self.model.licences()

    def reads(self) -> tuple[tuple[str, DataSelection, bool], ...]:
        """The labelled images and those with pseudo-labels."""
        labelled = ("", self.data, True)
        return (labelled,) if self.unlabelled is None else (labelled, (", unlabelled", self.unlabelled.data, False))

    def crop(self, default: tuple[int, int]) -> tuple[int, int]:
        """Its own size, if it has one."""
        return self.size or default

    def faults(self) -> list[str]:
        """Also nothing to adapt, and a task without objects."""
        lines = super().faults()
        if not TASKS[self.task].objects or TASKS[self.task].boxes:
            lines.append(f"an open_vocabulary stage learns objects; the task '{self.task}' has none with masks")
        if not self.parts:
            lines.append("detector and segmenter are null: nothing is adapted; set one of them, or remove the stage")
        if self.model.segmenter is None:
            lines.append("model.segmenter is null: SAM 3 is used as it is; adapt a detector and a segmenter instead")
        return lines

    def passes(self, classes: Sequence[str], size: tuple[int, int]) -> list[Pass]:
        """Detector and segmenter on the images of their steps; the segmenter with one box."""
        network, image = OpenVocabulary(self.model, classes), torch.zeros(1, 3, *size)
        return [
            Pass(
                partial(_one_image, network, part, image),
                parameters=count(getattr(network, part)),
                trained=_trained(network, part),
                written=count(getattr(network, part)),
                images=self.images_of(part),
                steps=self.steps_of(part),
            )
            for part in self.parts
        ]

    def run(self, context: StageContext) -> StageResult:
        """See :func:`run_open_vocabulary`."""
        return run_open_vocabulary(self, context)


class Adaptation(Objective):
    """Trains one part of the teacher."""

    def __init__(self, model: OpenVocabulary, part: Tuned, settings: DetectorTuning | SegmenterTuning) -> None:
        super().__init__()
        self.model, self.part, self.settings = model, part, settings
        model.tune(part)

    def optimized(self) -> dict[str, nn.Module]:
        """The part; what is frozen in it gets no gradient."""
        return {self.part: getattr(self.model, self.part)}

    def forward(self, batch: Batch, step: int, steps: int) -> LossTerms:
        """The terms of the part's loss."""
        del step, steps
        if isinstance(self.settings, DetectorTuning):
            return self.model.detector_loss(batch, self.settings)
        return self.model.segmenter_loss(batch, self.settings)


def run_open_vocabulary(config: OpenVocabularyStageConfig, context: StageContext) -> StageResult:
    """Adapt the parts; writes a folder for each, ``detector`` and ``segmenter``, in the form that they came in.

    An interrupted stage continues in the part that was not finished.
    """
    dataset = _images(config, context)
    network = OpenVocabulary(config.model, dataset.names)
    seconds = [_adapted(config, context, network, part, dataset) for part in config.parts]
    return StageResult(
        sum(seconds),
        {part: count(getattr(network, part)) for part in config.parts},
        classes=tuple(dataset.names),
        weights={part: source for part, source in config.model.sources.items() if part in config.parts},
        folders=tuple(config.parts),
    )


def _images(config: OpenVocabularyStageConfig, context: StageContext) -> Dataset:
    """The labelled images, and those with pseudo-labels if there are any."""
    labelled, other = context.open(config.data), config.unlabelled
    if other is None:
        return labelled
    images = with_classes(context.open(other.data, "unlabelled_images.txt"), lambda: labelled.names)
    return Mixed(labelled, PseudoLabelled(images, context.earlier[other.labels] / LABELS, score=other.score))


def _adapted(
    config: OpenVocabularyStageConfig, context: StageContext, network: OpenVocabulary, part: Tuned, dataset: Dataset
) -> float:
    """Train ``part`` and write its folder, unless that is done; returns the seconds it took."""
    done = context.folder / CHECKPOINT / f"{part}.json"
    before = read_signed(done) if done.is_file() else None
    if before is not None and before["fingerprint"] == context.fingerprint and (context.folder / part).is_dir():
        return float(before["seconds"])
    tuning, fabric, task = config.parts[part], context.fabric, TASKS[config.task]
    objective, batch = Adaptation(network, part, tuning), config.images_of(part)
    augment: Any = config.augment
    images = StepBatches(
        dataset,
        task.transform(augment, config.crop(context.source.size)),
        collate=task.collate,
        batch=batch,
        seed=(context.seed, config.name, part),
        **context.share,
    )
    seconds = train(
        fabric,
        objective,
        network.groups(tuning),
        lambda order: loaded(images, order, context.workers),
        schedule=tuning.schedule(),
        optimizer=partial(AdamW.build, config=AdamW.Config()),
        settings=context.loop(config, steps=config.steps_of(part), clip=tuning.clip, part=part),
        folder=context.folder / CHECKPOINT / part,
        log=context.log,
    )
    if fabric.is_global_zero:
        _write(context, network, part)
        write_signed(done, {"fingerprint": context.fingerprint, "seconds": seconds})
    fabric.barrier()
    return seconds


def _write(context: StageContext, network: OpenVocabulary, part: Tuned) -> None:
    """The part's folder, complete or not at all."""
    place, temporary = context.folder / part, context.folder / f".{part}.tmp"
    for old in (temporary, place):
        shutil.rmtree(old, ignore_errors=True)
    getattr(network, part).save(temporary)
    save_licence(temporary, network.licence)
    temporary.rename(place)


def _trained(network: OpenVocabulary, part: Tuned) -> int:
    network.tune(part)
    return sum(p.numel() for p in getattr(network, part).parameters() if p.requires_grad)


def _one_image(network: OpenVocabulary, part: Tuned, image: torch.Tensor) -> None:
    """What a step computes for one image, except for the loss."""
    network.tune(part)
    if part == "detector":
        network.detector(image)
    elif network.segmenter is not None:
        levels = network.segmenter.embed(image)
        network.segmenter.masks(levels, 0, image.new_tensor([[0.25, 0.25, 0.75, 0.75]]))
