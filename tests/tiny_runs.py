"""The smallest recipe with every kind of stage, its finished run, and processes that are cheap to start.

A child comes from a fork server that has imported the package once: it starts in milliseconds, can be killed, and
shares no state with the test.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from segdistill.runlog import Quiet

if TYPE_CHECKING:  # every test session imports this file, and not every one needs torch
    from segdistill.recipe import Recipe

TINY = """
name: tiny
data: {size: [32, 64], classes: world13}
teacher: {encoder: {name: world_teacher}, head: {type: semfpn, width: 8}}
student: {encoder: {name: world_student}, head: {type: semfpn, width: 8}}
stages:
  - {type: task, name: teacher, model: teacher, data: {domains: [game], images: 4}, batch: 2, steps: 2}
  - {type: distill, name: agnostic, data: {domains: [proxy], images: 4}, batch: 2, steps: 8, method: {type: gkd}}
  - type: task
    name: task
    data: {domains: [game], images: 4}
    batch: 2
    steps: 8
    method: {type: gkd}
    proxy: {data: {domains: [proxy], images: 4}, batch: 2}
    presence_weight: 0.1
evaluate: {domains: [game, fog, rain], unseen: [fog, rain], images: 2, pictures: 1}
log_every: 1
checkpoint_every: 2
accelerator: cpu
precision: 32-true
"""


TINY_OBJECTS = """
name: objects
task: instance
data: {source: world, classes: things8, size: [32, 64]}
teacher:
  encoder: {name: world_teacher}
  head: &head {type: masked_dpt, width: 64, queries: 6, decoder_layers: 1, decoder_feedforward: 32,
               neck_channels: [8, 8, 8, 8], points: 32}
student: {encoder: {name: world_student}, head: *head}
stages:
  - {type: task, name: teacher, model: teacher, data: {domains: [game], images: 4}, batch: 2, steps: 2}
  - {type: task, name: task, data: {domains: [game], images: 4}, batch: 2, steps: 2}
evaluate: {domains: [game, fog], unseen: [fog], images: 2, pictures: 1}
log_every: 1
checkpoint_every: 2
accelerator: cpu
precision: 32-true
"""


def tiny(folder: Path, *overrides: str) -> Recipe:
    """The tiny recipe, written to ``folder/tiny.yaml`` and read with ``overrides``."""
    from segdistill.recipe import load

    return load(tiny_file(folder), list(overrides))


def tiny_file(folder: Path, text: str = TINY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


def only(*names: str, **changes) -> str:
    """The tiny recipe's text with these stages alone and top-level ``changes``."""
    values = yaml.safe_load(TINY)
    values["stages"] = [stage for stage in values["stages"] if stage["name"] in names]
    return yaml.safe_dump(values | changes, sort_keys=False)


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory):
    """Rendered images of the tests go to a folder of their own."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("SEGDISTILL_CACHE")
    os.environ["SEGDISTILL_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["SEGDISTILL_CACHE"]
    else:
        os.environ["SEGDISTILL_CACHE"] = before


@pytest.fixture(scope="session")
def finished(tmp_path_factory, image_cache) -> Path:
    """The folder of a finished, uninterrupted tiny run. Copy it to change it."""
    from segdistill.runs.execute import run

    folder = tmp_path_factory.mktemp("tiny")
    run(tiny(folder), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def finished_objects(tmp_path_factory, image_cache) -> Path:
    """The folder of a finished instance run. Copy it to change it."""
    from segdistill.recipe import load
    from segdistill.runs.execute import run

    folder = tmp_path_factory.mktemp("objects")
    run(load(tiny_file(folder, TINY_OBJECTS)), folder / "run")
    return folder / "run"


class Trace(Quiet):
    """Writes ``label step`` of every step to a file and, at one of them, kills its own process."""

    def __init__(self, path: Path, fatal: tuple[str, int] | None) -> None:
        self.path, self.fatal = path, fatal

    def stage(self, label: str, steps: int, state: str) -> None:
        if state == "running" and self.fatal == (label, 0):
            os.kill(os.getpid(), signal.SIGKILL)

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        if loss is None:
            return
        with self.path.open("a") as file:
            file.write(f"{label} {step}\n")
        if self.fatal == (label, step):
            os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(recipe: Path, folder: Path, trace: Path, fatal: tuple[str, int] | None) -> None:
    """Run ``recipe`` and get killed after the step ``fatal``; step 0 stands for the start of the stage."""
    from segdistill.recipe import load
    from segdistill.runs.execute import run

    run(load(recipe), folder, watcher=Trace(trace, fatal))


def die_while_saving(recipe: Path, folder: Path, trace: Path, name: str) -> None:
    """Run ``recipe`` and get killed when the file ``name`` is written but not yet in its place."""
    sync = os.fsync

    def fatal(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name.startswith(f".{name}."):
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)

    os.fsync = fatal
    run_and_die(recipe, folder, trace, None)


def command(arguments: list[str], limit: int | None = None) -> None:
    """The command line; with ``limit`` no file may grow beyond that many bytes, as on a full disk."""
    from segdistill.cli import main

    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["segdistill", *arguments]
    main()


def in_a_session(arguments: list[str], workers: int) -> None:
    """The command line at the head of a process group, with ``workers`` forked loader processes."""
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)
    command([*arguments, f"workers={workers}", "log_every=3", "checkpoint_every=5"])


def hang(marker: Path) -> None:
    """A main thread that never comes back to Python code that can raise."""
    from segdistill import interrupts

    interrupts.GRACE = 0.3
    with interrupts.handled(), interrupts.postponed():
        marker.touch()
        while True:
            time.sleep(0.01)


def hold(folder: Path) -> None:
    """Hold a run folder's lock until somebody ends this process."""
    from segdistill.locking import locked

    with locked(folder):
        (folder / "held").touch()
        time.sleep(300)


def _child(target, output: Path, environment: dict[str, str], arguments) -> None:
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    try:
        target(*arguments)
    except Exception:  # noqa: BLE001  whatever it is, the test shows it
        traceback.print_exc()
        sys.exit(1)


class Child:
    """A process that runs ``target(*arguments)``; its output goes to a file."""

    def __init__(self, output: Path, target, *arguments, environment: dict[str, str] | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tiny_runs", "segdistill.cli", "segdistill.grid.demo", "segdistill.report"])
        self.output = output
        environment = {"SEGDISTILL_CACHE": os.environ["SEGDISTILL_CACHE"], **(environment or {})}
        self.process = context.Process(target=_child, args=(target, output, environment, arguments))
        self.process.start()

    def wait(self, seconds: float = 300) -> int | None:
        """The exit status; negative: the signal that ended it, ours where it takes longer than ``seconds``."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        return self.process.exitcode

    def text(self) -> str:
        return self.output.read_text()
