"""Pseudo-labels for images outside a recipe: a COCO document with scores, Cityscapes instanceIds, a contact sheet.

One image is held at a time. An interrupted command continues with the images that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from segdistill.config import Names, UserError, expanded, parse, read_yaml
from segdistill.data.archives import BadSample
from segdistill.data.instance_ids import write_instance_ids
from segdistill.data.pseudo import Origin, PseudoLabels, PseudoWriter, read_pseudo
from segdistill.encoders import record_of
from segdistill.files import json_digest, sha256, write_atomic
from segdistill.inference.inputs import Input, find_inputs, items_of, output_names, reject
from segdistill.inference.model import _device, view_of
from segdistill.inference.result import generated_colors
from segdistill.models import InstanceSegmenter, View
from segdistill.models.open_vocabulary import OpenVocabulary, OpenVocabularyConfig
from segdistill.pictures import cell, contact_sheet, object_picture
from segdistill.runlog import Quiet, Watcher
from segdistill.runs.rescore import trained
from segdistill.runs.score import load_model
from segdistill.sharing.packed import load_packed
from segdistill.stages.labeller import Labeller, open_labeller, own_labeller

DOMAIN = "images"
"""Domain of the images in the document."""
YAML = (".yaml", ".yml")


class TeacherFile(OpenVocabularyConfig):
    """An open-vocabulary teacher in a YAML file."""

    classes: Names = Field(min_length=1, description="the classes to look for")


@dataclass(frozen=True)
class Wanted:
    """Which pseudo-labels are kept, and what is written beside the document; sheet: a picture of ``shown`` images."""

    score: float = 0.3
    least: int = 5
    instance_ids: Path | None = None
    sheet: Path | None = None
    shown: int = 12
    every: int = 1  # frame of a video
    skip_bad: bool = False


@dataclass
class Outcome:
    """What was written: the document, the images labelled now and before, those that cannot be read, and warnings."""

    labels: PseudoLabels
    made: int = 0
    kept: int = 0
    bad: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def label_images(
    what: str | Path,
    words: Sequence[str | Path],
    out: Path,
    wanted: Wanted | None = None,
    *,
    role: str | None = None,
    device: str = "auto",
    watcher: Watcher | None = None,
) -> Outcome:
    """Write pseudo-labels for all that ``words`` name (see :mod:`segdistill.inference.inputs`) to ``out`` (``.json``).

    ``what``: the run folder or the packed file of an instance segmenter, or a YAML file with the settings of an
    open-vocabulary teacher and its ``classes``.
    """
    wanted, watcher = wanted or Wanted(), watcher or Quiet()
    inputs = find_inputs(words, every=wanted.every)
    output_names(inputs)  # no two images of one name
    labeller, classes, view = load_labeller(what, wanted, role=role)
    labeller.network.to(torch.device(_device(device))).eval()
    if out.exists():
        outcome = _finished(out, classes, labeller.origin, inputs, skip_bad=wanted.skip_bad)
    else:
        outcome = _label(labeller, classes, view, inputs, out, wanted=wanted, watcher=watcher)
    outcome.warnings = labeller.unseen(outcome.labels.info["counts"])
    if wanted.instance_ids is not None:
        write_instance_ids(outcome.labels, wanted.instance_ids, progress=watcher.work)
    if wanted.sheet is not None:
        _draw_sheet(outcome.labels, inputs, wanted)
    return outcome


def load_labeller(
    what: str | Path, wanted: Wanted, *, role: str | None = None
) -> tuple[Labeller, tuple[str, ...], View]:
    """The network of ``what``, its classes, and how it sees images."""
    path, kept = expanded(what), {"score": wanted.score, "least": wanted.least}
    if path.suffix.lower() in YAML:
        values = read_yaml(path, "teacher", "give a run folder, a packed file, or a YAML file of a teacher")
        file = parse(TeacherFile, values, str(path))
        settings = OpenVocabularyConfig.model_validate(file.model_dump(exclude={"classes"}))
        network = OpenVocabulary(settings, file.classes)
        return open_labeller(network, settings, json_digest(settings.digests()), **kept), file.classes, View()
    if not path.exists():
        raise UserError(f"no model at {what}; give a run folder, a packed file, or a YAML file of a teacher")
    segmenter: Any
    if path.is_file():
        segmenter, header = load_packed(path)
        resize = header["preprocessing"].get("resize")
        classes, view = tuple(header["classes"]), View(resize and (resize[0], resize[1]))
        origin = Origin(header.get("title") or path.name, str(header.get("licence", "")), fingerprint=sha256(path))
    else:
        run, scored = trained(path, role)
        classes, view = scored.classes or run.recipe.classes(), view_of(run.recipe)
        segmenter = load_model(scored, classes)
        licence = record_of(scored.model.encoder.name).licence
        origin = Origin(scored.title, licence, fingerprint=scored.fingerprint)
    if not isinstance(segmenter, InstanceSegmenter):
        raise UserError(f"{what} predicts no masks of objects; give a model of the task instance")
    return own_labeller(segmenter, origin, **kept), classes, view


def _label(
    labeller: Labeller,
    classes: Sequence[str],
    view: View,
    inputs: Sequence[Input],
    out: Path,
    *,
    wanted: Wanted,
    watcher: Watcher,
) -> Outcome:
    """Predict the images that the part file lacks, then write the document."""
    total, bad, made, kept = sum(each.count or 0 for each in inputs), [], 0, 0
    noted = bad if wanted.skip_bad else None
    with PseudoWriter(out, classes, labeller.origin) as writer, torch.inference_mode():
        for item in items_of(inputs, noted):
            name = f"{DOMAIN}/{item.name}"
            if name in writer.done:
                kept += 1
                continue
            try:
                image = item.load().pixels()
            except BadSample as error:
                reject(error, noted)
                continue
            writer.add(name, *labeller.label(image, view))
            made += 1
            done = made + kept + len(bad)
            watcher.work("pseudo-labels", done, max(total, done))
        if not made + kept:
            raise UserError("the inputs have no images or frames")
        return Outcome(writer.finish(), made, kept, bad)


def _finished(out: Path, classes: Sequence[str], origin: Origin, inputs: Sequence[Input], *, skip_bad: bool) -> Outcome:
    """The document of an earlier command, if it was the same one."""
    labels = read_pseudo(out, classes)
    for key, value in asdict(origin).items():
        if labels.info.get(key) != value:
            raise UserError(f"{out} was made with another {key}: remove it, or write elsewhere")
    names = [f"{DOMAIN}/{item.name}" for each in inputs if each.count is not None for item in each.items()]
    if not skip_bad and (missing := [name for name in names if name not in labels]):
        count = f"{len(missing)} of the images, such as {missing[0]}"
        raise UserError(f"{out} is finished without {count}: remove it, or write elsewhere")
    return Outcome(labels, kept=len(labels))


def _draw_sheet(labels: PseudoLabels, inputs: Sequence[Input], wanted: Wanted) -> None:
    """Some images, evenly spaced in the document, with their pseudo-labels."""
    assert wanted.sheet is not None
    every = list(labels)
    chosen = {every[i] for i in np.linspace(0, len(every) - 1, min(wanted.shown, len(every))).astype(int)}
    colors, rows, names = generated_colors(len(labels.classes)), [], []
    for item in items_of(inputs, []):
        name = f"{DOMAIN}/{item.name}"
        if name in chosen and item.name not in names:
            image = item.load().pixels()
            drawn = np.asarray(object_picture(image, labels.objects(name), colors))
            rows.append([cell(image), cell(drawn)])
            names.append(item.name)
    sheet = Image.fromarray(contact_sheet(rows, ("image", "pseudo-labels"), names))
    write_atomic(wanted.sheet, lambda file: sheet.save(file, "PNG"))
