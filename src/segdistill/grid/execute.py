"""Runs a table's cells: each computation once, several processes in parallel, resuming where it stopped.

A stage that several cells share (the teacher's head, a proxy stage) belongs to the first of them; the others start
when it has finished that stage, and copy it from its folder. Cells only wait for earlier ones in the list, so there are
no cycles. Stages that other tables left in the same folder are reused too: GKD's task-agnostic stage is one computation
for all sources, label fractions and ablations.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segdistill.config import UserError
from segdistill.environment import cores
from segdistill.files import write_bytes
from segdistill.grid.table import Cell
from segdistill.interrupts import Stopped, end_now, handled
from segdistill.recipe import Recipe, dump, load
from segdistill.runlog import Quiet, Watcher
from segdistill.runs.execute import run

Watch = Callable[[str, int, int, int], None]
"""Called with (current activity, steps done, steps in total, steps of those done that an earlier call trained)."""

LISTED = 3
"""Running cells that the activity names; it counts the others."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a cell; ``error`` is None if it has results."""

    cell: Cell
    folder: Path
    error: str | None = None


def dependencies(cells: Sequence[Cell]) -> list[dict[int, int]]:
    """For every cell, the earlier cells that own one of its stages, and how many of its stages each must have done."""
    owner: dict[str, int] = {}
    waits = []
    for number, cell in enumerate(cells):
        first: dict[int, int] = {}
        for fingerprint in cell.prints:
            other = owner.setdefault(fingerprint, number)
            if other != number:
                first[other] = max(first.get(other, 0), cells[other].prints.index(fingerprint) + 1)
        waits.append(first)
    return waits


def run_cells(
    cells: Sequence[Cell], out: Path, *, jobs: int, gpus: int = 0, watch: Watch | None = None
) -> list[Outcome]:
    """Run every cell in ``out / cell.folder_name``, ``jobs`` at a time; a cell that fails does not stop the others.

    Cells with the same key share a folder and run once. With ``gpus``, process i uses GPU i modulo ``gpus``. An
    interruption stops all processes; finished work is kept, and the same call resumes.
    """
    unique = list({cell.key: cell for cell in cells}.values())
    waits, jobs = dependencies(unique), min(jobs, len(unique))
    if jobs <= 1:
        outcomes = _one_by_one(unique, waits, out, watch or _silent)
    else:
        outcomes = _side_by_side(unique, waits, out, jobs, gpus, watch or _silent)
    return [Outcome(cell, outcomes[cell.key].folder, outcomes[cell.key].error) for cell in cells]


def finished_cells(cells: Sequence[Cell], out: Path) -> list[Outcome]:
    """The current state of the cells, without running anything; another process may be working on them."""
    outcomes = []
    for cell in cells:
        folder = out / cell.folder_name
        error = None if (folder / "results.json").is_file() else "not run yet"
        outcomes.append(Outcome(cell, folder, error))
    return outcomes


def visible_gpus() -> int:
    """Number of GPUs visible to torch."""
    return torch.cuda.device_count()


def _silent(what: str, done: int, total: int, skipped: int) -> None:
    """Ignore progress."""


def _one_by_one(cells: list[Cell], waits: list[dict[int, int]], out: Path, watch: Watch) -> dict[str, Outcome]:
    """Run the cells in this process."""
    outcomes, before, skipped, total = {}, 0, 0, sum(cell.steps for cell in cells)
    reuse = _reusable(cells, waits, out)
    for number, cell in enumerate(cells):
        title = f"{number} of {len(cells)} runs; {cell.recipe.title}, seed {cell.seed}"
        teller = _Teller(
            lambda steps, more, title=title, before=before, skipped=skipped: watch(
                title, before + steps, total, skipped + more
            )
        )
        folder = out / cell.folder_name
        error = _run(cell.recipe, folder, reuse[number], teller)
        outcomes[cell.key] = Outcome(cell, folder, error)
        before, skipped = before + cell.steps, skipped + cell.steps - teller.trained
        watch(f"{number + 1} of {len(cells)} runs", before, total, skipped)
    return outcomes


def _side_by_side(
    cells: list[Cell], waits: list[dict[int, int]], out: Path, jobs: int, gpus: int, watch: Watch
) -> dict[str, Outcome]:
    """Run the cells in child processes, each with its share of the cores."""
    state, reuse = _State(cells, out, gpus, watch), _reusable(cells, waits, out)
    with _children_threads(max(1, cores() // jobs)):
        try:
            while len(state.outcomes) < len(cells):
                for number in range(len(cells)):
                    free = len(state.running) < jobs
                    if free and number not in state.started and state.have(waits[number]):
                        state.start(number, reuse[number])
                state.wait()
        finally:
            state.stop()
    return {outcome.cell.key: outcome for outcome in state.outcomes.values()}


def _reusable(cells: list[Cell], waits: list[dict[int, int]], out: Path) -> list[list[Path]]:
    """For every cell, the folders to copy finished stages from: the owners of its stages, then other tables' runs."""
    own = {cell.folder_name for cell in cells}
    others = sorted(path for path in out.glob("*") if path.name not in own and (path / "stages").is_dir())
    return [[out / cells[i].folder_name for i in sorted(wait)] + others for wait in waits]


class _State:
    """The running processes and their messages."""

    def __init__(self, cells: list[Cell], out: Path, gpus: int, watch: Watch) -> None:
        self.cells, self.out, self.gpus, self.watch = cells, out, gpus, watch
        self.context = multiprocessing.get_context("spawn")
        self.messages: Any = self.context.Queue()
        self.running: dict[int, Any] = {}
        self.started: set[int] = set()
        self.stages = dict.fromkeys(range(len(cells)), 0)
        self.outcomes: dict[int, Outcome] = {}
        self.done = dict.fromkeys(range(len(cells)), 0)
        self.skipped = dict(self.done)
        self.total = sum(cell.steps for cell in cells)

    def have(self, stages: dict[int, int]) -> bool:
        """Whether every cell named has finished that many of its stages, or has ended."""
        return all(number in self.outcomes or self.stages[number] >= count for number, count in stages.items())

    def start(self, number: int, reuse: list[Path]) -> None:
        """Start the process of a cell."""
        cell, folder = self.cells[number], self.out / self.cells[number].folder_name
        slot = next(i for i in range(len(self.running) + 1) if i not in {s for s, _ in self.running.values()})
        gpu = None if not self.gpus else slot % self.gpus
        arguments = (number, dump(cell.recipe), folder, reuse, self.messages, gpu)
        process = self.context.Process(target=_child, args=arguments)
        process.start()
        self.running[number] = (slot, process)
        self.started.add(number)

    def wait(self) -> None:
        """Handle one message, or detect a process that died without one."""
        try:
            number, kind, value = self.messages.get(timeout=1.0)
        except queue.Empty:
            for number, (_, process) in list(self.running.items()):
                if not process.is_alive() and self.messages.empty():
                    self._finish(number, f"its process exited with code {process.exitcode}; run the command again")
            return
        if kind == "steps":
            self.done[number], self.skipped[number] = value
            self._tell()
        elif kind == "stages":
            self.stages[number] = value
        else:
            self._finish(number, value)

    def stop(self) -> None:
        """Stop all running processes; finished stages and checkpoints are kept."""
        for _, process in self.running.values():
            process.terminate()
        for _, process in self.running.values():
            process.join()

    def _finish(self, number: int, error: str | None) -> None:
        _, process = self.running.pop(number)
        process.join()
        cell = self.cells[number]
        self.outcomes[number] = Outcome(cell, self.out / cell.folder_name, error)
        self.skipped[number] += cell.steps - self.done[number]
        self.done[number] = cell.steps
        self._tell()

    def _tell(self) -> None:
        busy = [f"{cell.recipe.title}, seed {cell.seed}" for cell in map(self.cells.__getitem__, sorted(self.running))]
        more = [f"{len(busy) - LISTED} more"] if len(busy) > LISTED else []
        what = "; ".join([f"{len(self.outcomes)} of {len(self.cells)} runs", *busy[:LISTED], *more])
        self.watch(what, sum(self.done.values()), self.total, sum(self.skipped.values()))


class _Teller(Quiet):
    """A watcher that counts steps and stages and reports how many are done, and how many of them were before."""

    def __init__(self, tell: Callable[[int, int], None], finished: Callable[[int], None] = lambda _: None) -> None:
        self.tell, self.finished = tell, finished
        self.before = self.now = self.stages = self.skipped = 0

    @property
    def trained(self) -> int:
        """Steps that this call trained."""
        return self.before + self.now - self.skipped

    def stage(self, label: str, steps: int, state: str) -> None:
        """Count a stage that is already finished in full; one that starts now follows finished ones."""
        self.finished(self.stages if state == "running" else self.stages + 1)
        self.stages += 1
        skipped = 0 if state == "running" else steps
        self.before, self.now, self.skipped = self.before + self.now + skipped, 0, self.skipped + skipped
        self.tell(self.before, self.skipped)

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """Report every tenth step and the last one."""
        if self.now == 0:
            self.skipped += step - 1
        self.now = step
        if step % 10 == 0 or step == steps:
            self.tell(self.before + self.now, self.skipped)


def _child(number: int, recipe: str, folder: Path, reuse: list[Path], messages: Any, gpu: int | None) -> None:
    """The process of one cell."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    with handled(belongs=True):
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent process stops its cells
            write_bytes(folder / "cell.yaml", recipe.encode())
            teller = _Teller(
                lambda steps, skipped: messages.put((number, "steps", (steps, skipped))),
                lambda stages: messages.put((number, "stages", stages)),
            )
            messages.put((number, "end", _run(load(folder / "cell.yaml"), folder, reuse, teller)))
        except Stopped as stopped:
            end_now(stopped.status)


def _run(recipe: Recipe, folder: Path, reuse: list[Path], watcher: Watcher) -> str | None:
    """Run one cell; returns the error message, or None. Interruptions are not caught."""
    try:
        run(recipe, folder, reuse=[other for other in reuse if other.is_dir()], watcher=watcher)
    except UserError as error:
        return str(error)
    except Exception as error:
        logging.getLogger(__name__).exception("%s", folder)
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _children_threads(threads: int) -> Iterator[None]:
    """Child processes started inside use ``threads`` threads each, unless the user has set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
