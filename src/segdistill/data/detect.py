"""Derives a ``dataset.yaml`` from a folder of images. Imports no torch.

A file is a label if a folder in its path is named like one (``labels``, ``masks``, ...) or its name ends like one
(``_mask``, ``_label``, ...); it belongs to the image with the same path apart from that. COCO files are recognised by
content. A sample of the label files is read to find their numbers or colours. Without label maps and COCO files, those
of LabelMe and YOLO become COCO files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from PIL import Image

from segdistill.config import UserError
from segdistill.data.decode import UNREADABLE
from segdistill.data.drawn import WRITTEN, DrawnImage, class_names, coco_text, labelme, yolo

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "annotation", "gt", "segmentation", "seg",
                 "ann_dir", "ground_truth", "groundtruth", "segmentationclass", "targets")  # fmt: skip
IMAGE_FOLDERS = ("images", "image", "img", "imgs", "rgb", "photos", "img_dir", "jpegimages", "inputs")
LABEL_ENDS = ("_mask", "_label", "_labels", "_gt", "_seg", "_segmentation", "_annotation", "-mask", "-label", "_l",
              "_m")  # fmt: skip
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}  # fmt: skip
SAMPLED = 60  # label files that are read
MOST_COLORS = 64
HELD_OUT = 5  # without splits every fifth image is for validation


@dataclass(frozen=True)
class OwnSet:
    """One domain of the folder: ``settings`` of its ``dataset.yaml``, and the number of images per split.

    ``texts`` are the list files and COCO files that the description refers to and that must be written, by name.
    """

    name: str
    settings: dict[str, Any]
    counts: dict[str, int]
    labelled: bool
    texts: dict[str, str] = field(default_factory=dict)


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


def detect(folder: Path) -> list[OwnSet]:
    """The domains in ``folder``, labelled ones first, the largest first; a :class:`UserError` if there are none."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the folder that holds your images")
    files = sorted(
        PurePosixPath(path.relative_to(folder).as_posix())
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    images = [path for path in files if path.suffix.lower() in IMAGES]
    if not images:
        raise UserError(f"{folder} contains no images; recognised suffixes: {' '.join(IMAGES)}")
    if coco := _coco(folder, [path for path in files if path.suffix.lower() == ".json"], images):
        return coco
    pairs, lone = _pairs(images)
    if not pairs and (drawn := _drawn(folder, files, images)):
        return drawn
    classes = _classes(folder, [pair.label for pair in pairs]) if pairs else {}
    lists = {SPLITS[path.stem.lower()]: path for path in files if path.suffix == ".txt" and path.stem.lower() in SPLITS}
    labelled = _labelled(pairs, classes, lists, folder.resolve().name)
    beside = {PurePosixPath(each.settings["images"]) for each in labelled}
    unlabelled = []
    for path in lone:
        if not any(each == path.parent or each in path.parents for each in beside if str(each) != "."):
            unlabelled.append(path)
    sets = sorted(labelled, key=lambda each: -sum(each.counts.values())) + _unlabelled(unlabelled, labelled)
    names = [each.name for each in sets]
    if len(set(names)) < len(names):
        raise UserError(f"{folder}: two parts would both be called {max(names, key=names.count)}; rename a folder")
    return sets


def _take_apart(path: PurePosixPath) -> tuple[bool, int | None, str]:
    """Whether it is a label, the index of the folder named like labels or images, and the suffix of its name."""
    parts = [part.lower() for part in path.parts[:-1]]
    place = next((i for i, part in enumerate(parts) if part in LABEL_FOLDERS), None)
    end = next((end for end in LABEL_ENDS if path.stem.lower().endswith(end) and path.stem.lower() != end), "")
    if place is not None:
        return True, place, path.stem[len(path.stem) - len(end) :] if end else ""
    if end:
        return True, None, path.stem[len(path.stem) - len(end) :]
    return False, next((i for i, part in enumerate(parts) if part in IMAGE_FOLDERS), None), ""


def _pairs(images: Sequence[PurePosixPath]) -> tuple[list[Pair], list[PurePosixPath]]:
    """Images with their labels, and images without one."""
    labels: dict[tuple[str, ...], tuple[PurePosixPath, int | None, str]] = {}
    others = []
    for path in images:
        is_label, place, end = _take_apart(path)
        if is_label:
            for each in dict.fromkeys((end, "")):  # labels/a_mask.png may belong to a.jpg or to a_mask.jpg
                labels.setdefault(_key(path, place, each), (path, place, each))
        else:
            others.append((path, place))
    pairs, lone = [], []
    for path, place in others:
        found = labels.get(_key(path, place, ""))
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


def _key(path: PurePosixPath, place: int | None, end: str) -> tuple[str, ...]:
    """The key that an image and its label share: the other folders and the name."""
    folders = [part for i, part in enumerate(path.parts[:-1]) if i != place]
    return (*folders, path.stem[: len(path.stem) - len(end)])


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
    name = _slug("_".join(first.root) or title)
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
    if own or not source:
        parts = {own or "val": paths}
    else:
        parts = {"train": [path for i, path in enumerate(paths) if i % HELD_OUT], "val": paths[::HELD_OUT]}
    counts = {split: len(chosen) for split, chosen in parts.items()}
    if not mixed and len(parts) == 1:
        settings["splits"] = dict.fromkeys(parts, ".")
        return OwnSet(name, settings, counts, labelled=True)
    files = {f"{name}-{split}.txt": "\n".join(chosen) + "\n" for split, chosen in parts.items()}
    settings["splits"] = dict(zip(parts, files, strict=True))
    return OwnSet(name, settings, counts, labelled=True, texts=files)


def _unlabelled(paths: Sequence[PurePosixPath], labelled: Sequence[OwnSet]) -> list[OwnSet]:
    """Sets of the images without labels, by their folder."""
    groups: dict[str, int] = defaultdict(int)
    for path in paths:
        groups[path.parts[0] if len(path.parts) > 1 else "."] += 1
    if "." in groups and (len(groups) > 1 or labelled):
        del groups["."]  # beside folders: such as the pictures of a readme
    return [
        OwnSet(
            _slug(folder if folder != "." else "images"),
            {"images": folder, "labels": None, "splits": {"train": "."}},
            {"train": count},
            labelled=False,
        )
        for folder, count in groups.items()
    ]


def _drawn(folder: Path, files: Sequence[PurePosixPath], images: Sequence[PurePosixPath]) -> list[OwnSet]:
    """The sets described by LabelMe's or YOLO's files, the largest first; empty without such files."""
    found = labelme(folder, [path for path in files if path.suffix.lower() == ".json"], images)
    names = class_names(found)
    if not found:
        known = {_key(path, _take_apart(path)[1], ""): path for path in images}
        beside = ((known.get(_key(path, _take_apart(path)[1], "")), path) for path in files if path.suffix == ".txt")
        given = _yolo_names(folder, files)
        found = yolo(folder, [(image, path) for image, path in beside if image], given)
        names = given or class_names(found)
    if not found:
        return []
    if not names:
        raise UserError(f"{folder}: none of its {len(found)} annotation files has an object of a class")
    groups: dict[tuple[str, ...], list[DrawnImage]] = defaultdict(list)
    for image in found:
        folders = image.path.parts[:-1]
        end = next((i for i, part in enumerate(folders) if part.lower() in (*IMAGE_FOLDERS, *SPLITS)), len(folders))
        groups[folders[:end]].append(image)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    labelled = [_drawn_set(root, group, names, _slug("_".join(root) or folder.resolve().name), source=not number)
                for number, (root, group) in enumerate(ordered)]  # fmt: skip
    folders = {image.path.parent for image in found}
    return labelled + _unlabelled([path for path in images if path.parent not in folders], labelled)


def _drawn_set(
    root: tuple[str, ...], group: Sequence[DrawnImage], names: Sequence[str], name: str, *, source: bool
) -> OwnSet:
    parts: dict[str, list[DrawnImage]] = defaultdict(list)
    for number, image in enumerate(sorted(group, key=lambda image: image.path)):
        split = next(
            (SPLITS[part.lower()] for part in image.path.parts[len(root) : -1] if part.lower() in SPLITS), None
        )
        parts[split or ("train" if source and number % HELD_OUT else "val")].append(image)
    texts = {f"{name}-{split}.json": coco_text(parts[split], names) for split in sorted(parts)}
    settings = {"layout": "coco", "images": ".", "annotations": dict(zip(sorted(parts), texts, strict=True)),
                "background": "background"}  # fmt: skip
    return OwnSet(name, settings, {split: len(parts[split]) for split in sorted(parts)}, labelled=True, texts=texts)


def _yolo_names(folder: Path, files: Sequence[PurePosixPath]) -> list[str]:
    """The ``names`` of a YOLO description such as data.yaml, or the lines of ``classes.txt``; empty without them."""
    for path in files:
        if len(path.parts) > 1 or path.suffix.lower() not in (".yaml", ".yml"):
            continue
        try:
            values = yaml.safe_load((folder / path).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        names = values.get("names") if isinstance(values, dict) else None
        if isinstance(names, dict) and all(isinstance(number, int) for number in names):
            names = [names.get(number, f"class_{number}") for number in range(max(names, default=-1) + 1)]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    return _listed_names(folder)


def _coco(folder: Path, candidates: Sequence[PurePosixPath], images: Sequence[PurePosixPath]) -> list[OwnSet]:
    """The sets described by COCO files, the training set first; empty without COCO files."""
    found: dict[str, tuple[PurePosixPath, list[str]]] = {}
    for path in candidates:
        names = _coco_images(folder / path)
        if names is None:
            continue
        words = sorted(SPLITS, key=len, reverse=True)
        split = next((SPLITS[word] for word in words if word in path.stem.lower()), "train")
        if split in found:
            raise UserError(
                f"{folder}: {found[split][0]} and {path} are both for split {split}; move one out of the folder"
            )
        found[split] = path, names
    if found and "train" not in found:
        raise UserError(f"{folder}: COCO files for {', '.join(found)} but none for train; name one ...train.json")
    title, sets = _slug(folder.resolve().name), []
    for split, (path, names) in sorted(found.items(), key=lambda item: item[0] != "train"):
        first = names[0] if names else ""
        match = next((str(image) for image in images if f"/{image}".endswith(f"/{first}")), None)
        if match is None or not names:
            raise UserError(f"{path}: its image '{first}' is not in {folder} or its subfolders; put the images there")
        where = match[: len(match) - len(first)].rstrip("/") or "."
        settings = {"layout": "coco", "images": where, "annotations": {split: str(path)}, "background": "background"}
        name = title if split == "train" else f"{title}_{split}"
        sets.append(OwnSet(name, settings, {split: len(names)}, labelled=True))
    return sets


def _coco_images(path: Path) -> list[str] | None:
    """The images that a COCO file names; None for any other file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or not {"images", "annotations", "categories"} <= values.keys():
        return None
    if isinstance(values.get("info"), dict) and values["info"].get("description") == WRITTEN:
        return None  # made from files that are still here
    entries = values["images"] if isinstance(values["images"], list) else []
    return [str(entry.get("file_name")) for entry in entries if isinstance(entry, dict)]


def _classes(folder: Path, labels: Sequence[PurePosixPath]) -> dict[str, Any]:
    """``classes`` and the label settings, from a sample of the label files."""
    chosen = [labels[i] for i in sorted({round(i) for i in np.linspace(0, len(labels) - 1, min(SAMPLED, len(labels)))})]
    numbers: set[int] = set()
    colors: set[tuple[int, int, int]] = set()
    for path in chosen:
        if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
            raise UserError(f"{path} is a label stored as JPEG or WebP, which changes values; save labels as PNG")
        try:
            with Image.open(folder / path) as image:
                if image.mode in ("RGB", "RGBA"):
                    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
                    packed = np.unique(pixels.astype(np.int64) @ (65536, 256, 1))
                    colors |= {(int(v) >> 16, int(v) >> 8 & 255, int(v) & 255) for v in packed}
                else:
                    pixels = np.asarray(image)
                    numbers |= {int(value) for value in np.unique(pixels.astype(np.int64))}
        except UNREADABLE as error:
            raise UserError(f"{path} cannot be read as a label: {' '.join(str(error).split())}") from None
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
    return _listed_names(folder, count) or (
        ["background", "object"] if count == 2 else [f"class_{number}" for number in range(count)]
    )


def _listed_names(folder: Path, count: int | None = None) -> list[str]:
    """The lines of a ``classes.txt``, if there is one with ``count`` names; else an empty list."""
    for name in ("classes.txt", "labels.txt", "names.txt", "class_names.txt"):
        path = folder / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        lines = [line.strip() for line in lines if line.strip()]
        if lines and len(lines) == len(set(lines)) and count in (None, len(lines)):
            return lines
    return []


def _slug(text: str) -> str:
    """A name that is valid in a recipe and in an override."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text.lower()).strip("_")
    return plain or "images"
