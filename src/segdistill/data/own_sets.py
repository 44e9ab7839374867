"""What the parts of ``init`` share: how folders and files are named, and the sets that are found in them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from segdistill.data.archives import Folder, ImageFile
from segdistill.data.copies import Originals

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "annotations", "annotation", "gt", "segmentation", "seg",
                 "ann_dir", "ground_truth", "groundtruth", "segmentationclass", "targets")  # fmt: skip
IMAGE_FOLDERS = ("images", "image", "img", "imgs", "rgb", "photos", "img_dir", "jpegimages", "inputs")
LABEL_ENDS = ("_mask", "_label", "_labels", "_gt", "_seg", "_segmentation", "_annotation", "-mask", "-label", "_l",
              "_m")  # fmt: skip
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
          "testing": "test"}  # fmt: skip
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
    copies: int = 0  # of images that others have, too; left out


def files_in(folder: Path) -> list[PurePosixPath]:
    """The files in ``folder`` and below it, sorted; hidden ones are left out, and links to folders are followed."""
    return sorted(PurePosixPath(name) for name in Folder(folder).names() if (folder / name).is_file())


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8 or UTF-16, with or without a byte order mark; None if it is none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def take_apart(path: PurePosixPath) -> tuple[bool, int | None, str]:
    """Whether it is a label, the index of the folder named like labels or images, and the suffix of its name."""
    parts = [part.lower() for part in path.parts[:-1]]
    place = next((i for i, part in enumerate(parts) if part in LABEL_FOLDERS), None)
    end = next((end for end in LABEL_ENDS if path.stem.lower().endswith(end) and path.stem.lower() != end), "")
    if place is not None:
        return True, place, path.stem[len(path.stem) - len(end) :] if end else ""
    if end:
        return True, None, path.stem[len(path.stem) - len(end) :]
    return False, next((i for i, part in enumerate(parts) if part in IMAGE_FOLDERS), None), ""


def key_of(path: PurePosixPath, place: int | None, end: str) -> tuple[str, ...]:
    """The key that an image and its label share: the other folders and the name."""
    folders = [part for i, part in enumerate(path.parts[:-1]) if i != place]
    return (*folders, path.stem[: len(path.stem) - len(end)])


def unlabelled_sets(paths: Sequence[PurePosixPath], labelled: set[PurePosixPath]) -> list[OwnSet]:
    """Sets of the images ``paths`` without labels, by the topmost folder that holds none of the folders ``labelled``.

    Images directly in the top folder form a set only if nothing else does; images beside labelled ones form none.
    """
    above = {each for folder in labelled for each in (folder, *folder.parents)}
    groups: dict[PurePosixPath, int] = defaultdict(int)
    top = PurePosixPath()
    for path in paths:
        own = next((each for each in reversed(path.parents) if each not in above and each != top), None)
        if own is not None or path.parent == top:
            groups[own or top] += 1
    if top in groups and (len(groups) > 1 or labelled):
        del groups[top]  # beside folders: such as the pictures of a readme
    return [
        OwnSet(
            slug("_".join(folder.parts) or "images"),
            {"images": str(folder), "labels": None, "splits": {"train": "."}},
            {"train": count},
            labelled=False,
        )
        for folder, count in groups.items()
    ]


def without_copies(folder: Path, each: OwnSet, images: Sequence[PurePosixPath], beside: Sequence[OwnSet]) -> OwnSet:
    """The set ``each`` of unlabelled images without copies of the ``images`` that are in none of the sets ``beside``.

    If there are copies, a list file names the remaining images; a set of copies only ends up empty.
    """
    store = Folder(folder)
    own = [path for path in images if path.is_relative_to(each.settings["images"])]
    lone = [PurePosixPath(other.settings["images"]) for other in beside]
    rest = Originals(_file(store, path) for path in images if not any(map(path.is_relative_to, lone)))
    kept = [path for path in own if not rest.same(_file(store, path))]
    if len(kept) == len(own):
        return each
    name = f"dataset-{each.name}.txt"
    text = "".join(f"{path}\n" for path in kept)
    return replace(each, settings=each.settings | {"splits": {"train": name}}, counts={"train": len(kept)},
                   texts={name: text}, copies=len(own) - len(kept))  # fmt: skip


def _file(store: Folder, path: PurePosixPath) -> ImageFile:
    return ImageFile("", str(path), str(path), store)


def listed_names(folder: Path, count: int | None = None) -> list[str]:
    """The lines of a ``classes.txt``, if there is one with ``count`` names; else an empty list."""
    for name in ("classes.txt", "labels.txt", "names.txt", "class_names.txt"):
        path = folder / name
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if path.is_file() else []
        lines = [line.strip() for line in lines if line.strip()]
        if lines and len(lines) == len(set(lines)) and count in (None, len(lines)):
            return lines
    return []


def slug(text: str) -> str:
    """A name that YAML reads as text, valid in a recipe and in an override."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in text.lower()).strip("_")
    return plain if isinstance(yaml.safe_load(plain), str) and plain[0].isalpha() else f"images_{plain}".strip("_")
