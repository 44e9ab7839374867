"""Pseudo-labels as Cityscapes ``instanceIds``: 16-bit PNG, class id x 1000 + number, 0 = no object."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdistill.config import UserError
from segdistill.data.catalog.classes import CITYSCAPES_IDS, DRIVING
from segdistill.data.dataset import Progress
from segdistill.data.own_sets import IMAGES
from segdistill.data.pseudo import PseudoLabels
from segdistill.files import write_atomic
from segdistill.objects import Objects

EACH = 1000
"""Numbers per class."""
LARGEST = (1 << 16) // EACH - 1
"""Largest class id whose numbers all fit into 16 bits."""


def class_ids(classes: Sequence[str]) -> dict[str, int]:
    """The id of each class: Cityscapes' own if it has all of them, else their order, counted from 1."""
    official = {DRIVING[number]: id_ for id_, number in CITYSCAPES_IDS.items()}
    if set(classes) <= set(official):
        return {name: official[name] for name in classes}
    return {name: number for number, name in enumerate(classes, 1)}


def instance_ids(objects: Objects, ids: Sequence[int]) -> NDArray[np.uint16]:
    """The map (H, W); ``ids``: the id of each class. Objects must not overlap."""
    if len(objects.ids) != 1:
        raise ValueError("objects that overlap do not fit into one map")
    values, counts = np.zeros(len(objects.classes) + 1, np.uint16), dict.fromkeys(range(len(ids)), 0)
    for number, kind in enumerate(objects.classes.tolist(), 1):
        if counts[kind] == EACH:
            raise UserError(f"an image has more than {EACH} objects of one class, which instanceIds cannot hold: "
                            "raise the score")  # fmt: skip
        values[number] = ids[kind] * EACH + counts[kind]
        counts[kind] += 1
    return values[objects.ids[0]]


def write_instance_ids(labels: PseudoLabels, folder: Path, *, progress: Progress | None = None) -> list[Path]:
    """Write a PNG for every image, ``folder/domain/..._instanceIds.png``; returns the files.

    The ids are those of :func:`class_ids`. Images named as in Cityscapes (``leftImg8bit/``) get the names of its
    annotations (``gtFine/``).
    """
    numbers = list(class_ids(labels.classes).values())
    if wrong := [number for number in numbers if number > LARGEST]:
        raise UserError(f"class id {wrong[0]} does not fit into instanceIds: allowed are 1 to {LARGEST}")
    files: list[Path] = []
    for image in labels:
        path = folder / label_name(image)
        picture = Image.fromarray(instance_ids(labels.objects(image), numbers))
        write_atomic(path, partial(picture.save, format="PNG"))
        files.append(path)
        if progress is not None:
            progress("writing instanceIds", len(files), len(labels))
    return files


def label_name(image: str) -> str:
    """The file for an image ``domain/name``, inside the folder."""
    domain, _, name = image.partition("/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"the image '{image}' has a path that leads out of its folder: rename it")
    parts = ["gtFine" if part == "leftImg8bit" else part for part in path.parts[:-1]]
    stem = path.stem if path.suffix.lower() in IMAGES else path.name
    stem = stem.removesuffix("_leftImg8bit") + "_gtFine" if stem.endswith("_leftImg8bit") else stem
    return str(PurePosixPath(domain.replace(":", "_"), *parts, f"{stem}_instanceIds.png"))
