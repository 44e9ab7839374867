"""Reads every image and label of a data set once and reports whether it can be used. Imports no torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segdistill.data.archives import BadSample, Store
from segdistill.data.catalog import IGNORE, DatasetRecord, Layout
from segdistill.data.census import Census
from segdistill.data.dataset import Progress, Split
from segdistill.data.doubts import Evidence, doubts
from segdistill.data.index import Absent, Found, Item, Place, find
from segdistill.data.labels import read_pair
from segdistill.data.object_labels import reader_of
from segdistill.data.pool import worker_pool

CHUNK = 8
"""Images per work item."""


@dataclass
class SplitCheck:
    """Content of one split. ``faults``: lines that name a file; ``pixels``: count of each class."""

    split: Split
    layout: str
    where: str
    images: int
    labelled: int
    official: int | None
    lone_images: list[str]
    lone_labels: list[str]
    missing: list[str]
    pixels: NDArray[np.int64]
    ignored: int = 0
    doubts: list[str] = field(default_factory=list)  # usable but suspicious
    faults: list[str] = field(default_factory=list)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    census: Census | None = None  # of data sets with objects

    @property
    def ok(self) -> bool:
        """Whether every image can be read, and has a label if any has one. Extra labels are allowed."""
        partly = 0 < len(self.lone_images) < self.images
        return not (self.faults or self.missing or partly)


@dataclass
class Check:
    """Result for one data set."""

    name: str
    record: DatasetRecord
    splits: list[SplitCheck]
    absent: list[str]  # splits of the record without images on this disk

    @property
    def ok(self) -> bool:
        """Whether all splits on this disk can be read completely."""
        return all(split.ok for split in self.splits)

    def verdict(self) -> str:
        """One line on what the data set can be used for."""
        bad = [split.split for split in self.splits if not split.ok]
        if bad:
            return f"{self.name}: not usable: split {', '.join(bad)} has faults"
        train = next((split for split in self.splits if split.split == "train"), None)
        if train is None:
            return f"{self.name}: can be used for evaluation; there is no split 'train' to train on"
        if not train.labelled:
            return f"{self.name}: can be used for distillation; there are no labels to train a task on"
        return f"{self.name}: can be used for training"


class Inspector:
    """Reads items of one store; one instance per process."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self.store, self.upright = store, layout.upright
        self.reader = None if layout.encoding is None else reader_of(layout.encoding)

    def __call__(self, items: Sequence[Item]) -> list[Inspection]:
        return [self.inspect(item) for item in items]

    def inspect(self, item: Item) -> Inspection:
        """Size and class counts of one image, or its fault."""
        try:
            pair = read_pair(self.store, item, self.reader, upright=self.upright)
        except BadSample as error:
            return Inspection(fault=str(error))
        size = (pair.image.shape[0], pair.image.shape[1])
        digest = hashlib.blake2b(f"{size}".encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pair.image).data)
        return Inspection(size=size, evidence=Evidence(1).add(pair), digest=digest.digest())


@dataclass(frozen=True)
class Inspection:
    """Result for one image."""

    size: tuple[int, int] | None = None
    evidence: Evidence | None = None
    fault: str | None = None
    digest: bytes | None = None  # of the pixels


def check(where: Place, *, processes: int = 1, progress: Progress | None = None) -> Check:
    """Read all splits of the data set at ``where``; a :class:`UserError` if there are no images."""
    splits: dict[Split, None] = dict.fromkeys(split for layout in where.record.layouts for split in layout.splits)
    done, absent, reasons = [], [], []
    known: Known = {}
    for split in splits:
        try:
            found = find(where, split)
        except Absent as error:
            absent.append(split)
            reasons.append(error)
            continue
        done.append(_check_split(where, split, found, processes, progress, known))
    if not done:
        raise reasons[0]
    return Check(where.name, where.record, done, absent)


def _check_split(
    where: Place, split: Split, found: Found, processes: int, progress: Progress | None, known: Known
) -> SplitCheck:
    record, lone = where.record, found.lone_images
    report = SplitCheck(
        split=split,
        layout=found.layout.title,
        where=str(found.store),
        images=len(found.items),
        labelled=len(found.items) - len(lone),
        official=record.counts.get(f"{where.subset}:{split}" if where.subset else split),
        lone_images=lone if len(lone) < len(found.items) else [],
        lone_labels=found.lone_labels,
        missing=found.missing,
        pixels=np.zeros(len(record.classes), np.int64),
    )
    report.faults += found.store.damaged(split)
    done, evidence, copies = 0, Evidence(report.images), Copies(split, known)
    for inspections in _inspected(found, processes):
        for inspection in inspections:
            _add(report, evidence, inspection)
            copies.add(found.items[done].image, inspection.digest)
            done += 1
        if progress is not None:
            progress(f"checking {where.name} {split}", done, len(found.items))
    report.pixels += evidence.pixels[: len(report.pixels)]
    report.ignored = int(evidence.pixels[IGNORE])
    report.census = evidence.census if found.layout.objects and report.labelled else None
    report.doubts = doubts(where, split, found, evidence, labelled=report.labelled > 0)
    report.doubts += [f"{where.name}, split {split}: {line}" for line in copies.lines()]
    return report


Known = dict[bytes, tuple[Split, str]]
"""Digest of an image's pixels -> the first image with them, and its split."""


class Copies:
    """Counts the images of a split with the pixels of an earlier image; adds the others to ``known``."""

    def __init__(self, split: Split, known: Known) -> None:
        self.split, self.known = split, known
        self.found: dict[Split, list[tuple[str, str]]] = {}

    def add(self, image: str, digest: bytes | None) -> None:
        """Look for an earlier image; None: it cannot be read."""
        if digest is None:
            return
        split, first = self.known.setdefault(digest, (self.split, image))
        if (split, first) != (self.split, image):
            self.found.setdefault(split, []).append((image, first))

    def lines(self) -> list[str]:
        """One line for each split that has the earlier images."""
        lines = []
        for split, pairs in self.found.items():
            many = f"{len(pairs):,} image{'s have' if len(pairs) > 1 else ' has'} the same pixels as"
            (image, first), own = pairs[0], split == self.split
            what = "another one of this split" if own else f"one of split {split}"
            then = "remove the copies" if own else "remove them from one of the two: a score on them says little"
            lines.append(f"{many} {what}, such as {image} and {first}; {then}")
        return lines


def _add(report: SplitCheck, evidence: Evidence, inspection: Inspection) -> None:
    if inspection.fault is not None:
        report.faults.append(inspection.fault)
    if inspection.size is not None:
        report.sizes[inspection.size] += 1
    if inspection.evidence is not None:
        evidence.join(inspection.evidence)


_INSPECTORS: list[Inspector] = []  # of this process, which works on one split


def _start(store: Store, layout: Layout) -> None:
    _INSPECTORS[:] = [Inspector(store, layout)]


def _work(items: Sequence[Item]) -> list[Inspection]:
    return _INSPECTORS[0](items)


def _inspected(found: Found, processes: int) -> Iterator[list[Inspection]]:
    """The inspections of all items, in order."""
    chunks = [found.items[start : start + CHUNK] for start in range(0, len(found.items), CHUNK)]
    setting = (found.store, found.layout)
    if processes <= 1 or len(chunks) <= 1:
        yield from map(Inspector(*setting), chunks)
        return
    with worker_pool(min(processes, len(chunks)), _start, *setting) as pool:
        yield from pool.map(_work, chunks)
