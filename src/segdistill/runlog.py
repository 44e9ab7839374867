"""Where a run's metrics go: JSON lines always, TensorBoard beside them, and whoever watches."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

from segdistill.files import metrics_line, read_metrics_line, write_atomic


class Watcher(Protocol):
    """Somebody who watches a run: the command line's progress bars, a notebook, a test."""

    def stage(self, label: str, steps: int, state: str) -> None:
        """A stage begins (``running``) or is taken as it is (``finished``, ``reused``)."""

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """A step of it is done; ``loss`` where it was logged."""

    def rate(self, label: str, images_per_s: float) -> None:
        """How fast a stage is, whenever it is logged."""

    def work(self, what: str, done: int, total: int) -> None:
        """Other work with an end: rendering, evaluation."""


class Quiet:
    """Watches nothing."""

    def stage(self, label: str, steps: int, state: str) -> None:
        """Ignore a stage."""

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """Ignore a step."""

    def rate(self, label: str, images_per_s: float) -> None:
        """Ignore the speed."""

    def work(self, what: str, done: int, total: int) -> None:
        """Ignore other work."""


class Named:
    """Puts the name of a run before everything that a watcher is shown."""

    def __init__(self, watcher: Watcher, name: str) -> None:
        self.watcher, self.name = watcher, name

    def stage(self, label: str, steps: int, state: str) -> None:
        """As the watcher's."""
        self.watcher.stage(f"{self.name} {label}", steps, state)

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """As the watcher's."""
        self.watcher.step(f"{self.name} {label}", step, steps, loss)

    def rate(self, label: str, images_per_s: float) -> None:
        """As the watcher's."""
        self.watcher.rate(f"{self.name} {label}", images_per_s)

    def work(self, what: str, done: int, total: int) -> None:
        """As the watcher's."""
        self.watcher.work(f"{self.name} {what}", done, total)


class RunLog:
    """``metrics.jsonl`` and ``tensorboard/`` of a run folder; only the first process writes."""

    def __init__(self, folder: Path, watcher: Watcher, *, writes: bool) -> None:
        self.path, self.folder, self.watcher, self.writes = folder / "metrics.jsonl", folder, watcher, writes
        self._boards: dict[str, Any] = {}

    def metrics(self, entry: dict[str, Any]) -> None:
        """Append one record to the file and to TensorBoard."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(metrics_line(entry))
        board = self._board(entry["stage"], entry["step"])
        scalars = {"loss": entry["loss"], "lr": entry["lr"], "images_per_s": entry["images_per_s"]}
        scalars |= {f"terms/{name}": value for name, value in entry["terms"].items()}
        scalars |= {f"diagnostics/{name}": value for name, value in entry["diagnostics"].items()}
        for name, value in scalars.items():
            board.add_scalar(name, value, entry["step"])
        self.watcher.rate(entry["stage"], entry["images_per_s"])

    def rewind(self, stage: str, step: int) -> None:
        """Drop the stage's records after ``step``, and a last line that a kill cut short."""
        if not self.writes or not self.path.exists():
            return
        kept, lines = [], self.path.read_bytes().decode(errors="replace").split("\n")
        for number, line in enumerate(lines, start=1):
            entry = read_metrics_line(line)
            if entry is None:
                if line.strip() and number < len(lines):  # the last one a kill may have cut short
                    logging.getLogger(__name__).warning(
                        "warning: %s: line %d is damaged and left out of the curves", self.path, number
                    )
            elif entry["stage"] != stage or entry["step"] <= step:
                kept.append(line + "\n")
        write_atomic(self.path, lambda file: file.write("".join(kept).encode()))

    def progress(self, stage: str, step: int, steps: int, loss: float | None) -> None:
        """Tell the watcher."""
        self.watcher.step(stage, step, steps, loss)

    def close(self) -> None:
        """Flush TensorBoard's files."""
        for board in self._boards.values():
            board.close()
        self._boards = {}

    def _board(self, stage: str, step: int) -> Any:
        if stage not in self._boards:
            from torch.utils.tensorboard import SummaryWriter

            self._boards[stage] = SummaryWriter(str(self.folder / "tensorboard" / stage), purge_step=step)
        return self._boards[stage]
