"""Writes a split of a data set as tar shards in WebDataset's form, to be read by :mod:`segdistill.data.shards`."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import yaml
from PIL import Image

from segdistill.config import UserError, choose
from segdistill.data.catalog import DatasetRecord
from segdistill.data.dataset import Progress, Split
from segdistill.data.decode import UPRIGHT, open_picture
from segdistill.data.index import Found, Item, Place, find
from segdistill.data.labels import LabelReader, read_pair
from segdistill.data.object_labels import reader_of
from segdistill.data.own import load_own, named_place
from segdistill.data.shards import IMAGES
from segdistill.files import write_bytes, write_sealed

SPLITS: dict[str, Any] = {split: split for split in get_args(Split)}


def write_shards(
    name: str, out: Path, *, split: str, size: int, root: Path | None = None, progress: Progress | None = None
) -> tuple[int, int]:
    """Write ``out/SPLIT/00000.tar`` and so on with ``size`` images each, and ``out/dataset.yaml``.

    Image files are copied as they are; those that must be turned or have another suffix become PNG. Labels become PNG
    of class numbers, 255 = ignored. The same images give the same bytes; shards have a digest at their end. A second
    split may go into the same folder. Returns the numbers of shards and images.
    """
    part: Split = choose("split", split, SPLITS)
    where = named_place(name, root)
    found = find(where, part)
    if found.layout.objects:
        raise UserError(f"{name} has objects; shards hold images and class maps")
    if list((out / split).glob("*.tar")):
        raise UserError(f"{out / split} has shards already; choose another --out or delete them")
    reader = _reader(where, found)
    description = _description(out, where.record, split, labelled=reader is not None)
    keys = _keys(found.items)
    starts = range(0, len(found.items), size)
    for number, start in enumerate(starts):
        rows = slice(start, start + size)

        def fill(file: Any, rows: slice = rows) -> None:
            with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for key, item in zip(keys[rows], found.items[rows], strict=True):
                    for member, content in _members(found, item, reader):
                        info = tarfile.TarInfo(f"{key}.{member}")
                        info.size = len(content)
                        tar.addfile(info, BytesIO(content))

        write_sealed(out / split / f"{number:05d}.tar", fill)
        if progress is not None:
            progress(f"shards of {name}", min(start + size, len(found.items)), len(found.items))
    write_bytes(out / "dataset.yaml", description.encode())  # last: the split is complete
    return len(starts), len(found.items)


def _reader(where: Place, found: Found) -> LabelReader | None:
    """The reader of the labels, None if no image has one; an error if only some have."""
    lone = len(found.lone_images)
    if 0 < lone < len(found.items):
        raise UserError(f"{where.name}: {lone} images lack a label, such as {found.lone_images[0]}; complete them")
    return None if lone or found.layout.encoding is None else reader_of(found.layout.encoding)


def _keys(items: Sequence[Item]) -> list[str]:
    """Names without dots, by which WebDataset groups files; sorted as the images are."""
    keys = []
    for item in items:
        path = PurePosixPath(dict(item.key).get("path") or item.image.rpartition(".")[0])
        keys.append(str(path.with_name(path.name.replace(".", "_"))))
    if twice := next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None:
        raise UserError(f"two images are called '{twice}' without suffix and dots; rename one")
    return keys


def _members(found: Found, item: Item, reader: LabelReader | None) -> list[tuple[str, bytes]]:
    """Extension and content of the image and its label."""
    content, suffix = found.store.read(item.image), item.image.rpartition(".")[2].lower()
    picture = open_picture(content, f"{found.store}: {item.image}")
    pair = None if reader is None else read_pair(found.store, item, reader, upright=found.layout.upright)
    if suffix not in IMAGES or picture.orientation != UPRIGHT:
        whole = pair or read_pair(found.store, item, None, upright=found.layout.upright)
        content, suffix = _png(whole.image), "png"
    if pair is None or pair.label is None:
        return [(suffix, content)]
    return [(suffix, content), ("label.png", _png(pair.label))]


def _png(pixels: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _description(out: Path, record: DatasetRecord, split: str, *, labelled: bool) -> str:
    """The text of a new ``dataset.yaml``, or of the one that is there with the split added."""
    path, splits = out / "dataset.yaml", {split: split}
    values: dict[str, Any] = {"title": record.title, "layout": "webdataset", "licence": record.licence}
    if labelled:
        values |= {"classes": list(record.classes), "colors": [list(color) for color in record.colors]}
    if path.is_file():
        old = load_own(path)
        classes = tuple(values.get("classes", ()))
        if old.layout != "webdataset" or old.classes != classes:
            raise UserError(f"{path} describes other data; choose another --out")
        splits = {**old.splits, split: split}
    return yaml.safe_dump(values | {"splits": splits}, sort_keys=False, allow_unicode=True)
