"""A small instance of each data set in the form in which it is shipped, made from the procedural world.

With it every reader, check and conversion can be tried, and a recipe rehearsed, before a licence is signed.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from segdistill.config import UserError, choose
from segdistill.data import aerial
from segdistill.data.sample import driving, others, own
from segdistill.data.sample.scenes import Codec, Member, Scenes
from segdistill.files import write_atomic, write_json

__all__ = ["SAMPLES", "Kind", "Layout", "write_sample"]

MARK = ".segdistill-sample.json"
SIZE = (128, 256)


@dataclass(frozen=True)
class Archive:
    """An official archive: which members it holds, and the folder that it puts around them."""

    name: str
    holds: str = ""  # prefix of the members' paths
    around: str = ""


@dataclass(frozen=True)
class Layout:
    """One form of a data set: the function that yields its files, and the archives that hold them officially."""

    members: Callable[[Scenes, Codec], Iterator[Member]]
    archives: tuple[Archive, ...] = ()
    under: str = ""  # folders between the data set's own and its files


@dataclass(frozen=True)
class Kind:
    """A data set: its folder, its layouts (the first is the default), the record whose label encoding it has."""

    folder: str
    layouts: Mapping[str, Layout] = field(hash=False)
    record: str | None = None
    size: tuple[int, int] = SIZE
    varied: bool = False


def write_sample(
    name: str,
    out: Path,
    *,
    layout: str | None = None,
    images: int = 2,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    zipped: bool = False,
) -> tuple[Path, int]:
    """Write ``images`` images per split of data set ``name`` into its folder below ``out``: (folder, number of files).

    The same arguments write the same bytes. A folder that holds anything else is refused.
    """
    kind = choose("sample", name, SAMPLES)
    layout = layout or next(iter(kind.layouts))
    form = choose(f"layout of {name}", layout, kind.layouts)
    if zipped and not form.archives:
        with_archives = [f"{n} ({k})" for n, one in SAMPLES.items() for k, f in one.layouts.items() if f.archives]
        raise UserError(f"layout {layout} of {name} has no archives; leave --zip out or take {', '.join(with_archives)}")
    scenes = Scenes(images, size or kind.size, seed, kind.varied)
    folder = out / kind.folder
    facts = {"sample": name, "layout": layout, "images": images, "size": list(scenes.size), "seed": seed, "zip": zipped}
    _claim(folder, facts)
    members = partial(form.members, scenes, Codec.of(kind.record))
    if not zipped:
        return folder, _write_files(folder / form.under, members())
    for archive in form.archives:
        write_atomic(folder / archive.name, partial(_write_archive, archive, form.archives, members()))
    return folder, len(form.archives)


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Mark ``folder`` as a sample with these ``facts``; refuse one that is anything else."""
    mark = folder / MARK
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --out")
    if not mark.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty and no sample of ours; choose another --out")
        write_json(mark, facts)
    elif json.loads(mark.read_text(encoding="utf-8")) != facts:
        raise UserError(f"{folder} holds a sample with other settings; delete it or choose another --out")


def _write_files(folder: Path, members: Iterable[Member]) -> int:
    count = 0
    for count, (path, data) in enumerate(members, start=1):  # noqa: B007
        write_atomic(folder / path, lambda file, data=data: file.write(data))
    return count


def _write_archive(archive: Archive, archives: tuple[Archive, ...], members: Iterable[Member], file: IO[bytes]) -> None:
    """The members that belong to ``archive``: whose path starts with its prefix, the first in ``archives`` that fits."""
    with zipfile.ZipFile(file, "w") as target:
        for path, data in members:
            if next(one for one in archives if path.startswith(one.holds)) is archive:
                target.writestr(zipfile.ZipInfo(archive.around + path), data)  # dated 1980: the same bytes every time
