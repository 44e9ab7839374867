"""Finds the images of a data set on disk and pairs them with labels. Reads only names. Imports no torch."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from segdistill.config import UserError, nearest
from segdistill.data.archives import (
    ABOVE,
    BadSample,
    Folder,
    Store,
    is_archive,
    is_text,
    open_archives,
    open_store,
    read_file,
)  # fmt: skip
from segdistill.data.catalog import DATASETS, DatasetRecord, Files, Layout
from segdistill.data.catalog.record import FIELDS, UNPAIRED
from segdistill.data.coco import CocoStore
from segdistill.data.dataset import Split

ROOT = "SEGDISTILL_DATA"
UNREAD = (
    "jfif", "jpe", "gif", "apng", "jp2", "j2k", "jxl", "avif", "heic", "heif", "ppm", "pgm", "pnm", "tga", "dng", "exr",
    "hdr", "npy", "svg", "psd", "raw", "cr2", "nef", "arw",
)  # fmt: skip
"""Suffixes of pictures that are not read; files with these are reported."""

ANNOTATION = re.compile(r"_gtFine_\w+(\.\w+)?$")
"""End of the names of Cityscapes' annotations, by which published lists name images whatever labels are read."""

Key = tuple[tuple[str, str], ...]


class Absent(UserError):
    """A split has no images; other faults are plain :class:`UserError`."""


@dataclass(frozen=True)
class Item:
    """One image and its label, as names in a store."""

    image: str
    label: str | None
    key: Key

    def called(self) -> set[str]:
        """Names that refer to this image in a list file: the ends of its path and its label's, and its stem in the
        template.
        """
        paths = [PurePosixPath(name).parts for name in (self.image, self.label) if name]
        ends = ["/".join(parts[start:]) for parts in paths for start in range(len(parts))]
        fields = [value for name, value in self.key if name in ("stem", "path", "number")]
        return {*ends, *(end.rpartition(".")[0] for end in ends), *fields}


@dataclass(frozen=True)
class Found:
    """The files of one split. ``items`` are the images in order, with labels if there are any."""

    store: Store
    layout: Layout
    items: list[Item]
    lone_labels: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # names in the split's list that are not in the folder
    skipped: list[str] = field(default_factory=list)  # pictures with a suffix that is not read

    @property
    def lone_images(self) -> list[str]:
        """Images without a label."""
        return [item.image for item in self.items if item.label is None]


@dataclass(frozen=True)
class Place:
    """A data set, or one of its subsets, and its location. ``name`` is its name in recipes."""

    name: str
    record: DatasetRecord
    where: Path  # a folder or an archive; it need not exist
    subset: str | None = None
    store: Store | None = None  # its store, if that is not the folder or archive itself
    own: bool = False  # the user's, not the catalog's

    def problems(self, split: Split, *, labelled: bool) -> list[str]:
        """Reasons why ``split`` cannot be read, as far as known without listing files."""
        splits = {name: files for layout in self.record.layouts for name, files in layout.splits.items()}
        if not self.where.exists():
            return [self.missing()]
        if split not in splits:
            return [f"{self.name} has no split '{split}'; it has {', '.join(splits)}"]
        if labelled and not self.record.classes:
            return [f"domain '{self.name}' has no labels; take it out of 'domains'"]
        if labelled and all(layout.splits[split].labels is None for layout in self.record.layouts):
            better = self.record.evaluation or "train"
            return [f"the labels of {self.name}'s split '{split}' are not public; use split: {better}"]
        return []

    def missing(self) -> str:
        """One line with the expected files, the searched location, the download page and the licence."""
        record = self.record
        expected = "; or ".join(dict.fromkeys(_expected(layout) for layout in (*record.layouts, *record.raw)))
        note = f" ({record.note})" if record.note else ""
        return (
            f"no {record.title} at {self.where}; expected there: {expected}; get it from {record.source}, "
            f"licence: {record.licence}{note}"
        )


def place(name: str, root: Path | None, roots: Mapping[str, Path], own: Iterable[str] = ()) -> Place:
    """The data set called ``name`` in recipes: ``cityscapes`` or ``acdc:night``. ``own`` are the user's names.

    Its location is that in ``roots``, else its folder in ``root``, else its folder in ``SEGDISTILL_DATA``.
    """
    base, colon, subset = name.partition(":")
    if base not in DATASETS:
        allowed = sorted({*DATASETS, *own})
        raise UserError(f"unknown data set '{name}': {nearest(name, allowed)}allowed: {', '.join(allowed)}")
    record = DATASETS[base]
    if colon and subset not in record.subsets:
        allowed = ", ".join(f"{base}:{known}" for known in record.subsets) or base
        raise UserError(f"unknown data set '{name}': {nearest(subset, record.subsets)}allowed: {allowed}")
    if base in roots:
        return Place(name, record, roots[base], subset or None)
    top = root or (Path(os.environ[ROOT]) if os.environ.get(ROOT) else None)
    if top is None:
        raise UserError(
            f"the location of {name} is not set: set data.root or {ROOT} to the folder that holds {record.folders[0]}/"
        )
    if is_archive(top):
        return Place(name, record, top, subset or None)
    folders = [top / folder for folder in record.folders]
    found = next((folder for folder in folders if folder.exists()), folders[0])
    return Place(name, record, found, subset or None)


def find(where: Place, split: Split) -> Found:
    """The images of ``split``, from the layout with the fewest unlabelled images.

    Unpacked files take precedence over archives in the same folder. Without any image a :class:`UserError` says what
    was expected.
    """
    if not where.where.exists():
        raise Absent(where.missing())
    best: Found | None = None
    for store, layout in _candidates(where):
        files = layout.splits.get(split)
        if split in layout.annotations and not store.describes(split):
            continue
        found = None if files is None else _match(store, layout, files, where, split)
        listed = where.store is not None and found is not None and found.missing
        if found is None or not (found.items or listed):
            continue
        if not found.lone_images or layout.encoding is None:
            return found
        if best is None or len(found.lone_images) < len(best.lone_images):
            best = found
    if best is None:
        raise Absent(f"split '{split}': {where.missing()}")
    return best


def listed_items(items: Sequence[Item], path: Path) -> list[Item]:
    """The items that the list file ``path`` names, one per line by stem or by path, in the order of ``items``."""
    try:
        wanted = _names(read_file(path).decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the list {path}: {error}") from None
    chosen, unknown = _choose(items, wanted)
    if unknown:
        raise UserError(f"{path}: {len(unknown)} of {len(wanted)} lines match no image, such as '{unknown[0]}'")
    if not chosen:
        raise UserError(f"the list {path} is empty; write one image per line")
    return chosen


def pattern(template: str, subset: str | None, subsets: Sequence[str] = (), *, packed: bool = False) -> re.Pattern[str]:
    """The regular expression of a record's template; archives may have folders above."""
    parts = re.split(r"\{(\w+)\}", template)
    text = ""
    for number, part in enumerate(parts):
        if number % 2 == 0:
            text += re.escape(part)
        elif part == "subset":
            text += f"(?P<subset>{'|'.join(map(re.escape, [subset] if subset else subsets))})"
        else:
            text += f"(?P<{part}>{FIELDS.get(part, '[^/]+')})"
    return re.compile((ABOVE if packed else "") + text, re.DOTALL)


def _candidates(where: Place) -> list[tuple[Store, Layout]]:
    """Stores to search and layouts to search for, the most likely first."""
    store = where.store or open_store(where.where)
    pairs = [(_read_by(store, where.record, layout), layout) for layout in where.record.layouts]
    if isinstance(store, Folder):
        opened: dict[tuple[str, ...], Store | None] = {}
        for layout in where.record.layouts:
            if layout.archives not in opened:
                opened[layout.archives] = open_archives(where.where, layout.archives)
            packed = opened[layout.archives]
            pairs += [(_read_by(packed, where.record, layout), layout)] if packed is not None else []
    return pairs


def _read_by(store: Store, record: DatasetRecord, layout: Layout) -> Store:
    """``store``, or one that reads its labels from COCO's annotation files if ``layout`` has them."""
    if not layout.annotations:
        return store
    images = {split: files.images.partition("/{")[0] for split, files in layout.splits.items()}
    return CocoStore(store, images, layout.annotations, record.classes, None)


def _match(store: Store, layout: Layout, files: Files, where: Place, split: Split) -> Found:
    images = _matched(store, files.images, where)
    missing: list[str] = []
    own = store.listed(split)
    if own is not None:
        mine = set(own[0])
        images = {key: name for key, name in images.items() if name in mine}
        unread = sorted(mine - set(images.values()))
        missing = [*own[1], *(f"{name} (images with this suffix are not read)" for name in unread)]
    labels = _matched(store, files.labels, where) if files.labels else {}
    drawn = {_composed(key): name for key, name in labels.items()}
    items = [Item(name, drawn.get(_composed(key)), key) for key, name in images.items()]
    skipped = _skipped(store, files.images, where) if where.own else []
    if files.listed is not None:
        items, missing = _official_list(store, files.listed, items)
        labels = {}  # the images of other splits are in the same folder
    if files.members:
        items = [item for item in items if dict(item.key).get("tile") in files.members]
        labels = {key: name for key, name in labels.items() if dict(key).get("tile") in files.members}
    paired = {_composed(key) for key in images}
    lone = sorted(name for key, name in labels.items() if _composed(key) not in paired)
    return Found(store, layout, sorted(items, key=lambda item: item.image), lone, missing, skipped)


def _matched(store: Store, template: str, where: Place) -> dict[Key, str]:
    """Fields -> name for every file that matches the template."""
    expression = pattern(template, where.subset, where.record.subsets, packed=store.packed)
    top = template.partition("{")[0].rpartition("/")[0]
    found: dict[Key, str] = {}
    for name in store.names(top):
        match = expression.fullmatch(name)
        if match is None:
            continue
        if not is_text(name):
            raise UserError(f"{store}: the name {name!r} is not UTF-8 or has control characters; rename the file")
        key = tuple(sorted((name, text) for name, text in match.groupdict().items() if name not in UNPAIRED))
        if key in found:
            raise UserError(f"{store}: {found[key]} and {name} are the same image of {where.name}; keep one of them")
        found[key] = name
    return found


def _composed(key: Key) -> Key:
    """The fields in Unicode's composed form (NFC): some systems store an umlaut as two characters."""
    return tuple((name, unicodedata.normalize("NFC", text)) for name, text in key)


def _skipped(store: Store, template: str, where: Place) -> list[str]:
    """Pictures that would match ``template`` if their suffix were supported."""
    expression = pattern(template.replace("{ext}", "{other}"), where.subset, where.record.subsets, packed=store.packed)
    top = template.partition("{")[0].rpartition("/")[0]
    matches = (expression.fullmatch(name) for name in store.names(top))
    return [match[0] for match in matches if match and match.groupdict().get("other", "").lower() in UNREAD]


def _official_list(store: Store, listed: str, items: list[Item]) -> tuple[list[Item], list[str]]:
    """The items that the data set's own list names, and the names without an item."""
    names = [name for name in store.names(str(PurePosixPath(listed).parent)) if f"/{name}".endswith(f"/{listed}")]
    if not names:
        return [], []
    try:
        text = store.read(names[0]).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSample(f"{names[0]} in {store}: is not text") from None
    return _choose(items, _names(text))


def _names(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _choose(items: Sequence[Item], wanted: Sequence[str]) -> tuple[list[Item], list[str]]:
    """The items that the lines ``wanted`` name, in the order of ``items``, and the lines that match none.

    Lines may have more columns. A whole path names its image alone, even if another image's path ends with it.
    """
    whole = {item.image: {number} for number, item in enumerate(items)}
    by_name: dict[str, set[int]] = {}
    for number, item in enumerate(items):
        for name in item.called():
            by_name.setdefault(name, set()).add(number)
    chosen: set[int] = set()
    unknown = []
    for line in wanted:
        first = line.split()[0]
        found = (
            whole.get(line)
            or by_name.get(line)
            or whole.get(first)
            or by_name.get(first)
            or by_name.get(ANNOTATION.sub("", first))
        )
        if found is None:
            unknown.append(line)
        elif len(found) > 1:
            raise UserError(f"'{line}' matches {len(found)} images, such as {items[min(found)].image}; give its path")
        else:
            chosen |= found
    return [items[number] for number in sorted(chosen)], unknown


def _expected(layout: Layout) -> str:
    """A layout in a few words: the templates of its first split."""
    split, files = next(iter(layout.splits.items()))
    labels = layout.annotations.get(split, files.labels)
    text = files.images + (f" + {labels}" if labels else "")
    return text + (f" (or {', '.join(layout.archives[:2])})" if layout.archives else "")
