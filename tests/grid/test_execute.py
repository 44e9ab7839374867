"""The grid runs: each stage once, in one process or in several, and on after a failure."""

from __future__ import annotations

import json

import pytest

from segdistill.config import parse
from segdistill.grid import cells_of, execute, finished_cells, run_cells
from segdistill.grid.table import TableConfig
from segdistill.weights import ASSETS
from tiny_runs import TINY

SHORT = ["stages.agnostic.steps=2", "stages.task.steps=2", "stages.task.method=null", "stages.task.proxy=null"]


def cells(folder, *rows):
    (folder / "tiny.yaml").write_text(TINY)
    rows = [{"title": title, "recipe": "tiny", "settings": [*SHORT, *settings]} for title, *settings in rows]
    return cells_of(parse(TableConfig, {"name": "t", "title": "T", "rows": rows}), folder)


def manifests(outcomes, stage):
    return [json.loads((o.folder / "stages" / stage / "manifest.json").read_text()) for o in outcomes]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_shared_stage_is_run_once_and_a_second_call_runs_nothing(tmp_path, jobs):
    grid = cells(tmp_path, ["A"], ["B", "stages.task.steps=3"])
    said = []
    outcomes = run_cells(grid, tmp_path / "out", jobs=jobs, watch=lambda *what: said.append(what))
    assert [outcome.error for outcome in outcomes] == [None, None]
    one, other = manifests(outcomes, "01-agnostic")
    assert one == other  # copied, with the time at which it was finished
    assert manifests(outcomes, "02-task")[0] != manifests(outcomes, "02-task")[1]
    shared = grid[0].steps - grid[0].recipe.stages[-1].steps
    assert said[-1][1:] == (sum(cell.steps for cell in grid),) * 2 + (shared,)
    assert [done for _, done, *_ in said] == sorted(done for _, done, *_ in said)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/stages/*/*")}
    run_cells(grid, tmp_path / "out", jobs=1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/stages/*/*")} == before


def test_steps_that_an_earlier_call_trained_are_counted_apart():
    told = []
    teller = execute._Teller(lambda *counts: told.append(counts))
    teller.stage("01-agnostic", 400, "reused")
    teller.stage("02-task", 100, "running")
    for step in range(51, 101):  # taken up after step 50
        teller.step("02-task", step, 100, None)
    assert (told[0], told[2], told[-1], teller.trained) == ((400, 400), (460, 450), (500, 450), 50)


def test_a_cell_starts_once_the_stages_that_it_shares_are_done(tmp_path, monkeypatch):
    start, ended = execute._State.start, {}

    def recorded(state, number, reuse):
        ended[number] = set(state.outcomes)
        start(state, number, reuse)

    monkeypatch.setattr(execute._State, "start", recorded)
    outcomes = run_cells(cells(tmp_path, ["A"], ["B", "stages.task.steps=3"]), tmp_path / "out", jobs=2)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert ended == {0: set(), 1: set()}  # A was still running when B started
    assert manifests(outcomes, "01-agnostic")[0] == manifests(outcomes, "01-agnostic")[1]


def test_a_table_that_is_half_done_can_be_collected(tmp_path):
    grid = cells(tmp_path, ["A"], ["B", "stages.task.steps=3"])
    assert [outcome.error for outcome in finished_cells(grid, tmp_path / "out")] == ["not run yet"] * 2
    done = run_cells(grid[:1], tmp_path / "out", jobs=1)
    assert finished_cells(grid, tmp_path / "out")[0] == done[0]
    assert finished_cells(grid, tmp_path / "out")[1].error == "not run yet"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path, jobs):
    weights = tmp_path / "student.safetensors"
    weights.write_bytes((ASSETS / "world_student_local.safetensors").read_bytes())
    bad, good = cells(tmp_path, ["Bad", f"student.encoder.weights={weights}"], ["Good"])
    weights.unlink()
    told = []
    outcomes = run_cells([bad, good], tmp_path / "out", jobs=jobs, watch=lambda *what: told.append(what))
    assert told[-1][1:] == (bad.steps + good.steps, bad.steps + good.steps, bad.steps)
    assert "no encoder weights" in outcomes[0].error
    assert outcomes[1].error is None
    assert (outcomes[1].folder / "results.json").is_file()


def test_the_cores_are_shared_by_the_runs_and_not_by_jobs_without_one(tmp_path, monkeypatch):
    def refuse(threads):
        raise LookupError(f"{threads} threads")

    monkeypatch.setattr(execute, "cores", lambda: 8)
    monkeypatch.setattr(execute, "_children_threads", refuse)
    with pytest.raises(LookupError, match="4 threads"):
        run_cells(cells(tmp_path, ["A"], ["B", "stages.task.steps=3"]), tmp_path / "out", jobs=8)


def test_stages_that_another_table_has_left_are_taken(tmp_path):
    one = run_cells(cells(tmp_path, ["A"]), tmp_path / "out", jobs=1)
    other = run_cells(cells(tmp_path, ["B", "stages.task.steps=3"]), tmp_path / "out", jobs=1)
    assert one[0].folder != other[0].folder
    assert manifests(one, "01-agnostic") == manifests(other, "01-agnostic")
    assert manifests(one, "02-task") != manifests(other, "02-task")


def test_the_smoke_table_prints_every_row_and_writes_the_tables(tmp_path, call):
    bench = ("bench", "recipes/tables/table1_world_smoke.yaml", "--out", tmp_path)
    status, _, err = call(*bench, "--collect")
    assert status == 2
    assert f"none of the table's 10 runs in {tmp_path} has finished" in err
    status, printed, err = call(*bench, "--jobs", 1)
    assert not status, err
    assert call(*bench, "--collect")[:2] == (0, printed)
    folder = tmp_path / "table1_world_smoke"
    markdown = (folder / "table.md").read_text()
    methods = ("Vanilla KD", "Logit KD", "CWD", "Af-DCD", "G2SD", "ViTKD", "Proteus", "GKD")
    for title in ("Teacher", "No distillation", *(f"+ {method}" for method in methods)):
        assert title in printed
        assert title in markdown
    assert "57.7" in markdown  # the paper's number beside ours
    assert (folder / "table.csv").read_text().count("\n") == 2 + len(list((tmp_path / "cells").iterdir()))
    assert max(map(len, printed[printed.index("model ") :].split("Left out")[0].splitlines())) <= 100
    assert "Too short to compare: a stage has 2 training steps" in printed
    assert "**" not in markdown
    assert r"\toprule" in (folder / "table.tex").read_text()
    page = (folder / "report.html").read_text()
    assert page.count('<svg class="radar"') == 1
    assert "Table 1 on the world (smoke)" in page
