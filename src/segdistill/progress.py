"""Progress bars of the command line: one for the whole command, one for what is being done now."""

from __future__ import annotations

import os
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bars:
    """A :class:`segdistill.runlog.Watcher` that draws; on a pipe it writes a line per finished piece instead."""

    def __init__(self, title: str, steps: int) -> None:
        self.console = Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")  # only the first process draws
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
        self.label = ""

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def stage(self, label: str, steps: int, state: str) -> None:
        """Start the bar of a stage; a finished or reused one only moves the whole."""
        if state != "running":
            self.progress.advance(self.whole, steps)
            self._say(f"{label}: {state}")
            return
        self._begin(label, steps)

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """Move both bars; show the loss where it is new."""
        done = self.progress.tasks[self.now].completed if self.label == label else 0.0
        self._begin(label, steps)
        self.progress.update(self.now, completed=step)
        self.progress.advance(self.whole, step - done)
        if loss is not None:
            self.progress.update(self.now, note=f"loss {loss:.4f}")
            if step == steps:
                self._say(f"{label}: {steps} steps, loss {loss:.4f}")

    def work(self, what: str, done: int, total: int) -> None:
        """Show work that is not training."""
        self._begin(what, total)
        self.progress.update(self.now, completed=done)

    def _begin(self, label: str, total: int) -> None:
        if label != self.label:
            self.label = label
            self.progress.reset(self.now, description=f"  {label}", total=total, visible=True, note="")

    def _say(self, line: str) -> None:
        if not self.console.is_terminal:
            self.console.print(line, highlight=False)
