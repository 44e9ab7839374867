"""Pseudo-labels: a trained network predicts the objects of unlabelled images, once, into a file (spec sskd, 2.2, 3)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from segdistill.data.dataset import Dataset
from segdistill.data.pseudo import Origin, PseudoLabels, PseudoWriter, read_pseudo
from segdistill.encoders import build_encoder, record_of
from segdistill.files import write_atomic
from segdistill.metrics.instances import InstanceMetric
from segdistill.metrics.quality import quality
from segdistill.models import InstanceSegmenter, Model, View
from segdistill.pictures import contact_sheet, object_picture
from segdistill.stages.base import StageConfig, StageContext, StageResult, count, need
from segdistill.stages.task import build_model
from segdistill.tasks.table import TASKS

LABELS = "labels.json"
SHEET = "sheet.png"


class PseudoLabelConfig(StageConfig):
    """Settings of a pseudo-label stage. The images may have labels: these measure the quality, and nothing else."""

    type: Literal["pseudo_label"] = "pseudo_label"
    model: Literal["student", "teacher"] = "teacher"
    task: str = Field("semantic", exclude=True, description="set from the recipe")
    steps: Literal[0] = Field(0, exclude=True)  # type: ignore[assignment]
    batch: Literal[1] = Field(1, exclude=True)  # type: ignore[assignment]
    score: float = Field(0.3, ge=0, le=1, description="least score of a pseudo-label")
    least: int = Field(5, ge=1, le=10**6, description="least pixels of a pseudo-label")
    sheet: int = Field(12, ge=0, le=200, description="images on the contact sheet")

    @property
    def roles(self) -> tuple[str, ...]:
        """The network that predicts."""
        return (self.model,)

    @property
    def trains(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def predicts(self) -> str:
        """The network that predicts."""
        return self.model

    @property
    def gives_labels(self) -> bool:
        """Yes."""
        return True

    def faults(self) -> list[str]:
        """Also a task whose predictions are not objects."""
        lines = super().faults()
        if not TASKS[self.task].objects:
            lines.append(f"pseudo-labels are objects; the task '{self.task}' has none")
        return lines

    def run(self, context: StageContext) -> StageResult:
        """See :func:`run_pseudo_label`."""
        return run_pseudo_label(self, context)


def run_pseudo_label(config: PseudoLabelConfig, context: StageContext) -> StageResult:
    """Predict every image; writes ``labels.json`` (see :mod:`segdistill.data.pseudo`) and ``sheet.png``.

    An interrupted stage continues with the images that are missing.
    """
    dataset, began = context.open(config.data), time.perf_counter()
    settings = need(context.finished, config.model, context.label)
    encoder = build_encoder(settings.encoder, seed=0)
    network = build_model(TASKS[config.task], settings, encoder, dataset.names, seed=0, stage=context.label)
    network = network.to(context.fabric.device).eval()
    path, facts = context.folder / LABELS, {}
    if context.fabric.is_global_zero:
        labels = read_pseudo(path) if path.exists() else _predicted(config, context, network, dataset)
        facts = _measured(config, labels, dataset)
        facts["summary"] = _summary(labels, facts)
        _draw_sheet(config, context, labels, dataset)
    context.fabric.barrier()
    return StageResult(
        time.perf_counter() - began,
        {"encoder": count(network.encoder), "head": count(network.head)},
        classes=tuple(dataset.names),
        facts=facts,
    )


def _predicted(config: PseudoLabelConfig, context: StageContext, network: Model, dataset: Dataset) -> PseudoLabels:
    """Write the predictions of all images; finished ones are skipped."""
    assert isinstance(network, InstanceSegmenter)
    settings = need(context.finished, config.model, context.label)
    origin = Origin(
        teacher=settings.title or settings.encoder.name,
        licence=record_of(settings.encoder.name).licence,
        thresholds={"score": config.score, "pixels": config.least},
        fingerprint=context.fingerprint,
    )
    names, views = list(dataset.listing()), {}
    with PseudoWriter(context.folder / LABELS, dataset.names, origin) as writer, context.fabric.autocast():
        for number, name in enumerate(names):
            if name not in writer.done:
                sample = dataset[number]
                view = views.setdefault(sample.domain, View.of(dataset.protocol(sample.domain)))
                image = torch.tensor(sample.image).permute(2, 0, 1)[None].to(context.fabric.device)
                size = (sample.image.shape[0], sample.image.shape[1])
                found = network.predict(view.prepare(image), size)[0].above(config.score)
                visible = found.visible(least=config.least)
                writer.add(name, visible, {"found": len(found), "hidden": len(found) - len(visible)})
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
    scores = metric.result("pseudo-labels")
    return {key: scores[key] for key in ("ap", "ap50")} | quality(metric.samples(), config.score)


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
        rows.append([*shown, None if sample.objects is None else _drawn(sample.image, sample.objects, dataset)])
    if rows and len({row[0].shape for row in rows}) == 1:
        sheet = Image.fromarray(contact_sheet(rows, ("image", "pseudo-labels", "labels"), [names[n] for n in chosen]))
        write_atomic(context.folder / SHEET, lambda file: sheet.save(file, "PNG"))


def _drawn(image: Any, objects: Any, dataset: Dataset) -> Any:
    return np.asarray(object_picture(image, objects, dataset.colors.tolist()))
