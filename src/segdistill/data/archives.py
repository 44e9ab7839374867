"""Stores of files: a folder, a zip, a tar, or several archives together. Nothing is unpacked.

Each process has its own handle: after a fork or in a new process the archive is opened again.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segdistill.config import UserError
from segdistill.objects import Objects

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
LARGEST = 1 << 30
"""Largest member that is read from an archive, in bytes; larger ones must be unpacked first."""

DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    struct.error,
    ValueError,  # also: a name that is not text, a negative offset
    OverflowError,
    NotImplementedError,
)


_UNWRITABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # Python decodes bytes that are not UTF-8 as surrogates


ABOVE = "(?:[^/]+/){0,2}?"
"""Folders that an archive may have above a data set's own, as a regular expression."""


class BadSample(UserError):
    """One image or label that cannot be used; the message names the file and the fault."""


class Store:
    """Named files that are read whole. ``packed``: names may begin with extra folders of the archive."""

    packed = False

    def __init__(self, where: Path) -> None:
        self.where = where

    def names(self, under: str = "") -> list[str]:
        """The files in the folder ``under``, sorted, with slashes; without hidden files and ``__MACOSX``."""
        raise NotImplementedError

    def listed(self, split: str) -> tuple[list[str], list[str]] | None:
        """The images of ``split`` if a file lists them: existing names and missing names; else None."""
        return None

    def describes(self, split: str) -> bool:
        """Whether the annotation file of ``split`` is there; for stores that have annotation files."""
        raise NotImplementedError

    def objects(self, name: str) -> Objects | None:
        """The objects of the label ``name`` if the store keeps them itself; None: they are in the label's file."""
        return None

    def doubts(self, split: str) -> list[str]:
        """Usable but suspicious content, as far as it can be found without reading labels."""
        return []

    def damaged(self, split: str) -> list[str]:
        """One line for each file of ``split`` that is not as it was written; reads all of them."""
        return []

    def read(self, name: str) -> bytes:
        """The content of one file; :class:`BadSample` if it cannot be read."""
        raise NotImplementedError

    def start(self, name: str, count: int) -> bytes:
        """The first ``count`` bytes of it, or all if it is shorter."""
        return self.read(name)[:count]

    def size(self, name: str) -> int:
        """Its length in bytes, without reading it; :class:`BadSample` if it cannot be determined."""
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.where)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """The file of an image of ``domain``: ``name`` in ``store``.

    ``path`` does not depend on the path by which the store was opened.
    """

    domain: str
    path: str
    name: str
    store: Store

    @property
    def size(self) -> int | None:
        """Bytes; None if it cannot be read."""
        try:
            return self.store.size(self.name)
        except BadSample:
            return None

    def digest(self, *, start: bool = False) -> bytes | None:
        """Of its content, or of its first 64 KiB; None if it cannot be read."""
        try:
            content = self.store.start(self.name, 1 << 16) if start else self.store.read(self.name)
        except BadSample:
            return None
        return hashlib.blake2b(content, digest_size=16).digest()


class Folder(Store):
    """A folder on disk; links are followed."""

    def names(self, under: str = "") -> list[str]:
        """Walks only ``under``, so that other folders beside it cost nothing.

        ``under`` may be an absolute path or contain ``..``; names begin with it as written.
        """
        top = PurePosixPath(under)
        try:
            return sorted(str(top / name) for name in _walk(self.where / under) if _visible(name))
        except OSError as error:
            where = error.filename or self.where / under
            raise UserError(f"cannot list the folder {where}: {error.strerror or error}") from None

    def read(self, name: str) -> bytes:
        """Read the file."""
        return self.start(name, -1)

    def start(self, name: str, count: int) -> bytes:
        """Reads no more of the file."""
        try:
            return read_file(self.where / name, count)
        except OSError as error:
            raise BadSample(f"cannot read {self.where / name}: {error.strerror or error}") from None

    def size(self, name: str) -> int:
        """From the file system."""
        try:
            return (self.where / name).stat().st_size
        except OSError as error:
            raise BadSample(f"cannot read {self.where / name}: {error.strerror or error}") from None


class Packed(Store):
    """Base of zip and tar: an index, made once, and a handle per process."""

    packed = True

    def __init__(self, where: Path) -> None:
        self._handle: tuple[int, Any] | None = None
        super().__init__(where)
        try:
            self._index = {name: entry for name, entry in self._entries() if _visible(name)}
        except UserError:
            raise
        except DAMAGED as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"cannot read the archive {where}: {reason}; it is damaged or incomplete") from None
        self._names = sorted(self._index)

    def names(self, under: str = "") -> list[str]:
        """All files, since the archive may have extra folders above ``under``."""
        return self._names

    def read(self, name: str) -> bytes:
        """Read the member."""
        entry = self._index[name]
        if (size := self._size(entry)) > LARGEST:
            raise BadSample(f"{name} in {self.where}: {_too_large(size)}")
        try:
            return self._content(entry)
        except (*DAMAGED, OSError, RuntimeError) as error:  # also: encrypted, unknown method
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadSample(f"cannot read {name} in {self.where}: {reason}") from None

    def size(self, name: str) -> int:
        """From the archive's index."""
        return self._size(self._index[name])

    def handle(self) -> Any:
        """This process's open archive."""
        if self._handle is None or self._handle[0] != os.getpid():
            self._close()
            self._handle = (os.getpid(), self._open())
        return self._handle[1]

    def _close(self) -> None:
        """Close the handle; after a fork, this process's copy of it."""
        if self._handle is not None:
            self._handle[1].close()

    def __del__(self) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    def _open(self) -> Any:
        raise NotImplementedError

    def _entries(self) -> Iterator[tuple[str, Any]]:
        raise NotImplementedError

    def _size(self, entry: Any) -> int:
        """Unpacked size in bytes according to the archive; no more is ever unpacked."""
        raise NotImplementedError

    def _content(self, entry: Any) -> bytes:
        raise NotImplementedError


class Zip(Packed):
    """A zip file."""

    def _open(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.where)

    def _entries(self) -> Iterator[tuple[str, zipfile.ZipInfo]]:
        return ((entry.filename, entry) for entry in self.handle().infolist() if not entry.is_dir())

    def _size(self, entry: zipfile.ZipInfo) -> int:
        return entry.file_size

    def _content(self, entry: zipfile.ZipInfo) -> bytes:
        return self.handle().read(entry)


class Tar(Packed):
    """A tar file. A compressed one is read again from its start for each step back: unpack it for training."""

    def _open(self) -> tarfile.TarFile:
        return tarfile.open(self.where, "r:gz" if self.where.name.lower().endswith("gz") else "r:")

    def _entries(self) -> Iterator[tuple[str, tuple[int, int]]]:
        packed = self.where.name.lower().endswith("gz")
        places: dict[str, tuple[int, int]] = {}
        for entry in self.handle():
            if packed and entry.size > LARGEST:  # skipping it would unpack it
                raise UserError(f"{entry.name} in {self.where}: {_too_large(entry.size)}")
            name, place = entry.name.removeprefix("./"), (entry.offset_data, entry.size)
            if entry.islnk():  # the second name of an earlier member
                place = places.get(entry.linkname.removeprefix("./"))
            elif not entry.isfile() or entry.issparse():
                place = None
            if place is not None:
                places[name] = place
                yield name, place
        self.handle().fileobj.seek(self.handle().offset)
        if self.handle().fileobj.read(1) not in (b"", b"\0"):  # a damaged header looks like the end
            raise tarfile.ReadError("invalid data between its members")

    def _size(self, entry: tuple[int, int]) -> int:
        return entry[1]

    def _content(self, entry: tuple[int, int]) -> bytes:
        offset, size = entry
        file = self.handle().fileobj
        file.seek(offset)
        content = file.read(size)
        if len(content) != size:
            raise EOFError("the archive ends too early")
        return content


class Several(Store):
    """Several archives as one data set; duplicate names are read from the first archive."""

    packed = True

    def __init__(self, where: Path, stores: Sequence[Store]) -> None:
        super().__init__(where)
        self._home = {name: store for store in reversed(stores) for name in store.names()}

    def names(self, under: str = "") -> list[str]:
        """All files of all archives."""
        return sorted(self._home)

    def read(self, name: str) -> bytes:
        """Read it from its archive."""
        return self._home[name].read(name)

    def size(self, name: str) -> int:
        """From its archive's index."""
        return self._home[name].size(name)


def is_archive(path: Path) -> bool:
    """Whether the name is that of a supported archive."""
    return path.name.lower().endswith(SUFFIXES)


def open_store(path: Path) -> Store:
    """The folder or archive at ``path``, which must exist."""
    if path.is_dir():
        return Folder(path)
    if not is_archive(path):
        raise UserError(f"{path} is neither a folder nor a supported archive ({', '.join(SUFFIXES)})")
    if not path.is_file():
        raise UserError(f"{path} is {kind_of(path)}, where an archive is expected")
    return Zip(path) if path.name.lower().endswith(".zip") else Tar(path)


def open_archives(folder: Path, names: Sequence[str]) -> Store | None:
    """The archives ``names`` in ``folder`` as one store; None if there are none."""
    paths = [folder / name for name in names if (folder / name).is_file()]
    return Several(folder, [open_store(path) for path in paths]) if paths else None


def is_text(name: str) -> bool:
    """Whether a name is valid Unicode on one line."""
    return _UNWRITABLE.search(name) is None


def read_file(path: Path, count: int = -1) -> bytes:
    """The first ``count`` bytes of a regular file, all if negative; an :class:`OSError` for anything else, since a pipe
    would block.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, f"it is {kind_of(path)}, where a file is expected", str(path))
    with path.open("rb") as file:
        return file.read(count)


def kind_of(path: Path) -> str:
    """The kind of ``path``, in words."""
    mode = path.stat().st_mode
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "not a regular file")


def _too_large(size: int) -> str:
    return f"unpacks to {size / 2**30:.1f} GiB, and archive members may have at most {LARGEST >> 30} GiB; unpack it"


def _walk(folder: Path) -> Iterator[str]:
    """Paths of all files in ``folder``, relative to it; links that lead back up are followed once."""

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    if not folder.is_dir():
        return
    for above, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        status = Path(above).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if _visible(name)]
        base = PurePosixPath(Path(above).relative_to(folder))
        yield from (str(base / name) for name in files)


def _visible(name: str) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
