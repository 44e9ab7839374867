"""Experiment trackers for curves and scores: TensorBoard by default, or one of three optional libraries.

``tracker=wandb`` in a recipe or on the command line selects one; no result depends on it. ``metrics.jsonl`` is always
written. A library is imported only if selected.
"""

from __future__ import annotations

import importlib
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from segdistill.config import UserError
from segdistill.files import write_bytes

TrackerName = Literal["none", "tensorboard", "wandb", "mlflow", "trackio"]
PROJECT = "segdistill"
LONGEST_VALUE = 500
"""Longest value of a setting, in characters, that every MLflow server accepts."""


@dataclass(frozen=True)
class Tracked:
    """Description of a run for a tracker."""

    folder: Path
    name: str
    settings: Mapping[str, Any]

    def identity(self, library: str) -> tuple[str, bool]:
        """A random id of this run folder for ``library``, stored in ``<library>.id``, and whether it is new."""
        path = self.folder / f"{library}.id"
        if path.exists() and (found := path.read_text(encoding="utf-8").strip()):
            return found, False
        fresh = uuid.uuid4().hex
        self.remember(library, fresh)
        return fresh, True

    def remember(self, library: str, identity: str) -> None:
        """Store the id with which ``library`` continues this run."""
        write_bytes(self.folder / f"{library}.id", identity.encode())

    def flat(self) -> dict[str, str]:
        """The settings as a flat mapping from dotted keys to strings."""
        return dict(_flat(self.settings, ""))


class Tracker(Protocol):
    """The interface of a tracker: three calls, made by the first process only."""

    def start(self, run: Tracked) -> None:
        """Start a run, or continue the one of the same folder."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step; ``stage`` is a stage's label, or ``scores``."""

    def finish(self, *, failed: bool) -> None:
        """Flush; the run has ended, or was interrupted and may continue later."""


class NoTracker:
    """Ignores everything."""

    def start(self, run: Tracked) -> None:
        """Ignore the run."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Ignore the values."""

    def finish(self, *, failed: bool) -> None:
        """Ignore the end."""


class TensorBoard:
    """Event files in ``tensorboard/<stage>`` of the run folder. Resuming purges later records."""

    def start(self, run: Tracked) -> None:
        self._folder = run.folder / "tensorboard"
        self._boards: dict[str, Any] = {}

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._boards:
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
            self._boards[stage] = writer(str(self._folder / stage), purge_step=step)
        for name, value in values.items():
            self._boards[stage].add_scalar(name, value, step)

    def finish(self, *, failed: bool) -> None:
        for board in self._boards.values():
            board.close()


class WandB:
    """Weights & Biases. Every stage has its own step axis, since W&B steps may only increase."""

    def __init__(self) -> None:
        self._library = _library("wandb", "wandb")
        self._stages: set[str] = set()

    def start(self, run: Tracked) -> None:
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        identity, _ = run.identity("wandb")
        self._run = self._library.init(
            project=project,
            name=run.name,
            id=identity,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            allow_val_change=True,
        )

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._stages:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._stages.add(stage)
        self._run.log({f"{stage}/step": step} | _within(stage, values))

    def finish(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """MLflow, configured by its own variables such as ``MLFLOW_TRACKING_URI``."""

    def __init__(self) -> None:
        self._library = _library("mlflow", "mlflow")

    def start(self, run: Tracked) -> None:
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & set(os.environ):
            self._library.set_experiment(PROJECT)
        path = run.folder / "mlflow.id"
        if path.exists():
            self._library.start_run(run_id=path.read_text(encoding="utf-8").strip())
            return
        begun = self._library.start_run(run_name=run.name)
        run.remember("mlflow", begun.info.run_id)
        self._library.log_params({key: value[:LONGEST_VALUE] for key, value in run.flat().items()})

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._library.log_metrics(_within(stage, values), step=step)

    def finish(self, *, failed: bool) -> None:
        self._library.end_run("FAILED" if failed else "FINISHED")


class Trackio:
    """trackio: a local dashboard, ``trackio show``. All stages share one step axis and differ by name."""

    def __init__(self) -> None:
        self._library = _library("trackio", "trackio")

    def start(self, run: Tracked) -> None:
        identity, _ = run.identity("trackio")
        self._library.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run.name}-{identity[:6]}",
            config=dict(run.settings),
            resume="allow",
        )

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._library.log(_within(stage, values), step=step)

    def finish(self, *, failed: bool) -> None:
        self._library.finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "none": NoTracker,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def begin(name: TrackerName, run: Tracked) -> Tracker:
    """The started tracker; a :class:`UserError` if its library is not installed or fails to start."""
    tracker = TRACKERS[name]()
    try:
        tracker.start(run)
    except Exception as error:  # noqa: BLE001  no login, no server, no disk: each library has its own types
        raise UserError(
            f"tracker={name} does not start: {type(error).__name__}: {error}; fix that, or choose "
            "tracker=tensorboard or tracker=none"
        ) from None
    return tracker


def _library(module: str, extra: str) -> Any:
    """Import the library of an extra."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(
            f'tracker={module}: {module} is not installed; pip install "segdistill[{extra}]", or choose '
            "tracker=tensorboard or tracker=none"
        ) from None


def _within(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}/{name}": value for name, value in values.items()}


def _flat(value: Any, key: str) -> list[tuple[str, str]]:
    """(dotted key, text) of every setting; items of a list of groups are keyed by name, or else by index."""
    if isinstance(value, Mapping):
        return [pair for name, each in value.items() for pair in _flat(each, f"{key}.{name}" if key else str(name))]
    if isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        names = [each.get("name", number) if isinstance(each, Mapping) else number for number, each in enumerate(value)]
        return [pair for name, each in zip(names, value, strict=True) for pair in _flat(each, f"{key}.{name}")]
    return [(key, str(value))]
