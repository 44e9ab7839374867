"""The user's own images: turns a `dataset.yaml` into a record like those of the catalog.

classes: [soil, crop, weed]
images: images              # images/train/**, images/val/**
labels: labels              # labels/train/**, the same names
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from segdistill.config import Config, Size, UserError, parse, read_yaml
from segdistill.data.archives import Folder, Store, is_text, kind_of
from segdistill.data.catalog import IGNORE, RGB, DatasetRecord, Encoding, Files, Layout, ObjectNumbers
from segdistill.data.catalog.record import class_colors, coco_files
from segdistill.data.catalog.things import THINGS, cityscapes_encoding
from segdistill.data.coco import CocoStore, category_names
from segdistill.data.coco_file import read_coco
from segdistill.data.dataset import Split
from segdistill.data.index import Place, place
from segdistill.data.shards import LABELS, ShardStore

MOST_CLASSES, MOST_NUMBER = 254, 0xFFFF

CITYSCAPES_IMAGE = "{images}/{split}/{{city}}/{{stem}}_leftImg8bit.{{ext}}"
CITYSCAPES_LABEL = "{labels}/{split}/{{city}}/{{stem}}_gtFine_{kind}.png"


class OwnConfig(Config):
    """Content of a ``dataset.yaml``. Paths are relative to it, or absolute."""

    title: str = ""
    classes: tuple[str, ...] = Field(
        (), max_length=MOST_CLASSES, description="names of classes 0, 1, ...; none: no labels"
    )
    colors: tuple[RGB, ...] = Field((), description="RGB of each class, for pictures and for coloured labels")
    layout: Literal["folders", "cityscapes", "coco", "webdataset"] = "folders"
    images: str = Field("images", description="folder of the images")
    labels: str | None = Field("labels", description="folder of the label maps; null: there are none")
    label_suffix: str = Field(
        "", description="suffix of a label's name after its image's, such as _mask; layout webdataset: .label"
    )
    splits: dict[Split, str] = Field(
        {"train": "train", "val": "val"},
        min_length=1,
        description="folder below images and labels, or list file .txt; layout webdataset: folder or pattern of tars",
    )
    coloured: bool = Field(False, description="labels are pictures in the classes' colors instead of numbers")
    ids: dict[int, int | str] = Field({}, description="number in the label -> class; none: the numbers are the classes")
    ignore: tuple[int | RGB, ...] = Field(
        (IGNORE,), description="numbers in the label that are ignored; colors for coloured labels"
    )
    objects: bool = Field(False, description="labels have numbered objects, and the classes are those of the objects")
    divisor: int = Field(
        1000, ge=2, le=MOST_NUMBER, description="with objects: value in the label = id of the class * divisor + number"
    )
    stuff: tuple[Annotated[int, Field(ge=0, le=MOST_NUMBER)], ...] = Field(
        (0,), description="with objects: ids of pixels that belong to no object"
    )
    boxes: bool = Field(False, description="layout coco: objects are boxes and need no masks; for task detection alone")
    annotations: dict[Split, str] = Field({}, description="layout coco: the JSON file of each split")
    background: str | None = Field(None, description="layout coco: class of pixels without an object; null: ignored")
    resize: Size | None = Field(None, description="test images are fitted inside this height and width")
    licence: str = "yours"

    @model_validator(mode="after")
    def _consistent(self) -> OwnConfig:
        """All problems that can be found without the files."""
        problems = []
        if self.colors and len(self.colors) != len(self.classes):
            problems.append(f"{len(self.colors)} colors for {len(self.classes)} classes; give one each or none")
        if len(set(self.classes)) < len(self.classes):
            problems.append("a class appears twice")
        if self.coloured and not self.colors:
            problems.append("coloured labels need the 'colors' of the classes")
        if self.coloured and len(set(self.colors)) < len(self.colors):
            problems.append("two classes have the same color, which coloured labels cannot tell apart")
        if any(not 0 <= value <= 255 for color in (*self.colors, *self._ignored_colors()) for value in color):
            problems.append("a color is three numbers from 0 to 255")
        for number, to in self.ids.items():
            if to not in (self.classes if isinstance(to, str) else (*range(len(self.classes)), IGNORE)):
                problems.append(f"ids maps {number} to {to!r}; allowed: a class, its number, or {IGNORE}")
        problems += [*self._number_problems(), *self._object_problems(), *self._text_problems()]
        if self.layout == "coco" and not self.annotations:
            problems.append("layout coco needs 'annotations', the JSON file of each split")
        if self.layout != "coco" and (self.annotations or self.background or self.boxes):
            problems.append("annotations, background and boxes are for layout coco")
        if self.boxes and (self.objects or self.background):
            problems.append("boxes: true has neither masks nor pixels; leave out objects and background")
        of_files = {"ids": self.ids, "coloured": self.coloured, "label_suffix": self.label_suffix}
        if self.layout == "coco" and any(of_files.values()):
            problems.append(f"{', '.join(of_files)} are for label files; layout coco has annotations")
        if self.background and self.classes and self.background not in self.classes:
            problems.append(f"background '{self.background}' is none of the classes")
        if self.layout == "folders" and not self.classes and self.labels and "labels" in self.model_fields_set:
            problems.append("labels without 'classes'; name the classes, or set labels: null")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def encoding(self) -> Encoding:
        """How the label files are read."""
        if self.coloured:
            colors = {color: number for number, color in enumerate(self.colors)}
            return Encoding(colors=dict.fromkeys(self._ignored_colors(), IGNORE) | colors)
        ids = dict.fromkeys(self._ignored_numbers(), IGNORE) | self._table()
        if not self.objects:
            return Encoding(ids=ids)
        if self._official():
            official = cityscapes_encoding(self.classes)
            return replace(official, ids=dict(official.ids) | ids)
        return Encoding(ids=ids, objects=ObjectNumbers(self.divisor, stuff=frozenset(self.stuff)))

    def _official(self) -> bool:
        """Whether objects have the ids of Cityscapes."""
        default = not {"ids", "divisor", "stuff"} & self.model_fields_set
        return self.objects and default and self.layout == "cityscapes" and set(self.classes) <= set(THINGS)

    def _table(self) -> dict[int, int]:
        """Number in the label -> class. Without ``ids`` classes are numbered from 0, and those of objects from 1."""
        if self._official():
            return {number: to for number, to in cityscapes_encoding(self.classes).ids.items() if to != IGNORE}
        table = {number: to if isinstance(to, int) else self.classes.index(to) for number, to in self.ids.items()}
        return table or {number + self.objects: number for number in range(len(self.classes))}

    def _ignored_numbers(self) -> list[int]:
        return [value for value in self.ignore if isinstance(value, int)]

    def _ignored_colors(self) -> list[RGB]:
        return [value for value in self.ignore if not isinstance(value, int)]

    def _number_problems(self) -> list[str]:
        """Numbers and colours that are impossible or ambiguous."""
        numbers, colors = self._ignored_numbers(), self._ignored_colors()
        problems = [
            f"{name}: no label file can contain {number}; allowed: 0 to {MOST_NUMBER} (a -1 is stored as 255 or 65535)"
            for name, values in (("ids", self.ids), ("ignore", numbers))
            for number in values
            if not 0 <= number <= MOST_NUMBER
        ]
        if self.coloured and self.ids:
            problems.append("ids are for labels of numbers, coloured labels have 'colors'")
        if "ignore" not in self.model_fields_set:
            return problems
        if self.coloured and numbers:
            problems.append(
                f"ignore: {numbers[0]} is not a color; give colors for coloured labels, such as [[0, 0, 0]]"
            )
        if colors and not self.coloured:
            problems.append(f"ignore: {list(colors[0])} is a color, which only coloured labels have; give numbers")
        meant = self.ids or self._table()
        both: list[Any] = [list(color) for color in colors if color in self.colors]
        if not self.coloured:
            both = [number for number in numbers if meant.get(number, IGNORE) != IGNORE]
        if both:
            problems.append(
                f"ignore names {', '.join(map(str, both))}, which is also a class; remove it, or define the classes "
                "with ids, such as ids: {1: road, 2: sky}"
            )
        return problems

    def _object_problems(self) -> list[str]:
        """Settings of objects that are impossible or ambiguous."""
        numbering = [name for name in ("divisor", "stuff") if name in self.model_fields_set]
        if numbering and (not self.objects or self.layout == "coco"):
            return [f"{' and '.join(numbering)}: only for label files with objects: true"]
        if not self.objects:
            return []
        if self.layout == "coco":
            return ["background is for class maps; with objects: true leave it out"] if self.background else []
        problems = []
        if self.coloured:
            problems.append("objects: true needs labels of numbers; coloured labels have no objects")
        if not (self.classes and self.labels):
            problems.append("objects: true needs 'classes' and 'labels', those of the objects")
        table = self._table() if all(to in self.classes or isinstance(to, int) for to in self.ids.values()) else {}
        most = MOST_NUMBER // self.divisor
        if large := [number for number, to in table.items() if number > most and to != IGNORE]:
            problems.append(f"id {large[0]} * {self.divisor} exceeds 16 bits; allowed are ids up to {most}")
        both = [number for number in self.stuff if number in table or number in self._ignored_numbers()]
        if both or any(not 0 <= number <= MOST_NUMBER for number in self.stuff):
            problems.append(f"stuff {list(self.stuff)}: allowed are numbers that are neither in ids nor ignored")
        return problems

    def _text_problems(self) -> list[str]:
        """Names and paths that are not valid."""
        names = {"classes": [*self.classes, *([] if self.background is None else [self.background])]}
        paths = {
            "images": [self.images],
            "labels": [self.labels or ""],
            "label_suffix": [self.label_suffix],
            "splits": list(self.splits.values()),
            "annotations": list(self.annotations.values()),
        }
        problems = [
            f"{field}: {name!r} is not a valid name; give text on one line"
            for field, values in names.items()
            for name in values
            if not name.strip() or not is_text(name)
        ]
        if not is_text(self.title + self.licence):
            problems.append("title and licence must be text on one line")
        return problems + [
            f"{field}: {path!r} is not a valid path: it has braces or control characters, or is too long"
            for field, values in paths.items()
            for path in values
            if not is_text(path)
            or "{" in path
            or "}" in path
            or any(len(os.fsencode(part)) > 255 for part in path.split("/"))
        ]


def load_own(path: Path) -> OwnConfig:
    """The settings in ``path``; a :class:`UserError` lists all problems."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is {kind_of(path)}; expected a description such as dataset.yaml")
    values = read_yaml(path, "description", "it describes your data set, for example 'classes: [soil, crop]'")
    return parse(OwnConfig, values, str(path))


def own_place(name: str, path: Path) -> Place:
    """The data set described by the ``dataset.yaml`` at ``path`` (or in the folder ``path``)."""
    if not is_text(str(path)):
        raise UserError(f"the path {str(path)!r} is not UTF-8 or has control characters; rename the folder")
    path = path / "dataset.yaml" if path.is_dir() else path
    config = load_own(path)
    folder = path.parent
    store: Store | None = None
    classes = config.classes
    if config.layout == "coco":
        files, annotations = Folder(folder), config.annotations
        first = next(iter(annotations))
        read = {} if classes else {first: read_coco(files, annotations[first], boxes=config.boxes)}
        classes = classes or category_names(read[first], config.background)
        if len(classes) > MOST_CLASSES:
            raise UserError(f"{path}: {len(classes)} classes in the annotations; at most {MOST_CLASSES} are supported")
        folders, kept = _coco_images(config), {"boxes": config.boxes, "read": read}
        store = CocoStore(files, folders, annotations, classes, config.background, **kept)
    if config.layout == "webdataset":
        shards = folder / config.images if "images" in config.model_fields_set else folder
        store = ShardStore(shards, config.splits, config.label_suffix or ".label")
    layout = Layout(config.layout, _splits(config), _encoding(config, classes), upright=True)
    record = DatasetRecord(
        title=config.title or f"'{name}' ({path})",
        folders=(str(folder),),
        layouts=(layout,),
        classes=classes,
        colors=config.colors or class_colors(len(classes)),
        size=None,
        resize=config.resize,
        licence=config.licence,
        source=f"yourself, as {path} says",
        evaluation="val" if "val" in layout.splits else None,
    )
    return Place(name, record, folder, store=store, own=True)


def own_name(name: str) -> str | None:
    """What ``name``, a ``dataset.yaml`` or the folder that has one, is called in recipes; None: it is neither.

    It is called after its folder, with underscores for characters that are not valid there.
    """
    path = Path(name)
    if not name.endswith((".yaml", ".yml")) and not (path / "dataset.yaml").is_file():
        return None
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return re.sub(r"[^\w.-]+", "_", folder.name).lstrip("-.")[:64] or "own"


def named_place(name: str, root: Path | None = None) -> Place:
    """The data set of a command: a ``dataset.yaml``, the folder that has one, or one of the catalog in ``root``."""
    own = own_name(name)
    return place(name, root, {}) if own is None else own_place(own, Path(name))


def _encoding(config: OwnConfig, classes: tuple[str, ...]) -> Encoding | None:
    if config.layout == "coco":
        ids = {number: number for number in (*range(len(classes)), IGNORE)}
        numbers = ObjectNumbers() if config.objects or config.boxes else None
        return Encoding(ids=ids, objects=numbers, boxes=config.boxes)
    return config.encoding() if classes and config.labels else None


def _splits(config: OwnConfig) -> dict[Split, Files]:
    labels = config.labels if config.classes else None
    if config.layout == "coco":
        folders = _coco_images(config)
        return {split: coco_files(split, folder) for split, folder in folders.items()}
    if config.layout == "webdataset":
        names = {split: f"{split}/{{path}}.{{ext}}" for split in config.splits}
        return {split: Files(name, f"{LABELS}/{name}" if labels else None) for split, name in names.items()}
    if config.layout == "cityscapes":
        values: Any = {
            "images": "leftImg8bit" if config.images == "images" else config.images,
            "labels": "gtFine" if labels == "labels" else labels,
            "kind": "instanceIds" if config.objects else "labelIds" if config.ids else "labelTrainIds",
        }
        return {
            split: Files(
                CITYSCAPES_IMAGE.format(split=folder, **values),
                CITYSCAPES_LABEL.format(split=folder, **values) if labels else None,
            )
            for split, folder in config.splits.items()
        }
    return {split: _folders(config, labels, place) for split, place in config.splits.items()}


def _folders(config: OwnConfig, labels: str | None, place: str) -> Files:
    """One split of the layout ``folders``: its own folders, or a list of files in shared ones."""
    listed = place if place.endswith(".txt") else None
    below = "" if listed else place
    return Files(
        _below(config.images, below, "{path}.{ext}"),
        _below(labels, below, f"{{path}}{config.label_suffix}.{{ext}}") if labels else None,
        listed,
    )


def _below(*parts: str) -> str:
    """The parts joined; ``.`` is the folder itself."""
    return str(PurePosixPath(*parts))


def _coco_images(config: OwnConfig) -> dict[Split, str]:
    """The image folder of each annotated split: its own if one is set, else the shared one."""
    given = config.splits if "splits" in config.model_fields_set else {}
    return {split: _below(config.images, given.get(split, "")) for split in config.annotations}
