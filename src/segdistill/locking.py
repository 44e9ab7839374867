"""One writer per folder: a lock that the operating system releases when its process ends, however it ends.

Record locks (``lockf``) belong to a single process: a forked worker that outlives its killed parent for some seconds
does not hold them. They also work over NFS.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from segdistill.config import UserError
from segdistill.files import sweep

NAME = ".lock"
_held: set[Path] = set()  # by this process; record locks do not exclude their own process


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock ``folder``, creating it if missing, as its only writer; remove leftovers of killed writers.

    Raises a :class:`UserError` that names the holder if it is already locked.
    """
    place = folder.resolve()
    if place in _held:
        raise UserError(f"{folder} is already being written by this process; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _taken(folder)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None
    _held.add(place)
    try:
        _clean(folder)
        yield
    finally:
        _held.discard(place)
        with suppress(OSError):
            (folder / NAME).unlink(missing_ok=True)
        file.close()


def _taken(folder: Path) -> IO[str]:
    """The lock file, open and locked, with a description of this process."""
    path = folder / NAME
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = _holder(file)
            file.close()
            raise UserError(
                f"{folder} is being written by {holder}; wait for it, stop it, or choose another --out"
            ) from None
        except OSError as error:
            logging.getLogger(__name__).warning(
                "warning: %s is on a file system without locks (%s): make sure that no second run writes there",
                folder,
                error.strerror,
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # the previous holder has just removed it
    who = {"host": platform.node(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
    file.seek(0)
    file.truncate()
    file.write(json.dumps(who | {"command": " ".join(["segdistill", *sys.argv[1:]])}) + "\n")
    file.flush()
    return file


def _holder(file: IO[str]) -> str:
    try:
        who = json.loads(file.read())
        return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
    except (ValueError, KeyError, TypeError):  # the holder is writing this line right now
        return "another process"


def _clean(folder: Path) -> None:
    """Remove temporary files and partly copied stages of killed runs."""
    for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sweep(place)
    for path in (folder / "stages").glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
