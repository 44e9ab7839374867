"""The user's own images: a `dataset.yaml` becomes a record like those of the catalog.

classes: [soil, crop, weed]
images: images              # images/train/**, images/val/**
labels: labels              # labels/train/**, the same names
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, model_validator

from segdistill.config import Config, Size, parse, read_yaml
from segdistill.data.catalog import IGNORE, RGB, DatasetRecord, Encoding, Files, Layout
from segdistill.data.catalog.record import interleaved_colors
from segdistill.data.coco import CocoStore, category_names
from segdistill.data.dataset import Split
from segdistill.data.index import Place

CITYSCAPES_IMAGE = "{images}/{split}/{{city}}/{{stem}}_leftImg8bit.{{ext}}"
CITYSCAPES_LABEL = "{labels}/{split}/{{city}}/{{stem}}_gtFine_{kind}.png"


class OwnConfig(Config):
    """What stands in a ``dataset.yaml``. All paths are relative to it."""

    title: str = ""
    classes: tuple[str, ...] = Field((), max_length=254, description="names of classes 0, 1, ...; none: no labels")
    colors: tuple[RGB, ...] = Field((), description="RGB of each class, for pictures and for coloured labels")
    layout: Literal["folders", "cityscapes", "coco"] = "folders"
    images: str = Field("images", description="folder of the images")
    labels: str | None = Field("labels", description="folder of the label maps; null: there are none")
    label_suffix: str = Field("", description="what a label's name has after its image's, such as _mask")
    splits: dict[Split, str] = Field(
        {"train": "train", "val": "val"}, min_length=1, description="folder below images and labels, or list file .txt"
    )
    coloured: bool = Field(False, description="labels are pictures in the classes' colors, not numbers")
    ids: dict[int, int | str] = Field({}, description="number in the label -> class; none: the numbers are the classes")
    ignore: tuple[int, ...] = Field((IGNORE,), description="numbers in the label that mean no class")
    annotations: dict[Split, str] = Field({}, description="layout coco: the JSON file of each split")
    background: str | None = Field(None, description="layout coco: class of pixels without an object; null: ignored")
    resize: Size | None = Field(None, description="test images are fitted inside this height and width")
    licence: str = "yours"

    @model_validator(mode="after")
    def _consistent(self) -> OwnConfig:
        """All that can be wrong without a look at the files."""
        problems = []
        if self.colors and len(self.colors) != len(self.classes):
            problems.append(f"{len(self.colors)} colors for {len(self.classes)} classes; give one each or none")
        if len(set(self.classes)) < len(self.classes):
            problems.append("a class stands twice")
        if self.coloured and not self.colors:
            problems.append("coloured labels need the 'colors' of the classes")
        if self.coloured and len(set(self.colors)) < len(self.colors):
            problems.append("two classes have the same color, which coloured labels cannot tell apart")
        if any(not 0 <= value <= 255 for color in self.colors for value in color):
            problems.append("a color is three numbers from 0 to 255")
        for number, to in self.ids.items():
            if to not in (self.classes if isinstance(to, str) else (*range(len(self.classes)), IGNORE)):
                problems.append(f"ids maps {number} to {to!r}; allowed: a class, its number, or {IGNORE}")
        if self.layout == "coco" and not self.annotations:
            problems.append("layout coco needs 'annotations', the JSON file of each split")
        if self.layout != "coco" and (self.annotations or self.background):
            problems.append("annotations and background are for layout coco")
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
            return Encoding(colors={color: number for number, color in enumerate(self.colors)})
        table = {number: to if isinstance(to, int) else self.classes.index(to) for number, to in self.ids.items()}
        table = table or {number: number for number in range(len(self.classes))}
        return Encoding(ids=dict.fromkeys(self.ignore, IGNORE) | table)


def load_own(path: Path) -> OwnConfig:
    """The settings in ``path``; a :class:`UserError` lists all problems."""
    values = read_yaml(path, "description", "it says what your data set is, for example 'classes: [soil, crop]'")
    return parse(OwnConfig, values, str(path))


def own_place(name: str, path: Path) -> Place:
    """The data set that the ``dataset.yaml`` at ``path`` (or in the folder ``path``) describes."""
    path = path / "dataset.yaml" if path.is_dir() else path
    config = load_own(path)
    folder = path.parent
    store = None
    classes = config.classes
    if config.layout == "coco":
        annotations = {split: folder / file for split, file in config.annotations.items()}
        classes = classes or category_names(annotations, config.background)
        store = CocoStore(folder, _coco_images(config), annotations, classes, config.background)
    layout = Layout(config.layout, _splits(config), _encoding(config, classes))
    record = DatasetRecord(
        title=config.title or f"'{name}' ({path})",
        folders=(str(folder),),
        layouts=(layout,),
        classes=classes,
        colors=config.colors or interleaved_colors(len(classes) + 1)[1:],
        size=None,
        resize=config.resize,
        licence=config.licence,
        source=f"yourself, as {path} says",
        evaluation="val" if "val" in layout.splits else None,
    )
    return Place(name, record, folder, store=store)


def _encoding(config: OwnConfig, classes: tuple[str, ...]) -> Encoding | None:
    if config.layout == "coco":
        return Encoding(ids={number: number for number in (*range(len(classes)), IGNORE)})
    return config.encoding() if classes and config.labels else None


def _splits(config: OwnConfig) -> dict[Split, Files]:
    labels = config.labels if config.classes else None
    if config.layout == "coco":
        folders = _coco_images(config)
        return {
            split: Files(_below(folder, "{path}.{ext}"), _below(CocoStore.LABELS, split, "{path}.png"))
            for split, folder in folders.items()
        }
    if config.layout == "cityscapes":
        values: Any = {
            "images": "leftImg8bit" if config.images == "images" else config.images,
            "labels": "gtFine" if labels == "labels" else labels,
            "kind": "labelIds" if config.ids else "labelTrainIds",
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
    """One split of the layout ``folders``: its own folders, or a list of files in the common ones."""
    listed = place if place.endswith(".txt") else None
    below = "" if listed else place
    return Files(
        _below(config.images, below, "{path}.{ext}"),
        _below(labels, below, f"{{path}}{config.label_suffix}.{{ext}}") if labels else None,
        listed,
    )


def _below(*parts: str) -> str:
    """The parts as one path; ``.`` is the folder itself."""
    return str(PurePosixPath(*parts))


def _coco_images(config: OwnConfig) -> dict[Split, str]:
    """The folder of each annotated split's images: the split's own where there is a setting, else the common one."""
    given = config.splits if "splits" in config.model_fields_set else {}
    return {split: _below(config.images, given.get(split, "")) for split in config.annotations}
