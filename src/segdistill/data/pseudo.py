"""Pseudo-labels of objects on disk: a teacher's detections as a COCO dataset with scores. Does not import torch.

While images are predicted, each becomes one line of a part file (``NAME.jsonl``) beside the document, so that an
interrupted run continues. The finished document (``NAME.json``) has COCO's ``images``, ``categories`` and
``annotations`` (masks as compressed run lengths, class ``c`` as category ``c + 1``, ``score``), ``info`` about its
origin, and a digest. Annotations have no ``bbox``: the COCO tools would take areas from it (``loadRes``).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from faster_coco_eval.core import mask as tools
from pydantic import Field, ValidationError, model_validator

from segdistill.config import UserError, nearest, short
from segdistill.data.coco_file import CocoFile, CocoImage, CocoObject, Runs
from segdistill.files import DIGEST, checked_line, json_digest, read_checked_line, read_signed, write_bytes
from segdistill.objects import Detections, Objects

FORMAT = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What pseudo-labels come from. A part file is continued only by the same origin.

    ``licence``: that of the teacher's weights. ``thresholds``: name -> value. ``fingerprint``: anything else that
    determines the predictions, such as the digest of an adapted teacher.
    """

    teacher: str
    licence: str
    prompt: str = ""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""


class PseudoWriter:
    """Collects the detections of images, named ``domain/name``, and writes the document ``path`` (``.json``).

    A part file left by an interrupted run is continued: ``done`` has its images. A torn last line is dropped. One
    process writes at a time. Use it as a context manager, or call :meth:`close`.
    """

    def __init__(self, path: Path, classes: Sequence[str], origin: Origin) -> None:
        self.path, self.part = path, path.with_suffix(".jsonl")
        self.head = {"format": FORMAT, "classes": list(classes), "origin": _plain(asdict(origin))}
        if path.suffix != ".json":
            raise UserError(f"pseudo-labels are written to a .json file, not to {path.name}: rename it")
        if path.exists():
            raise UserError(f"{path} is finished: read it, or remove it to predict its images again")
        self._file = _opened(self.part)
        try:
            self.done = self._resume()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PseudoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, image: str, found: Detections, counts: Mapping[str, int] | None = None) -> None:
        """Append the detections of ``image``. ``counts`` (name -> number) are summed in the document."""
        domain, _, name = image.partition("/")
        if not domain or not name:
            raise ValueError(f"an image is named domain/name, got {image!r}")
        if image in self.done:
            raise ValueError(f"{image} has pseudo-labels already")
        self._append(
            {
                "image": image,
                "size": list(found.size),
                "classes": found.classes.tolist(),
                "scores": found.scores.tolist(),
                "masks": [_text(runs["counts"]) for runs in found.masks],
                "counts": dict(counts or {}),
            }
        )
        self.done.add(image)

    def finish(self) -> PseudoLabels:
        """Write the document, images sorted by name, and remove the part file."""
        self._file.seek(0)
        _, *entries = (_entry(line) for line in self._file)
        value = _document(self.head, sorted(entries, key=lambda entry: entry["image"]))
        text = json.dumps(value | {DIGEST: json_digest(value)}, separators=(",", ":"))
        write_bytes(self.path, text.encode() + b"\n")
        self.part.unlink(missing_ok=True)
        self.close()
        return read_pseudo(self.path)

    def close(self) -> None:
        """Close the part file, which stays."""
        self._file.close()

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(checked_line(entry).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _resume(self) -> set[str]:
        """The images of the part file, whose head is written or compared."""
        lines = self._file.read().splitlines(keepends=True)
        entries = [_entry(line) for line in lines]
        if entries and entries[-1] is None:  # the writer was killed
            entries.pop()
            self._file.truncate(sum(map(len, lines[: len(entries)])))
        if None in entries:
            number = entries.index(None) + 1
            raise UserError(f"{self.part}: line {number} is damaged: remove the {'file' if number == 1 else 'line'}, "
                            "so that what it had is predicted again")  # fmt: skip
        if not entries:
            self._append(self.head)
            return set()
        if entries[0] != self.head:
            change = _difference(entries[0], self.head)
            raise UserError(f"{self.part} was begun with other settings ({change}): remove it, or write elsewhere")
        return {entry["image"] for entry in entries[1:]}


class PseudoObject(CocoObject):
    """One detection: run lengths and a score."""

    segmentation: Runs  # type: ignore[assignment]
    score: float = Field(ge=0, le=1)


class PseudoImage(CocoImage):
    """One image: ``file_name`` inside its ``domain``."""

    domain: str


class PseudoFile(CocoFile):
    """The document, without its digest."""

    info: dict[str, Any]
    images: list[PseudoImage]  # type: ignore[assignment]
    annotations: list[PseudoObject]  # type: ignore[assignment]

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> PseudoFile:
        sizes = {image.id: (image.height, image.width) for image in self.images}
        if [each.id for each in self.categories] != list(range(1, len(self.categories) + 1)):
            raise ValueError("categories must be numbered 1, 2, ...")
        for entry in self.annotations:
            if sizes.get(entry.image_id) != entry.segmentation.size:
                raise ValueError(f"an object of image {entry.image_id} has a size that no such image has")
            if not 1 <= entry.category_id <= len(self.categories):
                raise ValueError(f"category {entry.category_id} is not in the list")
        return self


class PseudoLabels:
    """A finished document: the detections of each image, by ``domain/name``."""

    def __init__(self, path: Path, file: PseudoFile) -> None:
        self.path, self.info = path, file.info
        self.classes = tuple(category.name for category in file.categories)
        self._images = {f"{image.domain}/{image.file_name}": image for image in file.images}
        self._objects: dict[int, list[PseudoObject]] = {image.id: [] for image in file.images}
        for entry in file.annotations:
            self._objects[entry.image_id].append(entry)

    def __contains__(self, image: str) -> bool:
        return image in self._images

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def detections(self, image: str) -> Detections:
        """The detections of ``image``, as they were written."""
        if image not in self._images:
            raise UserError(f"{self.path} has no image '{image}': {nearest(image, self._images)}it has {len(self)}")
        entry = self._images[image]
        size = (entry.height, entry.width)
        found = sorted(self._objects[entry.id], key=lambda each: -each.score)
        return Detections.of(
            [each.score for each in found],
            [each.category_id - 1 for each in found],
            [{"size": [*size], "counts": str(each.segmentation.counts).encode()} for each in found],
            size,
        )

    def objects(self, image: str, *, score: float = 0.0, least: int = 1) -> Objects:
        """The objects of ``image`` with at least ``score`` and ``least`` visible pixels, without overlap."""
        try:
            return self.detections(image).above(score).painted(least=least)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{self.path}: the run lengths of '{image}' are damaged: {error}") from None


def read_pseudo(path: Path, classes: Sequence[str] | None = None) -> PseudoLabels:
    """The pseudo-labels at ``path``; a :class:`UserError` if they are missing, damaged, or not of ``classes``."""
    again = "remove it and predict again"
    if not path.is_file():
        part = path.with_suffix(".jsonl")
        state = f"finish the run that writes {part.name}" if part.is_file() else "predict them first"
        raise UserError(f"no pseudo-labels at {path}; {state}")
    try:
        value = read_signed(path)
    except OSError as error:
        raise UserError(f"cannot read the pseudo-labels {path}: {error.strerror or error}") from None
    if value is None or DIGEST not in value:
        raise UserError(f"{path} is damaged, or no file of pseudo-labels: {again}")
    try:
        file = PseudoFile.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "document"
        raise UserError(f"{path} is no file of pseudo-labels: {where}: {short(problem['msg'])}; {again}") from None
    labels = PseudoLabels(path, file)
    if classes is not None and labels.classes != tuple(classes):
        had, needed = (short(", ".join(names)) for names in (labels.classes, classes))
        raise UserError(f"{path} has the classes {had}; needed: {needed}; predict with these")
    return labels


def _document(head: Mapping[str, Any], entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    images, annotations, counts = [], [], Counter[str]()
    for number, entry in enumerate(entries, 1):
        domain, _, name = entry["image"].partition("/")
        height, width = entry["size"]
        images.append({"id": number, "file_name": name, "domain": domain, "height": height, "width": width})
        counts.update(entry["counts"])
        for kind, score, text in zip(entry["classes"], entry["scores"], entry["masks"], strict=True):
            runs = {"size": [height, width], "counts": text}
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": kind + 1, "segmentation": runs,
                "area": int(tools.area(runs | {"counts": text.encode()})), "iscrowd": 0, "score": score,
            })  # fmt: skip
    return {
        "info": {"description": "pseudo-labels", "format": FORMAT, **head["origin"], "counts": dict(counts)},
        "images": images,
        "categories": [{"id": number, "name": name} for number, name in enumerate(head["classes"], 1)],
        "annotations": annotations,
    }


def _opened(part: Path) -> IO[bytes]:
    """The part file for reading and appending, locked."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        file = part.open("a+b")
    except OSError as error:
        raise UserError(f"cannot write pseudo-labels to {part}: {error.strerror or error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{part} is being written by another process: wait for it, or write elsewhere") from None
    except OSError as error:
        log.warning(
            "%s is on a file system without locks (%s): make sure that no other run writes to it", part, error.strerror
        )
    file.seek(0)
    return file


def _entry(line: bytes) -> Any:
    """The entry of a line, None if it is torn or damaged."""
    return read_checked_line(line) if line.endswith(b"\n") else None


def _text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As JSON reads it back."""
    return json.loads(json.dumps(value))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first setting that differs."""
    pairs = [(key, old.get(key), new.get(key)) for key in ("format", "classes")]
    pairs += [(key, old.get("origin", {}).get(key), value) for key, value in new["origin"].items()]
    key, before, now = next(pair for pair in pairs if pair[1] != pair[2])
    return f"{key} {short(repr(before))}, now {short(repr(now))}"
