"""Ctrl-C, SIGTERM, a killed loader process, a killed rank: one line, soon, nothing left behind, and an equal end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segdistill.interrupts import Stopped, asked, handled, postponed
from tiny_runs import Child, command, hang, in_a_session, tiny_file

SOON = 60.0  # seconds on a busy machine; an idle one needs one or two


def members(group: int) -> list[int]:
    """Living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[2]) == group:
            found.append(int(path.parent.name))
    return found


def reached(folder: Path, line: str) -> bool:
    """Whether the log has this stage and step."""
    path = folder / "metrics.jsonl"
    return path.exists() and line in path.read_text()


def log(folder: Path) -> list[dict]:
    """The log without what differs from run to run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("images_per_s", "crc")} for line in lines]


def until(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def complaint(child: Child) -> str:
    lines = [line for line in child.text().splitlines() if line.startswith("segdistill: ")]
    assert len(lines) == 1, child.text()
    assert "Traceback" not in child.text()
    return lines[0]


@pytest.mark.parametrize(("what", "workers"), [("term", 0), ("ctrl-c", 2), ("worker", 2)])
def test_a_run_ends_at_a_signal_in_one_line_and_continues_to_an_equal_end(tmp_path, finished, what, workers):
    recipe, folder = tiny_file(tmp_path), tmp_path / "run"
    arguments = ["run", str(recipe), "--out", str(folder), "--reuse", str(finished.parent / "nothing")]
    (finished.parent / "nothing" / "stages").mkdir(parents=True, exist_ok=True)
    # A process that has delivered all its batches is not missed, so there are more steps than batches made in advance.
    longer = ["stages.agnostic.steps=40"] if what == "worker" else []
    arguments += longer
    child = Child(tmp_path / "output", in_a_session, arguments, workers)
    until(lambda: reached(folder, '"01-agnostic", "step": 3'))
    pid, at = child.process.pid, time.monotonic()
    if what == "term":
        os.kill(pid, signal.SIGTERM)
    elif what == "ctrl-c":
        os.killpg(pid, signal.SIGINT)
    else:
        others = [member for member in members(pid) if member != pid]
        assert len(others) == workers
        os.kill(others[0], signal.SIGKILL)
    status = child.wait()
    assert time.monotonic() - at < SOON
    assert status == {"term": 143, "ctrl-c": 130, "worker": 2}[what], child.text()
    line = complaint(child)
    assert re.search("a data-loading process was killed" if what == "worker" else r"interrupted \(SIG", line)
    until(lambda: not members(pid))
    assert not [path for path in folder.rglob(".*") if path.suffix == ".tmp"]
    if what != "worker":  # the step in progress was ended and kept
        names = [path.name for path in (folder / "stages/01-agnostic/checkpoint").iterdir()]
        assert max(names) not in ("step-00000005.pt",) or len(names) > 1
    again = Child(tmp_path / "again", command, [*arguments, "log_every=3", "checkpoint_every=5"])
    assert again.wait() == 0, again.text()
    whole = tmp_path / "whole"
    rest = [str(whole), *longer, "log_every=3", "checkpoint_every=5"]
    other = Child(tmp_path / "other", command, [*arguments[:3], *rest])
    assert other.wait() == 0, other.text()
    ours, theirs = ({path.relative_to(place): path.read_bytes() for path in place.rglob("*.safetensors")}
                    for place in (folder, whole))  # fmt: skip
    assert ours == theirs
    assert log(folder) == log(whole)
    same = whole if longer else finished
    scores = [json.loads((place / "results.json").read_text())["models"]["student"] for place in (folder, same)]
    assert scores[0]["domains"] == scores[1]["domains"]


def test_a_killed_rank_ends_the_other_one_in_one_line(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
             "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}  # fmt: skip
    folder = tmp_path / "run"
    ranks = [
        Child(tmp_path / f"output-{rank}", command, ["run", str(tiny_file(tmp_path)), "--out", str(folder)],
              environment=place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip
    until(lambda: reached(folder, '"01-agnostic", "step": 2'))
    ranks[1].process.kill()
    at = time.monotonic()
    assert ranks[0].wait() == 2, ranks[0].text()
    assert time.monotonic() - at < SOON
    assert "another process of this run was killed" in complaint(ranks[0])


def test_a_signal_waits_for_the_end_of_what_must_not_be_cut_short():
    done = []

    def whole():
        with postponed():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            done.append("all of it")

    def cut():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        done.append("never")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with handled():
            with pytest.raises(Stopped) as stopped:
                whole()
            assert stopped.value.status == 143
            with pytest.raises(Stopped, match="2"):
                cut()
        assert done == ["all of it"]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_cannot_react_is_ended_all_the_same(tmp_path):
    child = Child(tmp_path / "output", hang, tmp_path / "marker")
    until((tmp_path / "marker").exists)
    os.kill(child.process.pid, signal.SIGTERM)
    assert child.wait() == 143
    assert complaint(child).startswith("segdistill: interrupted (SIGTERM)")


class Fragile:
    """Its destructor is where a signal arrives."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)


def test_a_signal_whose_exception_a_destructor_loses_is_raised_at_the_next_step(capsys):
    steps = []
    with handled():
        thing = Fragile()
        del thing
        assert asked().number == signal.SIGTERM
        with pytest.raises(Stopped, match="15"), postponed():
            steps.append("never")
    assert steps == []
    assert asked() is None
    assert "Exception ignored" not in capsys.readouterr().err


WORKER = """
import os, socket, struct, sys, threading, time
from multiprocessing import reduction, resource_sharer
from segdistill.interrupts import ignored_in_worker
if sys.argv[1] == "ours":
    ignored_in_worker()
shared = reduction.DupFd(os.dup(0))   # as a loader process passes a batch in shared memory
server = socket.socket(socket.AF_UNIX)
server.connect(resource_sharer._resource_sharer._address)
time.sleep(0.2)                       # its greeting lies unread: closing resets the connection
server.close()
time.sleep(0.2)
if sys.argv[2] == "fault":
    raise RuntimeError("a fault of the worker")
"""


@pytest.mark.parametrize(("hook", "ending", "told"), [("theirs", "none", "ConnectionResetError"), ("ours", "none", ""),
                                                      ("ours", "fault", "a fault of the worker")])  # fmt: skip
def test_a_parent_that_closes_its_connection_makes_no_worker_print(hook, ending, told):
    done = subprocess.run([sys.executable, "-c", WORKER, hook, ending], capture_output=True, text=True, timeout=60)
    assert ("Connection" in done.stderr) == (hook == "theirs")
    assert told in done.stderr and bool(done.stderr) == bool(told)


@pytest.mark.parametrize(("first", "ends"), [(b"/sbin/init\0", True), (b"python\0-m\0torch.distributed.run\0", False)])
def test_a_rank_whose_torchrun_was_gone_before_it_looked_ends(tmp_path, monkeypatch, first, ends):
    """An orphan's parent is the system's first process; in a container that may be torchrun itself."""
    (tmp_path / "cmdline").write_bytes(first)
    monkeypatch.setattr("segdistill.interrupts.Path", lambda _: tmp_path / "cmdline")
    monkeypatch.setattr(os, "getppid", lambda: 1)
    ended, before = False, [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with handled(belongs=True):
            time.sleep(3.0 if ends else 0.5)
    except Stopped as stopped:
        ended = stopped.number == signal.SIGTERM
    assert ended == ends
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
