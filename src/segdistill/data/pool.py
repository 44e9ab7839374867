"""Processes that share the work on files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from segdistill.config import UserError
from segdistill.interrupts import ignored_in_worker


@contextmanager
def worker_pool(
    processes: int, start: Callable[..., object] | None = None, *arguments: Any
) -> Iterator[ProcessPoolExecutor]:
    """New processes, each of which calls ``start`` first if it is given; a :class:`UserError` if one is killed.

    Ctrl-C, which reaches every process of a terminal, is for this one: the others finish what they have begun. What is
    not begun at the end of the block is left out.
    """
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (start, *arguments)) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise UserError("a process was killed, perhaps for lack of memory; use fewer --processes") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(start: Callable[..., object] | None, *arguments: Any) -> None:
    ignored_in_worker()
    if start is not None:
        start(*arguments)
