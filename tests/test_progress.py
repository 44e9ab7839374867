"""What the command line says on a pipe: a line every ten seconds with stage, step, loss, speed and time left."""

from __future__ import annotations

import re

import pytest

from segdistill.config import duration
from segdistill.progress import EVERY, Bars, Lines
from segdistill.runlog import Named, Quiet
from tiny_runs import tiny


@pytest.fixture
def pipe():
    """Lines on a clock that the test turns: (watcher, what it said, clock)."""
    said, clock = [], [0.0]
    return Lines("run", said.append, lambda: clock[0]), said, clock


def train(lines, clock, steps, seconds, log_every=5):
    """Steps of a stage that take ``seconds`` each."""
    for step in range(1, steps + 1):
        clock[0] += seconds
        lines.step("00-task", step, steps, None)
        if step % log_every == 0:
            lines.rate("00-task", 32.0)
            lines.step("00-task", step, steps, 1 / step)


def test_a_line_every_ten_seconds_says_all(pipe):
    lines, said, clock = pipe
    lines.stage("00-task", 80, "running")
    train(lines, clock, 80, 1.0)
    assert said[0] == "00-task: 80 steps"
    assert said[1] == "run: 00-task: step 10 of 80, loss 0.2000, 32 images/s, 70 s left"
    assert said[-1] == "00-task: 80 steps done, loss 0.0125, 32 images/s"
    steps = [int(re.search(r"step (\d+)", line)[1]) for line in said[1:-1]]
    assert steps == list(range(int(EVERY), 80, int(EVERY)))


def test_a_fast_stage_has_its_begin_and_its_end_alone(pipe):
    lines, said, clock = pipe
    lines.stage("00-task", 50, "running")
    train(lines, clock, 50, 0.01)
    assert len(said) == 2


def test_time_left_counts_from_where_the_stage_was_taken_up(pipe):
    lines, said, clock = pipe
    for step in range(81, 100):
        clock[0] += 2.0
        lines.step("00-task", step, 100, None)
    assert said[0].endswith("step 85 of 100, 30 s left")


def test_other_work_and_finished_stages(pipe):
    lines, said, clock = pipe
    lines.stage("00-teacher", 5, "finished")
    for done in range(1, 31):
        clock[0] += 1.0
        lines.work("3 of 9 runs; GKD, seed 0", done, 30)
    assert said[0] == "00-teacher: finished"
    assert said[1] == "run: 3 of 9 runs; GKD, seed 0: 10 of 30, 20 s left"
    assert len(said) == 3


def test_time_left_of_other_work_follows_from_what_was_not_skipped(pipe):
    lines, said, clock = pipe
    lines.work("0 of 1 runs; Heir, seed 0", 0, 1000)
    clock[0] += 1.0
    lines.work("0 of 1 runs; Heir, seed 0", 400, 1000, 400)  # a reused stage
    for done in range(901, 912):  # its other stage was taken up after 500 steps
        clock[0] += 1.0
        lines.work("0 of 1 runs; Heir, seed 0", done, 1000, 900)
    assert said == ["run: 0 of 1 runs; Heir, seed 0: 909 of 1,000, 2 min left"]


def test_bars_on_a_pipe_are_lines(capsys):
    with Bars("x", 4) as bars:
        bars.stage("a", 2, "running")
        bars.step("a", 1, 2, None)
        bars.rate("a", 3.21)
        bars.step("a", 2, 2, 0.5)
        bars.work("scoring", 1, 1)
    assert capsys.readouterr().err == "a: 2 steps\na: 2 steps done, loss 0.5000, 3.2 images/s\n"


def test_bars_on_a_terminal_follow_a_total_that_grows_and_show_slow_steps(monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    with Bars("x", 4) as bars:
        bars.work("pseudo-labels", 1, 2)
        bars.work("pseudo-labels", 3, 5)
        assert (bars.progress.tasks[bars.now].completed, bars.progress.tasks[bars.now].total) == (3, 5)
        bars.rate("a", 0.32)
        assert bars.speed == ", 0.3 images/s"


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Bars("x", 4) as bars:
        bars.stage("a", 2, "running")
    assert capsys.readouterr().err == ""


def test_a_run_among_others_is_named(pipe):
    lines, said, _ = pipe
    named = Named(lines, "world_gkd")
    named.stage("00-teacher", 5, "reused")
    named.step("01-task", 2, 2, 0.5)
    assert said == ["world_gkd 00-teacher: reused", "world_gkd 01-task: 2 steps done, loss 0.5000"]
    assert {name for name in vars(Quiet) if name[0] != "_"} == {name for name in vars(Named) if name[0] != "_"}


def test_fabric_repeats_no_notice(tmp_path, caplog):
    from lightning_utilities.core import rank_zero

    from segdistill.runs.fabric import make_fabric

    with caplog.at_level("DEBUG"):
        rank_zero.log.addHandler(caplog.handler)
        for _ in range(2):
            make_fabric(tiny(tmp_path, "precision=bf16-mixed"))
        rank_zero.log.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if "Precision" in record.getMessage()]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 s"), (89.0, "89 s"), (91.0, "2 min"), (5400.0, "1.5 h"), (216000.0, "2.5 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
