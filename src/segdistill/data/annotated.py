"""The sets that annotation files describe: COCO's, and LabelMe's, Pascal VOC's and YOLO's, which become COCO files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import yaml

from segdistill.config import UserError
from segdistill.data.drawn import WRITTEN, DrawnImage, class_names, coco_text, labelme, voc, yolo
from segdistill.data.own_sets import (
    HELD_OUT,
    IMAGE_FOLDERS,
    SPLITS,
    OwnSet,
    key_of,
    listed_names,
    read_json,
    slug,
    take_apart,
    unlabelled_sets,
)


def coco_sets(folder: Path, candidates: Sequence[PurePosixPath], images: Sequence[PurePosixPath]) -> list[OwnSet]:
    """The sets described by COCO files, the training set first, and images in other folders; empty without COCO files.

    A file's split is in its name, or else in that of a folder.
    """
    found: dict[str, tuple[PurePosixPath, list[str]]] = {}
    for path in candidates:
        names = _coco_images(folder / path)
        if names is None:
            continue
        words = [word for word in sorted(SPLITS, key=len, reverse=True) if word in path.stem.lower()]
        words += [part.lower() for part in reversed(path.parts[:-1]) if part.lower() in SPLITS]
        split = SPLITS[words[0]] if words else "train"
        if split in found:
            raise UserError(
                f"{folder}: {found[split][0]} and {path} are both for split {split}; move one out of the folder"
            )
        found[split] = path, names
    if found and "train" not in found:
        raise UserError(f"{folder}: COCO files for {', '.join(found)} but none for train; name one ...train.json")
    title, sets = slug(folder.resolve().name), []
    for split, (path, names) in sorted(found.items(), key=lambda item: item[0] != "train"):
        first = names[0] if names else ""
        fitting = [str(image) for image in images if f"/{image}".endswith(f"/{first}")]
        match = str(path.parent / first) if str(path.parent / first) in fitting else next(iter(fitting), None)
        if match is None or not names:
            raise UserError(f"{path}: its image '{first}' is not in {folder} or its subfolders; put the images there")
        where = match[: len(match) - len(first)].rstrip("/") or "."
        settings = {"layout": "coco", "images": where, "annotations": {split: str(path)}, "background": "background"}
        name = title if split == "train" else f"{title}_{split}"
        sets.append(OwnSet(name, settings, {split: len(names)}, labelled=True))
    labelled = {PurePosixPath(each.settings["images"]) for each in sets}
    others = [path for path in images if labelled.isdisjoint(path.parents)]
    return sets + unlabelled_sets(others, labelled) if sets else []


def _coco_images(path: Path) -> list[str] | None:
    """The images that a COCO file names; None for any other file."""
    values = read_json(path)
    if not isinstance(values, dict) or not {"images", "annotations", "categories"} <= values.keys():
        return None
    if isinstance(values.get("info"), dict) and values["info"].get("description") == WRITTEN:
        return None  # made from files that are still here
    entries = values["images"] if isinstance(values["images"], list) else []
    return [str(entry.get("file_name")).replace("\\", "/") for entry in entries if isinstance(entry, dict)]


def drawn_sets(
    folder: Path, files: Sequence[PurePosixPath], images: Sequence[PurePosixPath], *, boxes: bool = False
) -> list[OwnSet]:
    """The sets described by LabelMe's or YOLO's files, the largest first; empty without such files.

    With ``boxes`` objects may be boxes, also those of Pascal VOC's files.
    """
    found = labelme(folder, [path for path in files if path.suffix.lower() == ".json"], images)
    if boxes and not found:
        found = voc(folder, [path for path in files if path.suffix.lower() == ".xml"], images)
    names = class_names(found)
    if not found:
        known = {key_of(path, take_apart(path)[1], ""): path for path in images}
        beside = ((known.get(key_of(path, take_apart(path)[1], "")), path) for path in files if path.suffix == ".txt")
        given = _yolo_names(folder, files)
        found = yolo(folder, [(image, path) for image, path in beside if image], given, boxes=boxes)
        names = given or class_names(found)
    if not found:
        return []
    if not names:
        raise UserError(f"{folder}: none of its {len(found)} annotation files contains a labelled object")
    groups: dict[tuple[str, ...], list[DrawnImage]] = defaultdict(list)
    for image in found:
        folders = image.path.parts[:-1]
        end = next((i for i, part in enumerate(folders) if part.lower() in (*IMAGE_FOLDERS, *SPLITS)), len(folders))
        groups[folders[:end]].append(image)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    labelled = []
    for number, (root, group) in enumerate(ordered):
        lists = _lists(folder, [path for path in files if PurePosixPath(*root) in path.parents])
        title = slug("_".join(root) or folder.resolve().name)
        labelled.append(_drawn_set(group, names, title, lists, (len(root), not number)))
    folders = {image.path.parent for image in found}
    return labelled + unlabelled_sets([path for path in images if path.parent not in folders], folders)


def _lists(folder: Path, files: Sequence[PurePosixPath]) -> dict[str, str]:
    """The split of each image that a ``train.txt``, ``val.txt`` or ``test.txt`` names, by its name without suffix.

    Of Pascal VOC's lists those in ``ImageSets/Main`` count.
    """
    lists = [path for path in files if path.suffix == ".txt" and path.stem.lower() in SPLITS]
    found = {}
    for path in [path for path in lists if path.parent.name == "Main"] or lists:
        for line in (folder / path).read_text(encoding="utf-8-sig", errors="replace").splitlines():
            name = PurePosixPath(line.strip().replace("\\", "/")).name
            found |= dict.fromkeys({name, PurePosixPath(name).stem} - {""}, SPLITS[path.stem.lower()])
    return found


def _drawn_set(
    group: Sequence[DrawnImage], names: Sequence[str], name: str, lists: dict[str, str], place: tuple[int, bool]
) -> OwnSet:
    """``place``: the depth of its folder, and whether it is the source. Images beside listed ones are left out."""
    (depth, source), parts = place, defaultdict(list)
    listed = any(image.path.stem in lists for image in group)
    for number, image in enumerate(sorted(group, key=lambda image: image.path)):
        folders = (part.lower() for part in image.path.parts[depth:-1])
        split = next((SPLITS[part] for part in folders if part in SPLITS), None) or lists.get(image.path.stem)
        if split or not listed:
            trains = source and (number % HELD_OUT > 0 or len(group) == 1)
            parts[split or ("train" if trains else "val")].append(image)
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
    return listed_names(folder)
