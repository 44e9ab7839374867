"""Predicted score on images without labels: will the model hold on *my* images?

The run's labelled source and validation images, as they are and shifted (:mod:`segdistill.estimation.shifts`), are
points: what needs no labels (the model's mean confidence; its agreement with its teacher) against the primary score,
mIoU or AP (:mod:`segdistill.estimation.measures`). A line through them (:mod:`segdistill.estimation.line`) maps what is
measured on a folder to a score with an interval. Unseen domains never enter it. Where the folder lies far outside what
was fitted there is no number. benchmarks/estimate.md says how far it is off.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from segdistill.config import UserError, expanded
from segdistill.data.dataset import Dataset
from segdistill.data.rendered import cache_folder
from segdistill.estimation.line import COVERAGE, Line, fit
from segdistill.estimation.measures import measures_of
from segdistill.estimation.shifts import SHIFTS, STRENGTHS, apply
from segdistill.files import facts_digest, write_atomic, write_json
from segdistill.inference.arrays import as_tensor
from segdistill.inference.inputs import find_inputs
from segdistill.inference.model import Model, ObjectModel, load, teacher_here
from segdistill.inference.objects import ObjectResult
from segdistill.inference.result import Result
from segdistill.pictures import contact_sheet
from segdistill.recipe import Recipe
from segdistill.runlog import Quiet, Watcher
from segdistill.runs.overlap import trained_on
from segdistill.runs.rescore import trained
from segdistill.sharing.pack import packed_path, read_packed, recipe_in, with_root

FORMAT = 2
"""Of the fitted points: raise it whenever they would come out differently."""

AS_IS = "as they are"
IMAGES = 30  # labelled images of a domain that are measured under each shift
SHEET = 480  # pixels: longest side of a picture on the sheet
MEASURES = ("agreement", "confidence")
AnyModel = Model | ObjectModel


@dataclass(frozen=True)
class Point:
    """One domain under one shift."""

    domain: str
    shift: str
    confidence: float
    agreement: float | None
    score: float


@dataclass(frozen=True)
class Seen:
    """What one image of the folder says: ``x`` is the fitted measure."""

    name: str
    x: float
    confidence: float
    agreement: float | None


@dataclass(frozen=True)
class Estimate:
    """The answer. ``score`` and ``interval`` are None where the folder is ``refused``, which says why."""

    score: float | None  # mIoU, AP or AP50, as ``metric`` says
    interval: tuple[float, float] | None
    refused: str | None
    measure: str  # what the line is over: agreement or confidence
    x: float  # its mean over the folder
    line: Line
    images: tuple[Seen, ...]  # the worst first
    metric: str = "mIoU"
    sheet: Path | None = None

    def lines(self) -> list[str]:
        """For the user."""
        what = f"{self.measure} {100 * self.x:.1f} %, fitted {100 * self.line.low:.1f} to {100 * self.line.high:.1f} %"
        if self.score is None or self.interval is None:
            head = f"no estimate: {self.refused}"
        else:
            low, high = (100 * value for value in self.interval)
            score = f"{100 * self.score:.1f} {self.metric}"
            head = f"about {score}, between {low:.1f} and {high:.1f} in {COVERAGE:.0%} of cases"
        error = f"mean error of the fit when a domain or shift is left out: {100 * self.line.error:.1f} points"
        tail = [f"worst images: {', '.join(each.name for each in self.images[:5])}"]
        return [head, f"{len(self.images)} images: {what}", error, *tail]


def estimate(
    what: Path | str,
    folder: Path | str,
    *,
    out: Path | str | None = None,
    worst: int = 8,
    device: str = "auto",
    root: Path | str | None = None,
    watcher: Watcher | None = None,
) -> Estimate:
    """Predict the mIoU, AP or AP50 of ``what`` on the images of ``folder``, which need no labels.

    ``what`` is a run folder, a packed file or ``hf:<owner>/<name>``. The line is fitted once and kept; the labelled
    source and validation images of its recipe must be there for that, below ``root`` where it is given. ``out`` is the
    picture of the ``worst`` images.
    """
    watcher, out = watcher or Quiet(), None if out is None else Path(out)
    recipe, path = _recipe_of(what, None if root is None else Path(root))
    model, teacher, points = _points(what, recipe, path, device, watcher)
    files = [file for each in find_inputs([folder]) for file in each.files()]
    if count := trained_on(files, recipe):
        watcher.warn(
            f"{folder}: {count} of {len(files)} were trained on, or are copies of such images, and the estimate is too "
            "good for them; leave them out"
        )
    measures = measures_of(model)
    measure, line = choose_line(points)
    images, rows = [], []
    for number, result in enumerate(model.predict_each([folder]), 1):
        confidence, agreement = measures.confidence(result), None
        if teacher is not None:
            agreement = measures.agreement(result, *teacher.predict_batch(as_tensor(result.image)[None]))
        x = agreement if measure == "agreement" else confidence
        assert x is not None
        images.append(Seen(result.name or str(number), x, confidence, agreement))
        rows = sorted([*rows, (x, number, _small(result), images[-1].name)], key=lambda row: row[:2])[:worst]
        watcher.work(f"images of {Path(folder).name}", number, number)
    if not images:
        raise UserError(f"{folder} holds no images")
    if out is not None:
        sheet = _sheet(
            [row[2] for row in rows], [f"{row[3]}, {100 * line.at(row[0]):.0f} {measures.label}" for row in rows]
        )
        write_atomic(out, lambda file: Image.fromarray(sheet).save(file, format="PNG"))
    found = judge(measure, line, sorted(images, key=lambda each: (each.x, each.name)), measures.label)
    return replace(found, sheet=out)


def judge(measure: str, line: Line, images: Sequence[Seen], metric: str) -> Estimate:
    """The estimate for the images' mean, or why there is none."""
    x = float(np.mean([each.x for each in images]))
    refused = None
    if line.outside(x):
        way, percent = "below" if x < line.low else "above", f"{100 * line.low:.1f} to {100 * line.high:.1f} %"
        refused = (
            f"the {measure} of {100 * x:.1f} % is far {way} the {percent} of what "
            "was fitted; label a few of these images and evaluate on them"
        )
    elif line.slope <= 0:
        refused = f"on the fitted images a higher {measure} does not go with a higher {metric}; add validation domains"
    found = None if refused else line.at(x)
    return Estimate(found, None if refused else line.interval(x), refused, measure, x, line, tuple(images), metric)


def choose_line(points: Sequence[Point]) -> tuple[str, Line]:
    """The measure whose line is less wrong on what it was not fitted on, and that line."""
    if len({point.shift for point in points}) < 2 and len({point.domain for point in points}) < 3:
        raise UserError("too few points for a line: it needs labelled source or validation domains in the recipe")
    lines = {}
    for measure in MEASURES:
        xs = [getattr(point, measure) for point in points]
        if None not in xs:
            names = [[point.domain for point in points], [point.shift for point in points]]
            lines[measure] = fit(xs, [point.score for point in points], names)
    return min(lines.items(), key=lambda item: item[1].margin)


def points_of(
    what: Path | str, *, device: str = "auto", root: Path | None = None, watcher: Watcher | None = None
) -> tuple[AnyModel, AnyModel | None, list[Point]]:
    """The model, its teacher, and the points that a line is fitted to.

    The points are kept in the run's ``estimate.json``; those of a packed file, which has no folder of its own and no
    teacher, below the cache folder.
    """
    return _points(what, *_recipe_of(what, root), device, watcher or Quiet())


def _points(
    what: Path | str, recipe: Recipe, path: Path | None, device: str, watcher: Watcher
) -> tuple[AnyModel, AnyModel | None, list[Point]]:
    """See :func:`points_of`; ``path``: where they are kept, None: below the cache folder."""
    model = load(what, device=device)
    teacher: AnyModel | None = teacher_here(model, watcher.warn)
    domains = fitted_domains(recipe)
    facts = [FORMAT, model.digest, teacher and teacher.digest, domains, IMAGES, list(SHIFTS), STRENGTHS,
             recipe.scored_source.facts(*(_selection(recipe, name) for name in domains))]  # fmt: skip
    key = facts_digest(facts, default=str)
    path = path or cache_folder() / "estimate" / f"{key}.json"
    kept = _read(path, key)
    if kept is None:
        kept = list(measure_domains(model, teacher, recipe, domains, watcher))
        write_json(path, {"key": key, "points": [asdict(point) for point in kept]})
    return model, teacher, kept


def _recipe_of(what: Path | str, root: Path | None) -> tuple[Recipe, Path | None]:
    """The recipe of a run or a packed file, and where a run keeps its points."""
    if str(what).startswith("hf:") or expanded(what).is_file():
        return recipe_in(read_packed(packed_path(what))[1], root), None
    run, _ = trained(Path(what))
    return with_root(run.recipe, root), run.folder / "estimate.json"


def fitted_domains(recipe: Recipe) -> list[str]:
    """The scored domains that are not unseen; a :class:`UserError` where there is none."""
    config = recipe.evaluate
    domains = [] if config is None else [name for name in config.domains if name not in config.unseen]
    if not domains:
        raise UserError(
            "the run's recipe scores no source or validation domain, which the line is fitted on: add one with labels "
            "to evaluate.domains"
        )
    return domains


def measure_domains(
    model: AnyModel, teacher: AnyModel | None, recipe: Recipe, domains: Sequence[str], watcher: Watcher
) -> Iterator[Point]:
    """A point for every domain as it is and under every shift at every strength."""
    shifts = [(AS_IS, 0.0), *((name, strength) for name in SHIFTS for strength in STRENGTHS)]
    total, done = len(domains) * len(shifts), 0
    for domain in domains:
        dataset = recipe.scored_source.open(_selection(recipe, domain), watcher.work)
        for name, strength in shifts:
            change = None if name == AS_IS else lambda image, i, n=name, s=strength: apply(n, image, s, i)
            confidence, agreement, score = measure(model, teacher, dataset, change, IMAGES)
            if math.isnan(score):
                raise UserError(f"the first {IMAGES} images of domain '{domain}' have no ground truth to fit a line on")
            yield Point(domain, f"{name} {strength:g}" if change else name, confidence, agreement, score)
            done += 1
            watcher.work("fitting the estimate", done, total)


def measure(
    model: AnyModel,
    teacher: AnyModel | None,
    dataset: Dataset,
    change: Callable[[NDArray[np.uint8], int], NDArray[np.uint8]] | None,
    images: int,
) -> tuple[float, float | None, float]:
    """Mean confidence, agreement with the teacher, and score on the first ``images`` of ``dataset``."""
    measures = measures_of(model)
    confidences, agreements = [], []
    for number in range(min(images, len(dataset))):
        sample = dataset[number]
        pixels = sample.image if change is None else change(sample.image, number)
        tensor = torch.tensor(pixels).permute(2, 0, 1)[None]
        [result] = model.predict_batch(tensor)
        measures.add(result, sample)
        confidences.append(measures.confidence(result))
        if teacher is not None:
            agreements.append(measures.agreement(result, *teacher.predict_batch(tensor)))
    agreement = float(np.mean(agreements)) if agreements else None
    return float(np.mean(confidences)), agreement, measures.score()


def _selection(recipe: Recipe, domain: str) -> Any:
    assert recipe.evaluate is not None
    return recipe.evaluate.selection(recipe.scored_source, domain)


def _read(path: Path, key: str) -> list[Point] | None:
    """The kept points where they are of this model and these images."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return [Point(**point) for point in values["points"]] if values["key"] == key else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"damaged {path}; delete the file to measure again") from None


def _small(result: Result | ObjectResult) -> tuple[Image.Image, Image.Image]:
    """Image and overlay for the sheet."""
    pictures = Image.fromarray(result.image), result.overlay()
    for picture in pictures:
        picture.thumbnail((SHEET, SHEET))
    return pictures


def _sheet(rows: Sequence[tuple[Image.Image, Image.Image]], names: Sequence[str]) -> NDArray[np.uint8]:
    """Image beside prediction, a row each, padded to one size."""
    width, height = (max(picture.size[axis] for row in rows for picture in row) for axis in (0, 1))
    padded = []
    for row in rows:
        cells = []
        for picture in row:
            cell = Image.new("RGB", (width, height), (255, 255, 255))
            cell.paste(picture, (0, 0))
            cells.append(np.asarray(cell))
        padded.append(cells)
    return contact_sheet(padded, ["image", "prediction"], names=list(names))
