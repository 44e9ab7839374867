"""Pseudo-labels: a network predicts the objects of unlabelled images, once, into a file (spec sskd, 2.2, 3).

It is the teacher or the student of the recipe as trained so far, or an open-vocabulary teacher.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from segdistill.data.dataset import Dataset
from segdistill.data.pseudo import Origin, PseudoLabels, PseudoWriter, read_pseudo
from segdistill.data.pseudo_labelled import with_classes
from segdistill.encoders import build_encoder, record_of
from segdistill.files import write_atomic
from segdistill.metrics.base import plain
from segdistill.metrics.instances import InstanceMetric
from segdistill.metrics.quality import quality
from segdistill.models import InstanceSegmenter, View
from segdistill.models.open_vocabulary import OpenVocabulary, OpenVocabularyConfig
from segdistill.pictures import cell, contact_sheet, object_picture
from segdistill.stages.base import Pass, StageConfig, StageContext, StageResult, count, need
from segdistill.stages.labeller import Labeller, open_labeller, own_labeller
from segdistill.stages.task import build_model
from segdistill.tasks.table import TASKS

LABELS = "labels.json"
SHEET = "sheet.png"


def labels_faults(stage: StageConfig) -> list[str]:
    """One line if ``stage`` writes no pseudo-labels, which another one wants to read."""
    if stage.gives_labels:
        return []
    return [f"unlabelled.labels: stage {stage.name} is of type {stage.kind}; name a pseudo_label stage"]


class PseudoLabelConfig(StageConfig):
    """Settings of a pseudo-label stage. The images may have labels: these measure the quality, and nothing else."""

    type: Literal["pseudo_label"] = "pseudo_label"
    model: Literal["student", "teacher"] = Field("teacher", description="not used with open_vocabulary")
    open_vocabulary: OpenVocabularyConfig | None = Field(
        None, description="an open-vocabulary teacher that predicts instead; its own threshold applies as well"
    )
    adapted: str | None = Field(None, description="the open_vocabulary stage that adapted it; None: as it comes")
    task: str = Field("semantic", exclude=True, description="set from the recipe")
    steps: Literal[0] = Field(0, exclude=True)  # type: ignore[assignment]
    batch: Literal[1] = Field(1, exclude=True)  # type: ignore[assignment]
    score: float = Field(0.3, ge=0, le=1, description="least score of a pseudo-label")
    least: int = Field(5, ge=1, le=10**6, description="least pixels of a pseudo-label")
    sheet: int = Field(12, ge=0, le=200, description="images on the contact sheet")

    @property
    def roles(self) -> tuple[str, ...]:
        """The network that predicts, unless it is none of the recipe's."""
        return (self.model,) if self.open_vocabulary is None else ()

    @property
    def trains(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def predicts(self) -> str | None:
        """The network that predicts, unless it is none of the recipe's."""
        return self.first

    @property
    def earlier(self) -> tuple[str, ...]:
        """The stage that adapted the open-vocabulary teacher."""
        return () if self.adapted is None else (self.adapted,)

    def earlier_faults(self, stages: Mapping[str, StageConfig]) -> list[str]:
        """An adaptation of other networks, or of none."""
        if self.adapted is None or self.open_vocabulary is None:
            return []
        other: Any = stages[self.adapted]
        if other.kind != "open_vocabulary":
            return [f"adapted: stage {self.adapted} is of type {other.kind}; name an open_vocabulary stage"]
        if other.model.sources != self.open_vocabulary.sources:
            return [f"open_vocabulary: stage {self.adapted} adapts other networks; name the same ones"]
        return []

    def own_digests(self) -> dict[str, str]:
        """Those of the open-vocabulary teacher."""
        return {} if self.open_vocabulary is None else self.open_vocabulary.digests()

    def own_licences(self) -> dict[str, str]:
        """Those of the open-vocabulary teacher."""
        return {} if self.open_vocabulary is None else self.open_vocabulary.licences()

    def passes(self, classes: Sequence[str], size: tuple[int, int]) -> list[Pass]:
        """One prediction per image."""
        if self.open_vocabulary is None:
            return []
        network, image = OpenVocabulary(self.open_vocabulary, classes), torch.zeros(1, 3, *size)
        return [Pass(lambda: network.predict(image), count(network))]

    @property
    def gives_labels(self) -> bool:
        """Yes."""
        return True

    def faults(self) -> list[str]:
        """Also a task whose predictions are not objects."""
        lines = super().faults()
        if self.accumulate > 1:
            lines.append("accumulate is for stages that train; remove it")
        if not TASKS[self.task].objects or TASKS[self.task].boxes:
            lines.append(f"pseudo-labels are objects; the task '{self.task}' has none with masks")
        if self.adapted is not None and self.open_vocabulary is None:
            lines.append("adapted: a stage adapts an open-vocabulary teacher; add open_vocabulary, or remove adapted")
        return lines

    def run(self, context: StageContext) -> StageResult:
        """See :func:`run_pseudo_label`."""
        return run_pseudo_label(self, context)


def run_pseudo_label(config: PseudoLabelConfig, context: StageContext) -> StageResult:
    """Predict every image; writes ``labels.json`` (see :mod:`segdistill.data.pseudo`) and ``sheet.png``.

    An interrupted stage continues with the images that are missing.
    """
    dataset, began = with_classes(context.open(config.data), context.classes), time.perf_counter()
    labeller = _labeller(config, context, dataset)
    network = labeller.network.to(context.fabric.device).eval()
    path, facts = context.folder / LABELS, {}
    if context.fabric.is_global_zero:
        labels = read_pseudo(path) if path.exists() else _predicted(context, labeller, dataset)
        for line in labeller.unseen(labels.info["counts"]):
            logging.getLogger(__name__).warning("warning: %s: %s", context.label, line)
        facts = _measured(config, labels, dataset)
        facts["summary"] = _summary(labels, facts)
        _draw_sheet(config, context, labels, dataset)
    context.fabric.barrier()
    return StageResult(
        time.perf_counter() - began,
        {name: count(part) for name, part in network.named_children()},
        classes=tuple(dataset.names),
        facts=facts,
    )


def _labeller(config: PseudoLabelConfig, context: StageContext, dataset: Dataset) -> Labeller:
    """The network that predicts, in which the earlier stages' results are loaded."""
    kept: dict[str, Any] = {"score": config.score, "least": config.least}
    if config.open_vocabulary is not None:
        settings = config.open_vocabulary
        own = settings if config.adapted is None else settings.adapted(context.earlier[config.adapted])
        network = OpenVocabulary(own, dataset.names)
        return open_labeller(network, settings, context.fingerprint, adapted=config.adapted, **kept)
    model = need(context.finished, config.model, context.label)
    encoder = build_encoder(model.encoder, seed=0)
    segmenter = build_model(TASKS[config.task], model, encoder, dataset.names, seed=0, stage=context.label)
    assert isinstance(segmenter, InstanceSegmenter)
    licence = record_of(model.encoder.name).licence
    origin = Origin(model.title or model.encoder.name, licence, fingerprint=context.fingerprint)
    return own_labeller(segmenter, origin, **kept)


def _predicted(context: StageContext, labeller: Labeller, dataset: Dataset) -> PseudoLabels:
    """Write the predictions of all images; finished ones are skipped."""
    names, views = list(dataset.listing()), {}
    with PseudoWriter(context.folder / LABELS, dataset.names, labeller.origin) as writer, context.fabric.autocast():
        for number, name in enumerate(names):
            if name not in writer.done:
                sample = dataset[number]
                view = views.setdefault(sample.domain, View.of(dataset.protocol(sample.domain)))
                writer.add(name, *labeller.label(sample.image, view))
            if number % 20 == 19 or number + 1 == len(names):
                context.progress(f"pseudo-labels of {context.label}", number + 1, len(names))
        return writer.finish()


def _measured(config: PseudoLabelConfig, labels: PseudoLabels, dataset: Dataset) -> dict[str, Any]:
    """AP, precision and recall against the images' own labels; empty if there are none."""
    metric = InstanceMetric(len(dataset.names))
    for number, name in enumerate(dataset.listing()):
        objects = dataset[number].objects
        if objects is None:
            return {}
        metric.add(number, labels.detections(name), objects)
    samples = metric.samples()
    scores: dict[str, Any] = samples.scores()
    return {key: plain(scores[key]) for key in ("ap", "ap50")} | quality(samples, config.score)


def _summary(labels: PseudoLabels, facts: Mapping[str, Any]) -> str:
    count = sum(len(labels.detections(image)) for image in labels)
    line = f"{count:,} pseudo-labels on {len(labels):,} images"
    if not facts:
        return line
    shares = (("AP", "ap"), ("AP50", "ap50"), ("precision", "precision"), ("recall", "recall"))
    shown = [f"{name} {100 * value:.1f}" for name, key in shares if (value := facts[key]) is not None]
    return f"{line}; against their labels: {', '.join(shown)} %"


def _draw_sheet(config: PseudoLabelConfig, context: StageContext, labels: PseudoLabels, dataset: Dataset) -> None:
    """Some images, evenly spaced, with their pseudo-labels and, where there are any, their labels."""
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(config.sheet, len(dataset))).astype(int))
    names, rows = list(dataset.listing()), []
    for number in chosen:
        sample = dataset[int(number)]
        shown = [sample.image, _drawn(sample.image, labels.objects(names[number]), dataset)]
        shown += [] if sample.objects is None else [_drawn(sample.image, sample.objects, dataset)]
        rows.append([*map(cell, shown), *[None] * (3 - len(shown))])
    if rows:
        sheet = Image.fromarray(contact_sheet(rows, ("image", "pseudo-labels", "labels"), [names[n] for n in chosen]))
        write_atomic(context.folder / SHEET, lambda file: sheet.save(file, "PNG"))


def _drawn(image: Any, objects: Any, dataset: Dataset) -> Any:
    return np.asarray(object_picture(image, objects, dataset.colors.tolist()))
