"""Warnings about usable but suspicious data, one line each, for `data check`, `run --dry-run` and `run`.

`data check` reads every label. Before a run at most LOOKED images per split are read, evenly spaced, and fewer if they
are large; the lines say how many. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segdistill.data.archives import BadSample
from segdistill.data.catalog import IGNORE, Encoding
from segdistill.data.census import Census
from segdistill.data.dataset import Split
from segdistill.data.index import Found, Item, Place
from segdistill.data.labels import LabelReader, Pair, read_pair

LOOKED = 16
"""Images per split that are read before a run."""

PIXELS = 1 << 26
"""Pixels after which no more images are read."""

DARK = 16
"""Of 256 levels: the level below which 16-bit images stay if they hold values of 12 bits or fewer."""

NAMED = 5
"""Most classes that a line names."""


@dataclass
class Evidence:
    """Statistics of ``looked`` of ``total`` images."""

    total: int
    looked: int = 0
    pixels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))  # of each value
    wide: int = 0  # images of 16 bits
    dark: int = 0  # of them, those that are nearly black
    census: Census = field(default_factory=Census)  # of objects

    def add(self, pair: Pair) -> Evidence:
        """Count one more image; the evidence itself."""
        self.looked += 1
        self.wide += pair.wide
        self.dark += pair.wide and int(pair.image.max(initial=0)) < DARK
        if pair.label is not None:
            self.pixels += np.bincount(pair.label.reshape(-1), minlength=len(self.pixels))
        if pair.objects is not None:
            self.census.add(pair.objects)
        return self

    def join(self, other: Evidence) -> None:
        """Count what ``other`` has counted."""
        self.looked, self.wide, self.dark = self.looked + other.looked, self.wide + other.wide, self.dark + other.dark
        self.pixels += other.pixels
        self.census.join(other.census)


def look(found: Found, items: Sequence[Item], read_label: LabelReader | None) -> Evidence:
    """Statistics of a few ``items``, evenly spaced. Unreadable files are skipped; they are reported elsewhere."""
    evidence = Evidence(len(items))
    pixels = 0
    for number in np.linspace(0, len(items) - 1, min(LOOKED, len(items))).astype(int):
        try:
            pair = read_pair(found.store, items[number], read_label, upright=found.layout.upright)
        except BadSample:
            continue
        evidence.add(pair)
        pixels += pair.image.shape[0] * pair.image.shape[1]
        if pixels >= PIXELS:
            break
    return evidence


def doubts(where: Place, split: Split, found: Found, evidence: Evidence, *, labelled: bool) -> list[str]:
    """One line for each suspicious thing in the images and, if they are used, in the labels."""
    of = "all" if evidence.looked == evidence.total else f"{evidence.looked:,} of"
    seen = f"(seen: {of} {evidence.total:,} images)"
    lines = []
    if found.skipped:
        endings = sorted({name.rpartition(".")[2].lower() for name in found.skipped})
        lines.append(
            f"{len(found.skipped)} files are not read because of their suffix ({', '.join(endings)}), such as "
            f"{found.skipped[0]}; convert them to PNG or JPEG, or remove them"
        )
    if evidence.dark and evidence.dark == evidence.wide:
        lines.append(
            f"the images of 16 bits are nearly black: no value reaches {DARK << 8} of 65535; stretch them {seen}"
        )
    if labelled:
        lines += found.store.doubts(split)
        # A few images of a known data set may well lack rare classes.
        complete = evidence.looked == evidence.total or where.own
        lines += [f"{line} {seen}" for line in _of_labels(where, found.layout.encoding, evidence)
                  if complete or not line.startswith(("no pixel", "no object of"))]  # fmt: skip
    return [f"{where.name}, split {split}: {line}" for line in lines]


def _of_labels(where: Place, encoding: Encoding | None, evidence: Evidence) -> list[str]:
    """Suspicious values of the labels."""
    classes = where.record.classes
    counts, ignored = evidence.pixels[: len(classes)], int(evidence.pixels[IGNORE])
    if encoding is not None and encoding.objects is not None:
        return _of_objects(classes, evidence.census)
    if not counts.any():
        return ["every pixel of the labels is ignored"] if ignored else []
    lines = []
    without = [name for name, count in zip(classes, counts, strict=True) if not count]
    read = encoding.ids if encoding and where.store is None else {}  # COCO labels have no numbers of their own
    numbers = {number for number, to in read.items() if to == IGNORE}
    if ignored and numbers == {IGNORE} and len(classes) > 1 and not counts[1:].any():
        lines.append(
            f"255 is the only number besides 0, and it is ignored; if it means '{classes[1]}', "
            f"write ids: {{0: {classes[0]}, 255: {classes[1]}}}"
        )
    if without:
        lines.append(f"no pixel of {len(without)} of {len(classes)} classes: {_named(without)}")
    return lines


def _of_objects(classes: Sequence[str], census: Census) -> list[str]:
    """Suspicious numbers of objects."""
    if not census.objects:
        return ["no objects in the labels" + (", only crowds" if census.crowds else "")] if census.images else []
    without = [name for number, name in enumerate(classes) if not census.classes[number]]
    lines = [f"no object of {len(without)} of {len(classes)} classes: {_named(without)}"] if without else []
    if census.pixelless:
        lines.append(f"{census.pixelless} objects have no pixel: they are never learned, and missed when scored")
    return lines


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
