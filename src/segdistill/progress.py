"""Progress on the command line: bars on a terminal, periodic lines on a pipe."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segdistill.config import duration

EVERY = 10.0
"""Seconds between two lines on a pipe."""


class Lines:
    """Text progress without a terminal: a line when a stage starts or ends, and one every ten seconds."""

    def __init__(self, title: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.title, self.say, self.clock = title, say, clock
        self.label, self.loss, self.speed = "", "", ""
        self.last = self.began = clock()
        self.first = 0

    def stage(self, label: str, steps: int, state: str) -> None:
        """Print that a stage starts or is skipped."""
        self.say(f"{label}: {state}" if state != "running" else f"{label}: {steps:,} steps" if steps else label)
        self.last = self.clock()

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """Print the progress of a stage when due, and its end."""
        self._begin(label, step)
        if loss is not None:
            self.loss = f", loss {loss:.4f}"
        if step == steps and loss is not None:
            self.say(f"{label}: {steps:,} steps done{self.loss}{self.speed}")
            self.last = self.clock()
        elif step < steps:
            self._due(f"{label}: step {step:,} of {steps:,}{self.loss}{self.speed}", step, steps)

    def rate(self, label: str, images_per_s: float) -> None:
        """Store the speed for the next line."""
        self.speed = _speed(images_per_s)

    def work(self, what: str, done: int, total: int, skipped: int = 0) -> None:
        """Print the progress of other work when due; the time left follows from what was not skipped."""
        self._begin(what, done - skipped)
        if done < total:
            self._due(f"{what}: {done:,} of {total:,}", done - skipped, total - skipped)

    def warn(self, line: str) -> None:
        """Print a warning."""
        self.say(f"warning: {line}")

    def _begin(self, label: str, done: int) -> None:
        """Start timing a new activity."""
        if label != self.label:
            self.label, self.loss, self.speed = label, "", ""
            self.began, self.first = self.clock(), done

    def _due(self, line: str, done: int, total: int) -> None:
        now = self.clock()
        if now - self.last >= EVERY:
            self.last = now
            left = (now - self.began) / max(1, done - self.first) * (total - done)
            self.say(f"{self.title}: {line}, {duration(left)} left" if done > self.first else f"{self.title}: {line}")


def _speed(images_per_s: float) -> str:
    """What a line says after the loss."""
    return f", {images_per_s:.{1 if images_per_s < 10 else 0}f} images/s"


class Bars:
    """A :class:`segdistill.runlog.Watcher` with progress bars; on a pipe it prints :class:`Lines` instead."""

    def __init__(self, title: str, steps: int) -> None:
        self.console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")  # only the first process draws
        self.lines = None if self.console.is_terminal else Lines(title, self._say)
        self.progress = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            refresh_per_second=4,
        )
        self.whole = self.progress.add_task(title, total=max(1, steps), note="", visible=steps > 0)
        self.now = self.progress.add_task("", total=1, note="", visible=False)
        self.label = self.speed = ""
        self.warned: set[str] = set()

    def __enter__(self) -> Bars:
        if self.lines is None:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.lines is None:
            self.progress.stop()

    def stage(self, label: str, steps: int, state: str) -> None:
        """Start the bar of a stage; a finished or reused stage only advances the total."""
        if self.lines is not None:
            self.lines.stage(label, steps, state)
        elif state != "running":
            self.progress.advance(self.whole, steps)
        else:
            self._begin(label, steps)

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """Advance both bars; update the loss if given."""
        if self.lines is not None:
            self.lines.step(label, step, steps, loss)
            return
        done = self.progress.tasks[self.now].completed if self.label == label else 0.0
        self._begin(label, steps)
        self.progress.update(self.now, completed=step, total=steps)
        self.progress.advance(self.whole, step - done)
        if loss is not None:
            self.progress.update(self.now, note=f"loss {loss:.4f}{self.speed}")

    def rate(self, label: str, images_per_s: float) -> None:
        """Show the speed with the next loss."""
        if self.lines is not None:
            self.lines.rate(label, images_per_s)
        self.speed = _speed(images_per_s)

    def work(self, what: str, done: int, total: int, skipped: int = 0) -> None:
        """Show the progress of work other than training."""
        if self.lines is not None:
            self.lines.work(what, done, total, skipped)
            return
        self._begin(what, total)
        self.progress.update(self.now, completed=done, total=total)

    def warn(self, line: str) -> None:
        """Print a warning once, above the bars."""
        if line not in self.warned:
            self.warned.add(line)
            self._say(f"warning: {line}")

    def _begin(self, label: str, total: int) -> None:
        if label != self.label:
            self.label, self.speed = label, ""
            self.progress.reset(self.now, description=f"  {label}", total=total, visible=True, note="")

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)
