"""Trackers get every record under the stage's name, continue a run as the same one, and change no result."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import get_args

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segdistill.config import UserError
from segdistill.runlog import Quiet, RunLog
from segdistill.trackers import TRACKERS, Tracked, TrackerName
from tiny_runs import only, tiny_file
from trackers_libraries import LIBRARIES

SETTINGS = {"name": "mine", "data": {"size": [32, 64]}, "stages": [{"name": "task", "steps": 3}], "title": "x" * 900}


@pytest.fixture
def install(monkeypatch):
    """Puts a stand-in in the place of a library; returns the list of its calls."""
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)

    def put(name, fail=()):
        calls = []
        monkeypatch.setitem(sys.modules, name, LIBRARIES[name](calls, fail))
        return calls

    return put


def entry(stage, step):
    return {"stage": stage, "step": step, "loss": 2.0 / step, "terms": {"ce": 0.5}, "lr": 0.1, "images_per_s": 9.0,
            "diagnostics": {"share": 0.25}}  # fmt: skip


def logged(folder, tracker, *, failed=False, stages=("00-a", "01-b")):
    log = RunLog(folder, Quiet(), writes=True, tracker=tracker, settings=SETTINGS)
    for stage in stages:
        for step in (1, 2):
            log.metrics(entry(stage, step))
    domains = {"game": {"miou": 0.5}, "fog": {"miou": 0.4}}
    models = {"student": {"domains": domains, "mean_unseen": 0.4}}
    log.scores({"primary": "miou", "models": models, "retention": None})
    log.close(failed=failed)


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_record_and_score_reaches_the_library(tmp_path, install, library):
    calls = install(library)
    logged(tmp_path, library)
    records = [call for call in calls if call[0] == "log"]
    found = {}
    for _, values, step in records:
        for key, value in values.items():
            stage, _, name = key.partition("/")
            at = values[f"{stage}/step"] if library == "wandb" else step
            if name != "step":
                found[stage, at, name] = value
    expected = {}
    for stage in ("00-a", "01-b"):
        for step in (1, 2):
            numbers = {"loss": 2.0 / step, "terms/ce": 0.5, "lr": 0.1, "images_per_s": 9.0, "diagnostics/share": 0.25}
            expected |= {(stage, step, name): value for name, value in numbers.items()}
    scores = {"student/game": 0.5, "student/fog": 0.4, "student/mean_unseen": 0.4}
    expected |= {("scores", 0, name): value for name, value in scores.items()}
    assert found == expected
    assert calls[-1] in (("finish", 0), ("finish", "FINISHED"), ("finish",))


def test_wandbs_stages_have_a_step_axis_each_since_its_own_may_only_grow(tmp_path, install):
    calls = install("wandb")
    logged(tmp_path, "wandb")
    axes = [call[1:] for call in calls if call[0] == "define_metric"]
    assert axes == [(f"{stage}/*", f"{stage}/step") for stage in ("00-a", "01-b", "scores")]
    assert all(call[2] is None for call in calls if call[0] == "log")


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_same_folder_continues_the_same_run_and_another_begins_another(tmp_path, install, library):
    calls = install(library)
    for folder in ("one", "one", "two"):
        (tmp_path / folder).mkdir(exist_ok=True)
        logged(tmp_path / folder, library)
    if library == "mlflow":  # its server gives the id; settings are stored once
        begun = [call[1:] for call in calls if call[0] == "start_run"]
        assert begun == [(None, "mine"), ("id-of-the-server", None), (None, "mine")]
        stored = [call[1] for call in calls if call[0] == "log_params"]
        assert len(stored) == 2
        assert stored[0]["stages.task.steps"] == "3"
        assert stored[0]["data.size"] == "[32, 64]"
        return
    begun = [call[1] for call in calls if call[0] == "init"]
    assert begun[0] == begun[1]
    key = {"wandb": "id", "trackio": "name"}[library]
    assert begun[0][key] != begun[2][key]
    assert {each["project"] for each in begun} == {"segdistill"}
    assert all(each["resume"] == "allow" and each["config"] == SETTINGS for each in begun)


def test_an_interrupted_run_is_marked_as_one(tmp_path, install):
    for library, mark in {"wandb": ("finish", 1), "mlflow": ("finish", "FAILED")}.items():
        calls = install(library)
        logged(tmp_path, library, failed=True)
        assert calls[-1] == mark


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_extra_is_one_line_that_says_how_to_install_it(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError) as caught:
        RunLog(tmp_path, Quiet(), writes=True, tracker=library)
    assert f'pip install "segdistill[{library}]"' in str(caught.value)
    assert "tracker=tensorboard" in str(caught.value)


def test_a_library_that_does_not_start_is_one_line(tmp_path, install):
    install("wandb", fail=("init",))
    with pytest.raises(UserError, match="tracker=wandb does not start: ConnectionError: no login see the manual"):
        logged(tmp_path, "wandb")


def test_a_tracker_that_fails_later_costs_one_warning_and_no_record(tmp_path, install, caplog):
    install("wandb", fail=("log",))
    with caplog.at_level(logging.WARNING):
        logged(tmp_path, "wandb")
    assert [record.getMessage().count("the server is gone") for record in caplog.records] == [1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_only_the_first_process_has_a_tracker(tmp_path, install):
    calls = install("wandb")
    log = RunLog(tmp_path, Quiet(), writes=False, tracker="wandb", settings=SETTINGS)
    log.metrics(entry("00-a", 1))
    log.scores({"models": {}})
    log.close()
    assert not calls
    assert not list(tmp_path.iterdir())


def test_tensorboard_has_the_curves_and_none_writes_metrics_alone(tmp_path):
    logged(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "01-b"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("loss")] == [(1, 2.0), (2, 1.0)]
    (tmp_path / "bare").mkdir()
    logged(tmp_path / "bare", "none")
    assert [path.name for path in (tmp_path / "bare").iterdir()] == ["metrics.jsonl"]


def test_a_run_gives_its_tracker_settings_records_and_scores(tmp_path, install):
    from segdistill.recipe import load
    from segdistill.runs.execute import run

    calls = install("trackio")
    evaluation = {"domains": ["game", "fog"], "unseen": ["fog"], "images": 2, "pictures": 0}
    recipe = load(tiny_file(tmp_path, only("teacher", evaluate=evaluation)), ["tracker=trackio"])
    results = run(recipe, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    records = [call for call in calls if call[0] == "log"]
    assert calls[0][1]["config"]["stages"][0]["steps"] == 2
    assert [(each[2], each[1]["00-teacher/loss"]) for each in records[:-1]] == [(e["step"], e["loss"]) for e in lines]
    roles = results["models"]
    shown = {f"scores/{role}/fog": model["domains"]["fog"]["miou"] for role, model in roles.items()}
    assert shown and shown.items() <= records[-1][1].items()
    assert calls[-1] == ("finish",)
    run(load(tiny_file(tmp_path, only("teacher", evaluate=evaluation)), ["tracker=none"]), tmp_path / "run")
    assert calls[-1] == ("finish",)  # cosmetic: the folder is the same run's, and trackio was not asked


def test_the_setting_names_exactly_the_table():
    assert set(get_args(TrackerName)) == set(TRACKERS)


def test_no_library_is_imported_before_it_is_chosen():
    code = "import sys, segdistill.trackers; sys.exit(bool({'torch', 'tensorboard', *%r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code % list(LIBRARIES)], check=False).returncode == 0


def test_settings_are_flat_and_lists_of_groups_go_by_name(tmp_path):
    flat = Tracked(tmp_path, "x", {"a": {"b": 1}, "stages": [{"name": "task", "steps": 3}, {"steps": 4}]}).flat()
    assert flat == {"a.b": "1", "stages.task.name": "task", "stages.task.steps": "3", "stages.1.steps": "4"}


def test_the_stand_ins_refuse_what_the_libraries_refuse():
    run = LIBRARIES["wandb"]([]).init(project="x")
    run.log({"a": 1}, 3)
    for wrong in (lambda: run.log({}, epoch=3), lambda: run.log(), lambda: run.finish(0, 1)):
        with pytest.raises(TypeError):
            wrong()
