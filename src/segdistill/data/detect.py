"""Derives a ``dataset.yaml`` from a folder of images. Imports no torch.

A file is a label if a folder in its path is named like one (``labels``, ``masks``, ...) or its name ends like one
(``_mask``, ``_label``, ...); it belongs to the image with the same path apart from that. COCO files are recognised by
content. A sample of the label files is read to find their numbers or colours. Without label maps and COCO files, those
of LabelMe and YOLO become COCO files; where boxes are enough those of Pascal VOC, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from segdistill.config import UserError
from segdistill.data.annotated import coco_sets, drawn_sets
from segdistill.data.archives import Folder
from segdistill.data.decode import open_picture
from segdistill.data.labels import class_numbers, color_numbers
from segdistill.data.own_sets import (
    HELD_OUT,
    IMAGES,
    SPLITS,
    OwnSet,
    files_in,
    key_of,
    listed_names,
    slug,
    take_apart,
    unlabelled_sets,
    without_copies,
)

SAMPLED = 60  # label files that are read
MOST_COLORS = 64


@dataclass(frozen=True)
class Pair:
    """An image and its label; paths are ``root`` / folder / ``below`` / ``stem``."""

    root: tuple[str, ...]
    images: str | None  # the folder's name; None: the images are in root itself
    labels: str | None
    end: str
    below: tuple[str, ...]
    image: PurePosixPath
    label: PurePosixPath


def detect(folder: Path, *, boxes: bool = False) -> list[OwnSet]:
    """The domains in ``folder``, labelled ones first, the largest first; a :class:`UserError` if there are none.

    With ``boxes`` labels are objects with boxes, and label maps are left out.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the folder that holds your images")
    files = files_in(folder)
    images = [path for path in files if path.suffix.lower() in IMAGES]
    if not images:
        raise UserError(f"{folder} contains no images; recognised suffixes: {' '.join(IMAGES)}")
    sets = coco_sets(folder, [path for path in files if path.suffix.lower() == ".json"], images)
    pairs, lone = ([], []) if sets else _pairs(images)
    if not sets and (boxes or not pairs):
        sets = drawn_sets(folder, files, images, boxes=boxes)
    sets = sets or _mapped(folder, files, pairs, lone)
    lone = [each for each in sets if not each.labelled]
    if len(lone) < len(sets):
        sets = [each if each.labelled else without_copies(folder, each, images, lone) for each in sets]
    names = [each.name for each in sets]
    if len(set(names)) < len(names):
        raise UserError(f"{folder}: two parts would both be called {max(names, key=names.count)}; rename a folder")
    return sets


def _mapped(
    folder: Path, files: Sequence[PurePosixPath], pairs: Sequence[Pair], lone: Sequence[PurePosixPath]
) -> list[OwnSet]:
    """The sets of images with label maps, the largest first, and of the images ``lone``."""
    classes = _classes(folder, [pair.label for pair in pairs]) if pairs else {}
    lists = {SPLITS[path.stem.lower()]: path for path in files if path.suffix == ".txt" and path.stem.lower() in SPLITS}
    labelled = _labelled(pairs, classes, lists, folder.resolve().name)
    beside = {PurePosixPath(each.settings["images"]) for each in labelled} - {PurePosixPath()}
    unlabelled = unlabelled_sets(
        [path for path in lone if beside.isdisjoint(path.parents)], {pair.image.parent for pair in pairs}
    )
    return sorted(labelled, key=lambda each: -sum(each.counts.values())) + unlabelled


def _pairs(images: Sequence[PurePosixPath]) -> tuple[list[Pair], list[PurePosixPath]]:
    """Images with their labels, and images without one."""
    labels: dict[tuple[str, ...], tuple[PurePosixPath, int | None, str]] = {}
    others = []
    for path in images:
        is_label, place, end = take_apart(path)
        if is_label:
            for each in dict.fromkeys((end, "")):  # labels/a_mask.png may belong to a.jpg or to a_mask.jpg
                labels.setdefault(key_of(path, place, each), (path, place, each))
        else:
            others.append((path, place))
    pairs, lone = [], []
    for path, place in others:
        found = labels.get(key_of(path, place, ""))
        if found is None:
            lone.append(path)
            continue
        label, where, end = found
        at = place if place is not None else where if where is not None else len(path.parts) - 1
        if place is None and where is not None and path.parts[:where] != label.parts[:where]:
            lone.append(path)
            continue
        root = path.parts[:at]
        below = path.parts[at + (place is not None) : -1]
        pairs.append(
            Pair(root, path.parts[at] if place is not None else None, label.parts[where] if where is not None else None,
                 end, below, path, label)
        )  # fmt: skip
    return pairs, lone


def _labelled(
    pairs: Sequence[Pair], classes: dict[str, Any], lists: dict[str, PurePosixPath], title: str
) -> list[OwnSet]:
    """One set for each root of pairs, or for each split that has a root of its own."""
    groups: dict[tuple[Any, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.root, pair.images, pair.labels, pair.end].append(pair)
    largest = max(groups.values(), key=len, default=[])
    return [_set_of(group, classes, lists, title, source=group is largest, alone=len(groups) == 1)
            for group in groups.values()]  # fmt: skip


def _set_of(
    group: list[Pair],
    classes: dict[str, Any],
    lists: dict[str, PurePosixPath],
    title: str,
    *,
    source: bool,
    alone: bool,
) -> OwnSet:
    first = group[0]
    settings: dict[str, Any] = dict(classes)
    settings["images"] = str(PurePosixPath(*first.root, first.images or ""))
    settings["labels"] = str(PurePosixPath(*first.root, first.labels or ""))
    if first.end:
        settings["label_suffix"] = first.end
    name = slug("_".join(first.root) or title)
    mixed = settings["images"] == settings["labels"]  # images and labels are in one folder, so a list is needed
    known = {pair.below[0] for pair in group if pair.below}
    if not mixed and known and all(pair.below and pair.below[0].lower() in SPLITS for pair in group):
        settings["splits"] = {SPLITS[each.lower()]: each for each in sorted(known)}
        counts = {split: sum(pair.below[0] == each for pair in group) for split, each in settings["splits"].items()}
        return OwnSet(name, settings, counts, labelled=True)
    own = SPLITS.get(first.root[-1].lower()) if first.root else None
    if alone and lists:
        settings["splits"] = {split: str(path) for split, path in lists.items()}
        return OwnSet(name, settings, dict.fromkeys(lists, 0), labelled=True)
    paths = [str(PurePosixPath(*pair.below, pair.image.stem)) for pair in group]
    if own or not source or len(paths) == 1:
        parts = {own or ("train" if source else "val"): paths}
    else:
        parts = {"train": [path for i, path in enumerate(paths) if i % HELD_OUT], "val": paths[::HELD_OUT]}
    counts = {split: len(chosen) for split, chosen in parts.items()}
    if not mixed and len(parts) == 1:
        settings["splits"] = dict.fromkeys(parts, ".")
        return OwnSet(name, settings, counts, labelled=True)
    files = {f"{name}-{split}.txt": "\n".join(chosen) + "\n" for split, chosen in parts.items()}
    settings["splits"] = dict(zip(parts, files, strict=True))
    return OwnSet(name, settings, counts, labelled=True, texts=files)


def _classes(folder: Path, labels: Sequence[PurePosixPath]) -> dict[str, Any]:
    """``classes`` and the label settings, from a sample of the label files."""
    chosen = [labels[i] for i in sorted({round(i) for i in np.linspace(0, len(labels) - 1, min(SAMPLED, len(labels)))})]
    store, numbers = Folder(folder), set[int]()
    colors: set[tuple[int, int, int]] = set()
    for path in chosen:
        picture = open_picture(store.read(str(path)), str(path))
        if picture.lossy:
            raise UserError(f"{path} is a label stored as {picture.lossy}, which changes values; save labels as PNG")
        if len(picture.image.getbands()) > 1:
            packed = np.unique(color_numbers(picture, str(path))).tolist()
            colors |= {(value >> 16, value >> 8 & 255, value & 255) for value in packed}
        else:
            numbers |= set(np.unique(class_numbers(picture, str(path))).tolist())
        if len(colors) > MOST_COLORS:
            raise UserError(f"{path}: more than {MOST_COLORS} colours, so it is a picture, not a label; labels are PNG "
                            "of class numbers or of a few plain colours")  # fmt: skip
    if colors and numbers:
        raise UserError(f"numbered and coloured labels are mixed, such as {chosen[0]}; use one kind")
    if colors:
        ordered = sorted(colors)
        return {"classes": _names(folder, len(ordered)), "colors": [list(each) for each in ordered], "coloured": True}
    known = sorted(numbers - {255}) if numbers != {0, 255} else sorted(numbers)
    classes: dict[str, Any] = {"classes": _names(folder, max(1, len(known)))}
    if known != list(range(len(known))):
        classes["ids"] = {number: i for i, number in enumerate(known)}
        classes["ignore"] = [] if 255 in known else [255]
    return classes


def _names(folder: Path, count: int) -> list[str]:
    """Names of ``count`` classes: the lines of a ``classes.txt`` of that length, else numbered names."""
    return listed_names(folder, count) or (
        ["background", "object"] if count == 2 else [f"class_{number}" for number in range(count)]
    )
