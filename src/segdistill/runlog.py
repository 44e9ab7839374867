"""The outputs of a run's metrics: JSON lines, a tracker, and a watcher."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from segdistill.files import checked_line, read_metrics_line, write_bytes
from segdistill.trackers import NoTracker, Tracked, Tracker, TrackerName, begin

FEWEST_STEPS = 50
"""Training steps of a stage below which scores mean nothing."""


class Watcher(Protocol):
    """Observes a run: the progress bars of the command line, a notebook, a test."""

    def stage(self, label: str, steps: int, state: str) -> None:
        """A stage starts (``running``) or is skipped (``finished``, ``reused``)."""

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """A step is done; ``loss`` is given when it was logged."""

    def rate(self, label: str, images_per_s: float) -> None:
        """The speed of a stage, whenever it is logged."""

    def work(self, what: str, done: int, total: int, skipped: int = 0) -> None:
        """Progress of other work: rendering, evaluation; ``skipped`` of ``done`` were there before it began."""

    def warn(self, line: str) -> None:
        """A warning about inputs that look like a mistake."""


class Quiet:
    """Ignores everything."""

    def stage(self, label: str, steps: int, state: str) -> None:
        """Ignore a stage."""

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """Ignore a step."""

    def rate(self, label: str, images_per_s: float) -> None:
        """Ignore the speed."""

    def work(self, what: str, done: int, total: int, skipped: int = 0) -> None:
        """Ignore other work."""

    def warn(self, line: str) -> None:
        """Ignore a warning."""


class Named:
    """Prefixes everything that a watcher receives with the name of a run."""

    def __init__(self, watcher: Watcher, name: str) -> None:
        self.watcher, self.name = watcher, name

    def stage(self, label: str, steps: int, state: str) -> None:
        """Forward with the name."""
        self.watcher.stage(f"{self.name} {label}", steps, state)

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """Forward with the name."""
        self.watcher.step(f"{self.name} {label}", step, steps, loss)

    def rate(self, label: str, images_per_s: float) -> None:
        """Forward with the name."""
        self.watcher.rate(f"{self.name} {label}", images_per_s)

    def work(self, what: str, done: int, total: int, skipped: int = 0) -> None:
        """Forward with the name."""
        self.watcher.work(f"{self.name} {what}", done, total, skipped)

    def warn(self, line: str) -> None:
        """Forward without the name, since several runs read the same images."""
        self.watcher.warn(line)


class RunLog:
    """Writes ``metrics.jsonl`` of a run folder and feeds the recipe's tracker; only the first process writes."""

    def __init__(
        self,
        folder: Path,
        watcher: Watcher,
        *,
        writes: bool,
        tracker: TrackerName = "tensorboard",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.watcher, self.writes = folder / "metrics.jsonl", watcher, writes
        about = Tracked(folder, str((settings or {}).get("name", folder.name)), settings or {})
        self._tracker: Tracker = begin(tracker, about) if writes else NoTracker()

    def metrics(self, entry: dict[str, Any]) -> None:
        """Append one record to the file and to the tracker."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(checked_line(entry))
        scalars = {"loss": entry["loss"], "lr": entry["lr"], "images_per_s": entry["images_per_s"]}
        scalars |= {f"terms/{name}": value for name, value in entry["terms"].items()}
        scalars |= {f"diagnostics/{name}": value for name, value in entry["diagnostics"].items()}
        self._track(entry["stage"], entry["step"], scalars)
        self.watcher.rate(entry["stage"], entry["images_per_s"])

    def scores(self, results: Mapping[str, Any]) -> None:
        """Send a finished run's primary score per domain, mean over unseen domains and retention to the tracker."""
        if not self.writes:
            return
        values: dict[str, float | None] = {"retention": results.get("retention")}
        for role, model in (results.get("models") or {}).items():
            values[f"{role}/mean_unseen"] = model.get("mean_unseen")
            values |= {f"{role}/{name}": domain[results["primary"]] for name, domain in model["domains"].items()}
        numbers = {name: value for name, value in values.items() if value is not None}
        if numbers:
            self._track("scores", 0, numbers)

    def rewind(self, stage: str, step: int) -> None:
        """Drop the stage's records after ``step``, and a last line that was cut off."""
        if not self.writes or not self.path.exists():
            return
        kept, lines = [], self.path.read_bytes().decode(errors="replace").split("\n")
        for number, line in enumerate(lines, start=1):
            entry = read_metrics_line(line)
            if entry is None:
                if line.strip() and number < len(lines):  # the last line may be cut off if the run was killed
                    logging.getLogger(__name__).warning(
                        "warning: %s: line %d is damaged; removing it", self.path, number
                    )
            elif entry["stage"] != stage or entry["step"] <= step:
                kept.append(line + "\n")
        write_bytes(self.path, "".join(kept).encode())

    def progress(self, stage: str, step: int, steps: int, loss: float | None) -> None:
        """Notify the watcher."""
        self.watcher.step(stage, step, steps, loss)

    def close(self, *, failed: bool = False) -> None:
        """Flush and close the tracker."""
        tracker, self._tracker = self._tracker, NoTracker()
        try:
            tracker.finish(failed=failed)
        except Exception as error:  # noqa: BLE001  any error of the library; the run itself is fine
            self._lost(error)

    def _track(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Send values to the tracker; if it fails, it is dropped and training continues."""
        try:
            self._tracker.log(stage, step, values)
        except Exception as error:  # noqa: BLE001  a lost server must not end hours of training
            self._tracker = NoTracker()
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        logging.getLogger(__name__).warning(
            "warning: the tracker failed and receives no more records (%s: %s); all records are in %s",
            type(error).__name__, str(error).strip().partition("\n")[0], self.path,
        )  # fmt: skip
