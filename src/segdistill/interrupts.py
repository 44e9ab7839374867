"""Ctrl-C and SIGTERM: the current step is finished, then the process and all that it started end.

Python's own handler raises wherever the main thread happens to be; here a training step is finished first
(:func:`postponed`). If the main thread hangs, for example in a collective operation whose other side is gone, a watcher
thread ends the process after ``GRACE`` seconds. A process that belongs to another one (a rank to torchrun, a table's
cell to its command) ends when that one is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 20.0  # seconds


class Stopped(BaseException):
    """A signal told this process to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def status(self) -> int:
        """The exit status by shell convention."""
        return 128 + self.number

    @property
    def line(self) -> str:
        """The message for the user."""
        return f"interrupted ({signal.Signals(self.number).name}); the same command continues where it stopped"


class _State:
    """State of this process: nesting of :func:`postponed`, and the signal to raise at its end."""

    depth = 0
    waiting: int | None = None
    asked: int | None = None  # the last signal, even if its exception was lost in a destructor
    process = 0


def _handler(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.process:  # a forked worker that has not set its own handlers yet
        os._exit(128 + number)
    _State.asked = number
    if _State.depth:
        _State.waiting = number
        return
    raise Stopped(number)


def asked() -> Stopped | None:
    """The signal that this process received while signals are handled, even if its exception was lost."""
    return None if _State.asked is None else Stopped(_State.asked)


def _quiet(unraisable: Any) -> None:
    """Print nothing for a :class:`Stopped` raised in a destructor: the next step raises it again."""
    if not isinstance(unraisable.exc_value, Stopped):
        sys.__unraisablehook__(unraisable)


@contextmanager
def postponed() -> Iterator[None]:
    """Postpone signals to the end of the block; one whose exception was lost before is raised at the start."""
    if not _State.depth and (stopped := asked()) is not None:
        raise stopped
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
    if _State.waiting is not None and not _State.depth:
        number, _State.waiting = _State.waiting, None
        raise Stopped(number)


@contextmanager
def handled(*, belongs: bool | None = None) -> Iterator[None]:
    """Signals raise :class:`Stopped` inside; only in the main thread of a process.

    ``belongs``: the end of the parent counts as SIGTERM; the default is True under torchrun.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.process, _State.waiting, _State.asked, _State.depth = os.getpid(), None, None, 0
    hook, before, woken = sys.unraisablehook, {number: signal.getsignal(number) for number in SIGNALS}, -1
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    try:
        sys.unraisablehook = _quiet
        woken = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(ours,), daemon=True).start()
        for number in SIGNALS:
            signal.signal(number, _handler)
        if "TORCHELASTIC_RUN_ID" in os.environ if belongs is None else belongs:
            threading.Thread(target=_follow, args=(os.getppid(), theirs), daemon=True).start()
        yield
    finally:
        _State.asked, sys.unraisablehook = None, hook
        signal.set_wakeup_fd(woken)
        for number, old in before.items():
            signal.signal(number, old)
        theirs.shutdown(socket.SHUT_RDWR)  # a forked worker may hold a copy
        theirs.close()


def _watch(wakes: socket.socket) -> None:
    """End the process if the main thread does not within ``GRACE`` seconds of a signal."""
    with wakes, suppress(OSError):
        while data := wakes.recv(64):
            asked = [number for number in data if number in SIGNALS]
            if asked:
                wakes.settimeout(GRACE)
                ends = time.monotonic() + GRACE
                with suppress(TimeoutError):
                    while wakes.recv(64):
                        wakes.settimeout(max(0.01, ends - time.monotonic()))
                    return  # handled() is over
                end_now(Stopped(asked[0]).status, f"segdistill: {Stopped(asked[0]).line}")


def _follow(parent: int, wakes: socket.socket) -> None:
    """Send this process a SIGTERM when its parent is gone, while its signals are handled."""
    while wakes.fileno() >= 0:
        if (os.getppid() != parent or _is_orphan()) and wakes.fileno() >= 0:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        time.sleep(1.0)


def _is_orphan() -> bool:
    """Whether the parent was gone before anybody looked: then it is the first process, which is no Python."""
    if os.getppid() != 1:
        return False
    try:
        first = Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return False
    return b"python" not in first and b"torch" not in first


def ignored_in_worker(_: int = 0) -> None:
    """Signal handling of a data loader worker: it is ended by its parent, not by Ctrl-C.

    Nothing is printed if the parent goes away while it fetches a batch.
    """
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _parent_gone
    Queue._on_queue_feeder_error = staticmethod(lambda error, _: _parent_gone(type(error), error, error.__traceback__))


def _parent_gone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error of a worker's thread, unless the other end of its connection was closed."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def end_now(status: int, line: str = "") -> None:
    """End this process and its children at once."""
    with suppress(OSError, ValueError):
        if line:
            os.write(2, f"{line}\n".encode())
        sys.stdout.flush()
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)
