"""The files that predictions become, by kind of model.

Class maps: ``classes/NAME.png``, indexed PNG with the classes' colours. Objects: ``ids/NAME.png``, 16-bit PNG with the
number of the object at each pixel (0: none), ``objects/NAME.json`` with every object's score, class, box and run
lengths, and ``objects.json``, all of them in COCO's form; a detector's have boxes alone and no ``ids``. Beside both:
``overlay``, and ``side_by_side`` (image, teacher where there is one, model); for class maps also ``confidence`` (grey,
255 is certain).

Of an image, the class map or ``objects/NAME.json`` is written last: its mark means that everything is there.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from segdistill.config import UserError
from segdistill.files import write_atomic, write_bytes
from segdistill.inference.model import Model, ObjectModel
from segdistill.inference.objects import KEPT, SHOWN, ObjectResult
from segdistill.inference.result import Result, fitted, foreign, mark_of, save_png, side_by_side
from segdistill.models import Detector
from segdistill.pictures import Pixels

CLASSES, OVERLAY, CONFIDENCE, SIDE, IDS, OBJECTS = "classes", "overlay", "confidence", "side_by_side", "ids", "objects"
ALL = "objects.json"


@dataclass(frozen=True)
class Wanted:
    """Which files are written, and how inputs are taken."""

    overlay: bool = True
    confidence: bool = False
    side_by_side: bool = False
    batch: int = 8  # images of one size that are computed together
    every: int = 1  # frame of a video
    skip_bad: bool = False  # go on after an image that cannot be read
    score: float | None = None  # least score of objects in id maps and pictures; None: 0.5
    keep: float | None = None  # least score of objects in JSON files; None: 0.05, or ``score`` if it is lower


@dataclass(frozen=True)
class Held:
    """An image to predict on: the name of its files, its own relative path, the mark, and its pixels (3, H, W)."""

    name: str
    source: str
    mark: str
    image: torch.Tensor


class Writer(ABC):
    """The files of one command. ``names``: the images whose files are or will be there, in order."""

    kinds: tuple[str, ...]

    def __init__(self, model: Any, out: Path, wanted: Wanted, *facts: object) -> None:
        self.model, self.out, self.wanted = model, out, wanted
        self.teacher = model.teacher if wanted.side_by_side else None
        beside = [] if self.teacher is None else [self.teacher.digest]
        self.base = "|".join([model.digest, *beside, *map(str, facts)])
        self.names: list[str] = []
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None

    def mark(self, content: str) -> str:
        """The mark of the files of an image with this content hash."""
        return hashlib.sha256(f"{self.base}|{content}".encode()).hexdigest()

    def path(self, kind: str, name: str) -> Path:
        """The place of a file."""
        return self.out / kind / f"{name}.{'json' if kind == OBJECTS else 'png'}"

    def finished(self, name: str, mark: str) -> bool:
        """Whether all files are there and were made of this image by this model; any other file is an error."""
        marks = [(_json_mark if kind == OBJECTS else mark_of)(self.path(kind, name)) for kind in self.kinds]
        return all(each == mark for each in marks)

    def write(self, held: Sequence[Held]) -> None:
        """Predict on images of one size and write their files."""
        images, names = torch.stack([each.image for each in held]), [each.name for each in held]
        results = self.model.predict_batch(images, names)
        teachers = [None] * len(held) if self.teacher is None else self.teacher.predict_batch(images, names)
        for each, result, teacher in zip(held, results, teachers, strict=True):
            for kind in self.kinds:
                self.save(kind, each, result, teacher)

    @property
    def titles(self) -> list[str]:
        """Above the columns of a comparison."""
        return ["image", *([] if self.teacher is None else [self.teacher.title]), self.model.title or "model"]

    @abstractmethod
    def save(self, kind: str, held: Held, result: Any, teacher: Any) -> None:
        """Write one file."""

    def close(self) -> None:  # noqa: B027  class maps have none
        """Write what covers all images."""


class MapWriter(Writer):
    """The files of class maps."""

    def __init__(self, model: Model, out: Path, wanted: Wanted) -> None:
        if wanted.score is not None or wanted.keep is not None:
            raise UserError("score and keep are for models of objects; this one predicts class maps")
        chosen = ((OVERLAY, wanted.overlay), (CONFIDENCE, wanted.confidence), (SIDE, wanted.side_by_side))
        self.kinds = (*(kind for kind, on in chosen if on), CLASSES)
        super().__init__(model, out, wanted)

    def save(self, kind: str, held: Held, result: Result, teacher: Result | None) -> None:
        """See :class:`Writer`."""
        path = self.path(kind, held.name)
        if kind == CLASSES:
            result.save(path, held.mark)
        elif kind == CONFIDENCE:
            result.save_confidence(path, held.mark)
        elif kind == OVERLAY:
            save_png(path, result.overlay(), held.mark)
        else:
            draw = [each.small for each in (teacher, result) if each is not None]
            save_png(path, side_by_side(result.image, draw, self.titles), held.mark)


class ObjectWriter(Writer):
    """The files of objects."""

    def __init__(self, model: ObjectModel, out: Path, wanted: Wanted) -> None:
        if wanted.confidence:
            raise UserError("confidence is a picture of class maps; every object's score is in objects.json")
        self.score = SHOWN if wanted.score is None else wanted.score
        self.keep = min(KEPT, self.score) if wanted.keep is None else wanted.keep
        if not 0 <= self.keep <= self.score <= 1:
            raise UserError(
                f"scores must satisfy 0 <= keep <= score <= 1, got keep {self.keep:g} and score {self.score:g}: the "
                "objects of the id maps must be in objects.json"
            )
        chosen = ((OVERLAY, wanted.overlay), (SIDE, wanted.side_by_side))
        maps = () if isinstance(model.segmenter, Detector) else (IDS,)
        self.kinds = (*(kind for kind, on in chosen if on), *maps, OBJECTS)
        super().__init__(model, out, wanted, self.score, self.keep)
        _json_mark(out / ALL)

    def save(self, kind: str, held: Held, result: ObjectResult, teacher: ObjectResult | None) -> None:
        """See :class:`Writer`."""
        path = self.path(kind, held.name)
        if kind == IDS:
            result.save(path, held.mark, self.score)
        elif kind == OBJECTS:
            height, width = result.detections.size
            content = {"segdistill": held.mark, "file_name": held.source, "height": height, "width": width,
                       "objects": result.above(self.keep).records()}  # fmt: skip
            write_bytes(path, json.dumps(content).encode())
        elif kind == OVERLAY:
            save_png(path, result.overlay(self.score), held.mark)
        else:
            draw = [partial(self._small, each) for each in (teacher, result) if each is not None]
            save_png(path, side_by_side(result.image, draw, self.titles), held.mark)

    def _small(self, result: ObjectResult, size: tuple[int, int]) -> Pixels:
        """The overlay at ``size`` (width, height)."""
        return fitted(np.asarray(result.overlay(self.score)), size, Image.Resampling.BOX)

    def close(self) -> None:
        """Write ``objects.json``, one image's objects at a time: ``images``, ``categories`` and ``annotations``.

        The annotations have a ``score`` and are what COCO calls results. Those with masks have no ``bbox``: COCO's
        tools would take a result's area from it.
        """
        mark = hashlib.sha256(self.base.encode()).hexdigest()
        write_atomic(self.out / ALL, lambda file: self._write_all(file, mark))

    def _write_all(self, file: IO[bytes], mark: str) -> None:
        categories = [{"id": number, "name": name} for number, name in enumerate(self.model.names, 1)]
        about = {"score": self.score, "keep": self.keep}
        head = json.dumps({"segdistill": mark, "info": about, "categories": categories})
        file.write(f'{head[:-1]}, "images": ['.encode())
        names = list(dict.fromkeys(self.names))
        for number, content in enumerate(self._contents(names), 1):
            entry = {"id": number, **{key: content[key] for key in ("file_name", "height", "width")}}
            file.write((", " * (number > 1) + json.dumps(entry)).encode())
        file.write(b'], "annotations": [')
        count = 0
        for image, content in enumerate(self._contents(names), 1):
            for each in content["objects"]:
                count += 1
                entry = {"id": count, "image_id": image, "iscrowd": 0, **each}
                if "segmentation" in entry:
                    del entry["bbox"]
                file.write((",\n" * (count > 1) + json.dumps(entry)).encode())
        file.write(b"]}\n")

    def _contents(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        for name in names:
            path = self.path(OBJECTS, name)
            try:
                yield json.loads(path.read_bytes())
            except ValueError:
                raise UserError(f"{path} is damaged; delete it and run the command again") from None


def writer_of(model: Model | ObjectModel, out: Path, wanted: Wanted) -> Writer:
    """The writer for the kind of ``model``."""
    return ObjectWriter(model, out, wanted) if isinstance(model, ObjectModel) else MapWriter(model, out, wanted)


def _json_mark(path: Path) -> str | None:
    """The mark of a JSON file that this module has written, None if there is no such file; else a UserError."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        found = re.match(rb'\{"segdistill": "([0-9a-f]{64})"', file.read(100))
    if not found:
        raise UserError(foreign(path))
    return found[1].decode()
