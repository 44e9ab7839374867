"""Data sets on disk as a source: images and labels from folders and archives, as the catalog describes them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr

from segdistill.config import SetName, Size, UserError, nearest
from segdistill.data.archives import BadSample, ImageFile
from segdistill.data.catalog import DATASETS, DatasetRecord, ObjectNumbers
from segdistill.data.dataset import DataSelection, Dataset, DataSource, Encoded, Progress, Protocol, Sample, Split
from segdistill.data.decode import plain_jpeg
from segdistill.data.doubts import doubts, look
from segdistill.data.fraction import chosen_rows
from segdistill.data.index import Found, Item, Place, find, listed_items, place
from segdistill.data.labels import LabelReader, read_pair
from segdistill.data.object_labels import reader_of
from segdistill.data.own import own_place
from segdistill.ops import generator

log = logging.getLogger("segdistill.data")


@dataclass(frozen=True)
class Part:
    """The selected images of one domain. ``read_label`` None: they have no labels."""

    place: Place
    found: Found
    items: list[Item]
    read_label: LabelReader | None


class FilesSource(DataSource):
    """Data sets on disk. A domain is a name of the catalog (``cityscapes``, ``acdc:night``) or one of ``sets``."""

    source: Literal["files"] = "files"
    size: Size = Field((512, 512), description="height and width in pixels of the crops that are trained on")
    root: Path | None = Field(None, description="folder that holds the data sets; None: the variable SEGDISTILL_DATA")
    roots: dict[str, Path] = Field({}, description="data set -> its own folder or archive, where it lies elsewhere")
    sets: dict[SetName, Path] = Field({}, description="name -> dataset.yaml of your own images")
    on_bad_sample: Literal["error", "skip"] = Field(
        "error", description="skip: in the split train an unreadable image is replaced by another one"
    )
    _places: dict[str, Place] = PrivateAttr(default_factory=dict)
    _founds: dict[tuple[str, Split], Found] = PrivateAttr(default_factory=dict)
    _doubts: dict[tuple[str, str, bool], list[str]] = PrivateAttr(default_factory=dict)

    def open(self, selection: DataSelection, progress: Progress | None = None) -> FilesDataset:
        """The images of ``selection``; reads only their names."""
        if problems := self._several(selection):
            raise UserError("; ".join(problems))
        return FilesDataset(selection, [self._part(name, selection) for name in selection.domains], self.on_bad_sample)

    def look(self, selection: DataSelection) -> tuple[int, tuple[str, ...]]:
        """Counts the files on disk."""
        parts = [self._part(name, selection) for name in selection.domains]
        return sum(len(part.items) for part in parts), parts[0].place.record.classes

    def faults(self) -> list[str]:
        """Locations of unknown data sets."""
        strange = [name for name in self.roots if name not in DATASETS]
        allowed = ", ".join(sorted(DATASETS))
        return [f"roots: unknown data set '{name}': {nearest(name, DATASETS)}allowed: {allowed}" for name in strange]

    def problems(self, selection: DataSelection, *, labelled: bool, objects: bool = False) -> list[str]:
        """Unknown and missing data sets, splits and labels, images that are requested but missing.

        ``objects``: domains without objects are problems too.
        """
        if objects and (lines := self.object_problems(selection)):
            return lines
        lines = []
        for name in selection.domains:
            try:
                where = self._place(name)
                if early := where.problems(selection.split, labelled=labelled):
                    lines += early
                    continue
                part = self._part(name, selection)
            except (UserError, OSError) as error:
                lines.append(str(error))
                continue
            if labelled and part.read_label is None:
                lines.append(f"domain '{name}' has images but no labels at {part.found.store}; {where.missing()}")
        return lines or self._several(selection)

    def doubts(self, selection: DataSelection, *, labelled: bool) -> list[str]:
        """Findings in a few images of each domain; `data check` reads all."""
        lines = []
        for name in selection.domains:
            known = name, selection.model_dump_json(), labelled
            if known not in self._doubts:
                self._doubts[known] = self._look(self._part(name, selection), selection.split, labelled)
            lines += self._doubts[known]
        return lines

    def listing(self, selection: DataSelection) -> Iterator[str]:
        """``domain/path`` of every image."""
        return _listing(self._part(name, selection) for name in selection.domains)

    def files(self, selection: DataSelection) -> Iterator[ImageFile]:
        """Those of the folders and archives of its domains."""
        for name in selection.domains:
            part = self._part(name, selection)
            where = os.path.realpath(part.found.store.where)
            for item in part.items:
                yield ImageFile(name, os.path.normpath(f"{where}/{item.image}"), item.image, part.found.store)

    def has_objects(self, domain: str) -> bool:
        """From the data set's record; unknown data sets are reported by problems()."""
        record = self._record(domain)
        return record is None or record.objects

    def has_pixels(self, domain: str) -> bool:
        """From the data set's record; unknown data sets are reported by problems()."""
        record = self._record(domain)
        return record is None or record.pixels

    def object_problems(self, selection: DataSelection) -> list[str]:
        """Of domains with labels; problems() reports the others."""
        records = {name: self._record(name) for name in selection.domains}
        named = tuple(name for name, record in records.items() if record is not None and record.classes)
        return super().object_problems(selection.model_copy(update={"domains": named}))

    def with_objects(self) -> tuple[str, ...]:
        """The catalog's data sets with objects and the user's own."""
        return (*(name for name in (*DATASETS, *self.sets) if self._record(name) and self.has_objects(name)),)

    def evaluation_split(self, domain: str) -> Split:
        """The split on which scores are reported according to the record; by default ``val``."""
        record = self._record(domain)
        return "val" if record is None else record.evaluation or "val"

    def splits_apart(self, domain: str) -> bool:
        """From the catalog's record; False for the user's own data sets."""
        record = None if domain in self.sets else self._record(domain)
        return record is not None and record.splits_apart

    def licence(self, domain: str) -> str:
        """From the data set's record."""
        record = self._record(domain)
        return super().licence(domain) if record is None else record.licence

    def protocol(self, domain: str) -> Protocol:
        """From the data set's record; the files need not exist."""
        record = self._record(domain)
        return self._place(domain).record.protocol if record is None else record.protocol

    def facts(self, *selections: DataSelection) -> dict[str, Any]:
        """The settings without paths, and the images and classes of each selection."""
        facts = self.model_dump(mode="json", exclude={"root", "roots", "sets"}, exclude_defaults=True)
        return facts | {"selections": [[self._described(name, each) for name in each.domains] for each in selections]}

    def _several(self, selection: DataSelection) -> list[str]:
        """Conflicts between the domains of one selection."""
        lines = []
        if selection.list is not None and len(selection.domains) > 1:
            lines.append("a list names the images of one domain; give each domain a selection of its own")
        classes = {name: self._place(name).record.classes for name in selection.domains}
        labelled = {name: names for name, names in classes.items() if names}
        if len(set(labelled.values())) > 1:
            counts = ", ".join(f"{name} ({len(names)} classes)" for name, names in labelled.items())
            lines.append(f"domains of different label spaces cannot be read together: {counts}")
        return lines

    def _record(self, name: str) -> DatasetRecord | None:
        """The record of a data set, whose files need not exist; None: unknown, which problems() reports."""
        if name not in self.sets:
            return DATASETS.get(name.partition(":")[0])
        try:
            return self._place(name).record
        except UserError:
            return None

    def _place(self, name: str) -> Place:
        if name not in self._places:
            own = self.sets.get(name)
            self._places[name] = own_place(name, own) if own else place(name, self.root, self.roots, self.sets)
        return self._places[name]

    def _found(self, name: str, split: Split) -> Found:
        if (name, split) not in self._founds:
            self._founds[name, split] = find(self._place(name), split)
        return self._founds[name, split]

    def _part(self, name: str, selection: DataSelection) -> Part:
        where = self._place(name)
        if problems := where.problems(selection.split, labelled=False):
            raise UserError("; ".join(problems))
        found = self._found(name, selection.split)
        whole = _whole(name, found, skip=self.on_bad_sample == "skip" and selection.split == "train")
        items = _selected(name, whole, selection)
        encoding = found.layout.encoding
        labelled = encoding is not None and items[0].label is not None
        return Part(where, found, items, reader_of(encoding) if labelled and encoding is not None else None)

    def _look(self, part: Part, split: Split, labelled: bool) -> list[str]:
        reader = part.read_label if labelled else None
        evidence = look(part.found, part.items, reader)
        return doubts(part.place, split, part.found, evidence, labelled=reader is not None)

    def _described(self, name: str, selection: DataSelection) -> dict[str, Any]:
        part = self._part(name, selection)
        encoding = part.read_label.encoding if part.read_label else None
        return (
            {
                "domain": name,
                "count": len(part.items),
                "images": _digest(item.key for item in part.items),
                "labels": encoding and _digest([*encoding.ids.items(), *encoding.colors.items(), encoding.channel]),
                "classes": part.place.record.classes,
            }
            | ({} if encoding is None or encoding.objects is None else {"objects": _numbering(encoding.objects)})
            | ({} if encoding is None or not encoding.names else {"names": list(encoding.names.items())})
            | ({} if encoding is None or encoding.names or not encoding.boxes else {"boxes": True})
        )


class FilesDataset(Dataset):
    """Images of several data sets, each sorted by name and decoded on access.

    With ``on_bad_sample: skip``, unreadable images of the split train are replaced by the next readable one in a seeded
    order; the log reports them. In other splits, which are scored, they are errors.
    """

    def __init__(self, selection: DataSelection, parts: list[Part], on_bad_sample: Literal["error", "skip"]) -> None:
        self._parts, self.weights = parts, selection.weights
        self._skips = on_bad_sample == "skip" and selection.split == "train"
        self.sizes = tuple(len(part.items) for part in parts)
        record = next((part.place.record for part in parts if part.place.record.classes), parts[0].place.record)
        self.names = record.classes
        self.colors = np.asarray(record.colors, np.uint8).reshape(-1, 3)
        self.objects = all(part.found.layout.objects for part in parts if part.read_label is not None) and any(
            part.place.record.objects for part in parts
        )
        self.skipped: set[str] = set()

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        part, index = self._place(index)
        try:
            return _read(part, part.items[index])
        except BadSample as error:
            if not self._skips:
                raise
            return self._instead(part, index, error)

    def encoded(self, index: int) -> Encoded:
        """See :meth:`Dataset.encoded`; an upright RGB JPEG file is not decoded."""
        part, own = self._place(index)
        path = part.items[own].image
        try:
            content = part.found.store.read(path)
        except BadSample:
            return super().encoded(index)
        if (size := plain_jpeg(content)) is None:
            return super().encoded(index)
        return Encoded(np.frombuffer(bytearray(content), np.uint8), size)

    def _place(self, index: int) -> tuple[Part, int]:
        """The domain of an image and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = 0
        while index >= self.sizes[which]:
            index -= self.sizes[which]
            which += 1
        return self._parts[which], index

    def listing(self) -> Iterator[str]:
        """``domain/path`` of every image."""
        return _listing(self._parts)

    def protocol(self, domain: str) -> Protocol:
        """From the data set's record."""
        return next(part.place.record.protocol for part in self._parts if part.place.name == domain)

    def _instead(self, part: Part, index: int, error: BadSample) -> Sample:
        """The next readable image after ``index`` in a seeded order of the domain's images."""
        count = len(part.items)
        order = torch.randperm(count, generator=generator("instead", part.place.name)).tolist()
        start = order.index(index)
        for step in range(1, count):
            item = part.items[order[(start + step) % count]]
            try:
                sample = _read(part, item)
            except BadSample:
                continue
            if str(error) not in self.skipped:
                self.skipped.add(str(error))
                log.warning("skipped (%d so far): %s; replaced by %s", len(self.skipped), error, item.image)
            return sample
        raise UserError(f"no image of {part.place.name} can be read; the first error: {error}")


def _read(part: Part, item: Item) -> Sample:
    pair = read_pair(part.found.store, item, part.read_label, upright=part.found.layout.upright)
    return Sample(pair.image, pair.label, part.place.name, item.image, pair.objects)


def _whole(name: str, found: Found, *, skip: bool) -> list[Item]:
    """All images, or those with a label if any image has one."""
    lone = found.lone_images
    incomplete = len(found.missing) + (len(lone) if len(lone) < len(found.items) else 0)
    if incomplete and not skip:
        example = (found.missing or lone)[0]
        raise UserError(
            f"{name}: {incomplete} images at {found.store} are missing or lack a label, such as {example}; "
            "`segdistill data check` lists them, on_bad_sample: skip leaves them out of training"
        )
    if incomplete:
        log.warning("%s: %d images are missing or lack a label and are left out", name, incomplete)
    if len(lone) == len(found.items):
        return found.items
    return [item for item in found.items if item.label is not None]


def _selected(name: str, items: list[Item], selection: DataSelection) -> list[Item]:
    if selection.list is not None:
        items = _listed(name, items, selection, selection.list)
    last = len(items) if selection.images is None else selection.first + selection.images
    if last > len(items) or selection.first >= len(items):
        raise UserError(
            f"{name}: images {selection.first} to {last} of split '{selection.split}' are requested, and it has "
            f"{len(items)}; choose fewer, or images: null for all"
        )
    items = items[selection.first : last]
    rows = chosen_rows(selection, name, len(items))
    if not rows:
        raise UserError(
            f"{name}: fraction {selection.fraction} of {len(items)} images leaves none for rest; take a smaller one"
        )
    return [items[row] for row in rows]


def _listed(name: str, items: list[Item], selection: DataSelection, path: Path) -> list[Item]:
    """The images in the list or, if ``rest`` refers to it, the others."""
    chosen = listed_items(items, path)
    if not selection.rest or selection.fraction is not None:
        return chosen
    named = {item.key for item in chosen}
    others = [item for item in items if item.key not in named]
    if not others:
        raise UserError(f"{name}: {path} names all {len(items)} images and leaves none for rest")
    return others


def _listing(parts: Iterable[Part]) -> Iterator[str]:
    return (f"{part.place.name}/{item.image}" for part in parts for item in part.items)


def _numbering(numbers: ObjectNumbers) -> list[object]:
    return [numbers.divisor, numbers.channel, numbers.crowds, sorted(numbers.stuff)]


def _digest(values: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(repr, values)).encode()).hexdigest()
