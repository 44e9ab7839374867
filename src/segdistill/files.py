"""Atomic files: written to a temporary name, flushed and renamed. Imports no torch.

Files that are read back carry a digest: binary files end with the SHA-256 of their content (:func:`write_sealed`), JSON
objects and texts contain it (:func:`write_signed`, :func:`sealed_text`), and lines have a checksum.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from segdistill.config import UserError

MARK = b"\nsha256 "
SEAL = len(MARK) + 64 + 1  # bytes: the mark, the digest in hexadecimal, a newline
TEXT_MARK = "# sha256 of the lines above: "
DIGEST = "digest"  # the key of a JSON object's own digest
SETTLED = 2.0  # seconds without a change after which a file's times tell its versions apart
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk and rename it into place.

    A crash or a full disk leaves the old file unchanged and no temporary file; those of killed processes are removed by
    :func:`sweep`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """:func:`write_atomic` of ``content``."""
    write_atomic(path, lambda file: file.write(content))


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, locked while its writer lives."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with suppress(OSError):  # a file system without locks, where nothing is swept either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():
            return handle, Path(name)
        os.close(handle)  # swept before it was locked


def sweep(folder: Path) -> list[Path]:
    """Remove temporary files of killed writers from ``folder``: those that no living process has locked."""
    removed = []
    for path in sorted(folder.glob(".*.tmp")) if folder.is_dir() else []:
        if not TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        with suppress(OSError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


class _Hashing:
    """A write-only file with the digest of its content."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_sealed(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """:func:`write_atomic`, with the digest of the content behind it (zip and npy readers pass over what follows)."""

    def both(file: IO[bytes]) -> None:
        hashing: Any = _Hashing(file)
        write(hashing)
        file.write(MARK + hashing.digest.hexdigest().encode() + b"\n")

    write_atomic(path, both)


def is_whole(path: Path) -> bool:
    """Whether a sealed file is unchanged since it was written."""
    digest, left = hashlib.sha256(), path.stat().st_size - SEAL
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            digest.update(chunk)
            left -= len(chunk)
        return left == 0 and file.read() == MARK + digest.hexdigest().encode() + b"\n"


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, written atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n"
    write_bytes(path, text.encode())


def write_signed(path: Path, value: dict[str, Any]) -> None:
    """A JSON object with its own digest."""
    write_json(path, value | {DIGEST: json_digest(value)})


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` of ``json.loads``: a duplicate key is a :class:`ValueError`, as in YAML."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return found


def json_digest(value: dict[str, Any]) -> str:
    """SHA-256 of the object as JSON without its own digest; the same before writing and after reading."""
    return facts_digest(json.loads(json.dumps({key: item for key, item in value.items() if key != DIGEST})))


def facts_digest(facts: Any, default: Callable[[Any], Any] | None = None) -> str:
    """SHA-256 of anything JSON can write, whatever the order of its keys; ``default`` writes what JSON cannot."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=default).encode()).hexdigest()


def read_signed(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``, None if it is damaged. Objects without a digest (older versions) are accepted."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # not JSON, or not text
        return None
    return value if isinstance(value, dict) and value.get(DIGEST) in (None, _digest_or_none(value)) else None


def _digest_or_none(value: dict[str, Any]) -> str | None:
    try:
        return json_digest(value)
    except (ValueError, RecursionError):
        return None


def sealed_text(text: str) -> str:
    """``text`` and a last line, a comment, with its digest."""
    return f"{text}{TEXT_MARK}{hashlib.sha256(text.encode()).hexdigest()}\n"


def text_is_whole(data: bytes) -> bool:
    """Whether a text is unchanged since it was sealed, or was never sealed."""
    before, mark, after = data.rpartition(TEXT_MARK.encode())
    return not mark or after.strip() == hashlib.sha256(before).hexdigest().encode()


def checked_line(entry: dict[str, Any]) -> str:
    """A record as a line of JSON with its own checksum."""
    return json.dumps(entry | {"crc": zlib.crc32(json.dumps(entry).encode())}) + "\n"


def read_checked_line(line: str | bytes, *, required: bool = True) -> dict[str, Any] | None:
    """The record in a line, None if it is damaged. Unless it is ``required``, the checksum may be missing."""
    try:
        entry = json.loads(line)
        crc = entry.pop("crc", None)
        sound = crc == zlib.crc32(json.dumps(entry).encode()) or (crc is None and not required)
        return entry if sound else None
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None


def read_metrics_line(line: str) -> dict[str, Any] | None:
    """The record in a line of ``metrics.jsonl``, None if it is damaged. Older versions wrote no checksum."""
    entry = read_checked_line(line, required=False)
    sound = entry is not None and isinstance(entry.get("stage"), str) and isinstance(entry.get("step"), int)
    return entry if sound else None


def damaged_file(folder: Path, digests: Mapping[str, str]) -> Path | None:
    """The first file of ``folder`` that is missing or does not have its SHA-256 in ``digests``, by name."""
    for name, digest in digests.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            return folder / name
    return None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


_digests: dict[tuple[int, int, int, int, int], str] = {}


def input_digest(path: Path) -> str:
    """SHA-256 of an input file; this process reads it once per version, told by its inode, size and times.

    For weights that many runs of a table name. What a run wrote is read every time (:func:`sha256`).
    """
    now = path.stat()
    if time.time() - max(now.st_mtime, now.st_ctime) < SETTLED:
        return sha256(path)
    version = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    if version not in _digests:
        _digests[version] = sha256(path)
    return _digests[version]


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of files, in this order."""
    return hashlib.sha256("".join(f"{path.name} {input_digest(path)}\n" for path in paths).encode()).hexdigest()


def plain_name(name: str) -> str:
    """``name``, if it is safe as part of a file name; else a :class:`UserError`."""
    if not name or name.startswith(".") or re.search(r"[/\\\x00-\x1f]", name) or len(name.encode()) > 200:
        raise UserError(f"{name[:80]!r} cannot be a file name: use letters, digits, '-', '_', ':' and '.'")
    return name
