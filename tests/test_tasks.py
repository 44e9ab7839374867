"""A second task, 60 lines in a test, goes through recipe, stages, evaluation, report and grid like the first one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from segdistill.config import UserError
from segdistill.grid import cells_of, collect_table, load_table, run_cells
from segdistill.heads import HEADS
from segdistill.recipe import load
from segdistill.report import write_report, write_tables
from segdistill.runs.execute import run
from segdistill.runs.plan import make_plan
from segdistill.runs.rescore import Wanted, rescore
from segdistill.runs.score import read_samples
from segdistill.tasks.table import TASKS
from tags import TagHead, Tags

RECIPE = """
name: tags
task: tags
data: {size: [32, 64], classes: world13}
teacher: {encoder: {name: world_teacher}, head: {type: tags}}
student: {encoder: {name: world_student}, head: {type: tags}}
stages:
  - {type: task, name: teacher, model: teacher, data: {domains: [game], images: 8}, batch: 4, steps: 2}
  - {type: distill, name: agnostic, data: {domains: [game], images: 8}, batch: 4, steps: 2, method: {type: mse}}
  - {type: task, name: task, data: {domains: [game], images: 8}, batch: 4, steps: 6, augment: {flip: 0.25}}
evaluate: {domains: [game, fog, rain], unseen: [fog, rain], images: 3, pictures: 1}
log_every: 1
checkpoint_every: 2
accelerator: cpu
precision: 32-true
"""


@pytest.fixture(autouse=True)
def _tables(monkeypatch, image_cache):
    monkeypatch.setitem(TASKS, "tags", Tags())
    monkeypatch.setitem(HEADS, "tags", TagHead)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tags.yaml"
    path.write_text(RECIPE)
    return path


def test_a_run_is_scored_with_the_tasks_own_metric_and_shown_on_a_page(recipe, tmp_path):
    results = run(load(recipe), tmp_path / "run")
    assert (results["task"], results["primary"]) == ("tags", "hit")
    fog = results["models"]["student"]["domains"]["fog"]
    kept = read_samples(tmp_path / "run/scores/student.npz", "tags")["fog"]
    assert fog["hit"] == pytest.approx(kept.right.mean())
    assert fog["hit_interval"] == pytest.approx(np.quantile(kept.resampled("fog"), [0.025, 0.975]))
    both = [results["models"][role]["mean_unseen"] for role in ("student", "teacher")]
    assert results["retention"] == pytest.approx(both[0] / both[1])
    write_report([tmp_path / "run"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "tags right" in page
    assert "IoU" not in page
    terms = [json.loads(line)["terms"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [set(each) for each in terms] == [{"tags"}] * 2 + [{"feature"}] * 2 + [{"tags"}] * 6


def test_it_continues_is_scored_anew_and_planned(recipe, tmp_path):
    first = run(load(recipe), tmp_path / "run")
    assert run(load(recipe), tmp_path / "run")["models"] == first["models"]
    again = rescore(tmp_path / "run", Wanted(overrides=["evaluate.images=2"]), out=tmp_path / "again")
    found = json.loads((again / "results.json").read_text())
    assert found["models"]["student"]["domains"]["fog"]["images"] == 2
    plan = make_plan(load(recipe))
    assert [stage.images for stage in plan.stages] == [8, 8, 8]


def test_a_table_compares_its_runs(recipe, tmp_path):
    rows = [{"title": "None", "recipe": str(recipe), "baseline": True, "settings": ["stages.task.augment.flip=0"]},
            {"title": "Flipped", "recipe": str(recipe)}]  # fmt: skip
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump({"name": "tags_table", "title": "Tags", "rows": rows, "seeds": [0, 1]}))
    config = load_table(path)
    outcomes = run_cells(cells_of(config, tmp_path), tmp_path / "cells", jobs=1)
    assert not any(outcome.error for outcome in outcomes)
    found = collect_table(config, outcomes)
    written = [each.read_text() for each in write_tables(found, tmp_path / "out") if each.suffix in (".md", ".html")]
    assert written
    assert all("Flipped" in text and "IoU" not in text for text in written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("task=tag", "unknown task 'tag': did you mean 'tags'.*allowed: detection, instance, semantic, tags"),
        ("stages.task.task=semantic", "stage 'task': task is a setting of the recipe"),
        ("stages.task.augment.flop=1", "augment: flop: unknown key"),
        ("student.head.type=semfpn", "student.head: semfpn is for the task semantic; allowed for tags: tags"),
        ("stages.task.presence_weight=0.5", "presence_weight: this task has no class-presence term"),
    ],
)
def test_mistakes_are_one_line(recipe, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        run(load(recipe, [change]), tmp_path / "run")
    assert "\n" not in str(error.value)
