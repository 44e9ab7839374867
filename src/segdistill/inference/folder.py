"""Predictions for many images as files: class maps, overlays, confidences, comparisons with the teacher.

A class map carries a mark, the hash of the model, of the image's content and of what was asked for: an image is skipped
where its files are there and carry the same mark. Class maps are written last, so a mark means that all is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from segdistill.config import UserError
from segdistill.data.archives import BadSample
from segdistill.inference.inputs import Item, find_inputs, output_names, stem_of
from segdistill.inference.model import GROUP, Model
from segdistill.inference.result import Result, mark_of, save_png, side_by_side
from segdistill.runlog import Quiet, Watcher

CLASSES, OVERLAY, CONFIDENCE, SIDE = "classes", "overlay", "confidence", "side_by_side"


@dataclass(frozen=True)
class Wanted:
    """Which files are written beside the class maps, and how inputs are taken."""

    overlay: bool = True
    confidence: bool = False
    side_by_side: bool = False
    batch: int = 8  # images of one size that are computed together
    every: int = 1  # frame of a video
    skip_bad: bool = False  # go on after an image that cannot be read

    @property
    def kinds(self) -> tuple[str, ...]:
        """The folders below ``out``; the class maps are the last."""
        chosen = ((OVERLAY, self.overlay), (CONFIDENCE, self.confidence), (SIDE, self.side_by_side), (CLASSES, True))
        return tuple(kind for kind, wanted in chosen if wanted)


@dataclass
class Outcome:
    """What became of the images."""

    out: Path
    made: int = 0
    kept: int = 0  # finished before
    bad: list[str] = field(default_factory=list)  # one line for each that could not be read


@dataclass(frozen=True)
class _Held:
    name: str
    mark: str
    image: torch.Tensor  # (3, H, W) uint8


def predict_to_folder(
    model: Model,
    words: Sequence[str | Path],
    out: Path,
    wanted: Wanted | None = None,
    watcher: Watcher | None = None,
) -> Outcome:
    """Write the predictions for all that ``words`` name (see :mod:`segdistill.inference.inputs`) below ``out``.

    ``out/classes/NAME.png`` are indexed PNG with the classes' colours; ``overlay``, ``confidence`` (grey, 255 is
    certain) and ``side_by_side`` (image, teacher where there is one, model) lie beside them. Raises
    :class:`segdistill.data.archives.BadSample` for the first image that cannot be read, unless they are skipped.
    """
    wanted, watcher = wanted or Wanted(), watcher or Quiet()
    inputs = find_inputs(words, every=wanted.every)
    names = output_names(inputs)
    total = sum(each.count or 0 for each in inputs)
    teacher = model.teacher if wanted.side_by_side else None
    writer, outcome = _Writer(model, teacher, out, wanted), Outcome(out)
    held: list[_Held] = []

    def flush() -> None:
        if held:
            writer.write(held)
            outcome.made += len(held)
            held.clear()
            watcher.work("predicting", done(), max(total, done()))

    def done() -> int:
        return outcome.made + outcome.kept + len(outcome.bad)

    for item in _items(inputs, outcome, skip_bad=wanted.skip_bad):
        name = names.get(item.where) or stem_of(item.name)
        try:
            loaded = item.load()
            mark = writer.mark(loaded.digest)
            if writer.finished(name, mark):
                outcome.kept += 1
                watcher.work("predicting", done(), max(total, done()))
                continue
            image = torch.from_numpy(loaded.pixels()).permute(2, 0, 1)
        except BadSample as error:
            if not wanted.skip_bad:
                flush()
                raise BadSample(f"{error}; --skip-bad goes on without it") from None
            outcome.bad.append(str(error))
            continue
        if held and (held[0].image.shape != image.shape or _full(held, image, wanted.batch)):
            flush()
        held.append(_Held(name, mark, image))
    flush()
    if not done():
        raise UserError("the inputs have no images or frames")
    return outcome


def _items(inputs: Sequence, outcome: Outcome, *, skip_bad: bool) -> Iterator[Item]:
    """All images; a video that breaks off counts as one bad input."""
    for each in inputs:
        try:
            yield from each.items()
        except BadSample as error:
            if not skip_bad:
                raise BadSample(f"{error}; --skip-bad goes on without it") from None
            outcome.bad.append(str(error))


def _full(held: list[_Held], image: torch.Tensor, batch: int) -> bool:
    pixels = image.shape[1] * image.shape[2]
    return len(held) >= batch or (len(held) + 1) * pixels > GROUP


class _Writer:
    """The files of one command."""

    def __init__(self, model: Model, teacher: Model | None, out: Path, wanted: Wanted) -> None:
        self.model, self.teacher, self.out, self.wanted = model, teacher, out, wanted
        self.kinds = wanted.kinds
        beside = [] if teacher is None else [teacher.digest]
        self.base = "|".join([model.digest, *beside])
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None

    def mark(self, content: str) -> str:
        """What the files of an image with this content hash are marked with."""
        return hashlib.sha256(f"{self.base}|{content}".encode()).hexdigest()

    def path(self, kind: str, name: str) -> Path:
        """Where a file stands."""
        return self.out / kind / f"{name}.png"

    def finished(self, name: str, mark: str) -> bool:
        """Whether all files are there and were made of this image by this model; somebody's own file is an error."""
        marks = [mark_of(self.path(kind, name)) for kind in self.kinds]
        return all(each == mark for each in marks)

    def write(self, held: Sequence[_Held]) -> None:
        """Predict on images of one size and write what is wanted."""
        images, names = torch.stack([each.image for each in held]), [each.name for each in held]
        results = self.model.predict_batch(images, names)
        teachers = [None] * len(held) if self.teacher is None else self.teacher.predict_batch(images, names)
        for each, result, teacher in zip(held, results, teachers, strict=True):
            for kind in self.kinds:
                self._write(kind, self.path(kind, each.name), result, teacher, each.mark)

    def _write(self, kind: str, path: Path, result: Result, teacher: Result | None, mark: str) -> None:
        if kind == CLASSES:
            result.save(path, mark)
        elif kind == CONFIDENCE:
            result.save_confidence(path, mark)
        elif kind == OVERLAY:
            save_png(path, result.overlay(), mark)
        else:
            titles = ["image", *([] if teacher is None or self.teacher is None else [self.teacher.title])]
            save_png(path, side_by_side(result, teacher, [*titles, self.model.title or "model"]), mark)
