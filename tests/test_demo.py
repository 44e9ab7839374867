"""The demonstration: arms that share a teacher, one table, one page; and where it continues."""

from __future__ import annotations

import json

import pytest

from segdistill import environment
from segdistill.config import UserError
from segdistill.grid import demo
from segdistill.recipe import load


def test_the_smoke_run_ends_with_the_table_and_the_page_and_continues_where_it_stopped(tmp_path, call):
    out = tmp_path / "demo"
    status, table, err = call("demo", "--smoke", "--jobs", 1, "--out", out)
    assert not status, err
    arms = {recipe.name: recipe for recipe in demo.load_arms(smoke=True)}
    results = {name: json.loads((out / name / "results.json").read_text()) for name in arms}
    for name, result in results.items():
        student = result["models"]["student"]
        row = next(line for line in table.splitlines() if line.startswith(f"{result['title']} "))
        assert f"{100 * student['mean_unseen']:.1f}" in row
        assert set(result["unseen"]) == {"clear", "night", "fog", "snow", "rain"}, name
    teachers = [result["models"]["teacher"]["domains"] for result in results.values()]
    assert all(each == teachers[0] for each in teachers)
    assert "<html" in (out / "report.html").read_text()
    labels = [json.loads(line)["stage"] for line in (out / "world_gkd/metrics.jsonl").read_text().splitlines()]
    assert not [label for label in labels if "teacher" in label]  # it came from the first arm
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/stages/*/*")}
    again = call("demo", "--smoke", "--jobs", 1, "--out", out)[1]
    assert again.splitlines()[: len(arms) + 1] == table.splitlines()[: len(arms) + 1]
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/stages/*/*")} == before


def test_the_instance_demo_shows_every_stage_and_trains_shared_ones_once(tmp_path, call):
    out = tmp_path / "demo"
    status, table, err = call("demo", "instance", "--smoke", "--jobs", 2, "--out", out)
    assert not status, err
    results = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/results.json")}
    assert set(results) == {recipe.name for recipe in demo.load_arms(task="instance", smoke=True)}
    for result in results.values():
        row = next(line for line in table.splitlines() if line.startswith(f"{result['title']} "))
        assert f"{100 * result['models']['student']['mean_unseen']:.1f}" in row
    assert "pseudo-labels on" in table
    taught = {name.removeprefix("world_instance_"): result["distilled"] for name, result in results.items()}
    assert taught == {"start": False, "supervised": False, "heir_transfer": True, "heir": True}
    adapted = [result["models"]["teacher"]["domains"] for result in results.values() if "teacher" in result["models"]]
    assert len(adapted) == 2
    assert adapted[0] == adapted[1]
    lines = [line for path in out.glob("*/metrics.jsonl") for line in path.read_text().splitlines()]
    last = [record["stage"] for record in map(json.loads, lines) if record["step"] == record["steps"]]
    assert sorted(last) == ["00-adapt_labels", "00-learn", "02-adapt", "05-transfer", "06-refine"]
    page = (out / "report.html").read_text()
    assert "AP50" in page
    assert "points above Labels only in the mean" in page  # and not above the teacher, in which nothing was trained
    assert "mIoU" not in page


def test_an_arm_that_fails_is_named_and_the_others_finish(tmp_path, call):
    other = tmp_path / "world_none"
    other.mkdir()
    (other / "recipe.yaml").write_text("name: world_none\n")
    status, _, err = call("demo", "--smoke", "--jobs", 4, "--out", tmp_path)
    assert status
    assert f"world_none: {other} holds a run with different" in err
    assert {path.parent.name for path in tmp_path.glob("*/results.json")} == set(demo.DEMOS["semantic"][1:])


def test_an_unknown_demo_is_one_line(call):
    status, _, err = call("demo", "instances")
    assert status
    assert "unknown demo 'instances': did you mean 'instance'?" in err


def test_the_arms_share_data_teacher_and_labelled_images():
    """What the comparison's fairness asks for: the arms differ in how they distil, and in nothing else."""
    arms = demo.load_arms()
    assert [recipe.name for recipe in arms] == ["world_none", "world_vanilla_kd", "world_gkd", "world_heir"]
    for recipe in arms:
        assert (recipe.data, recipe.teacher, recipe.evaluate) == (arms[0].data, arms[0].teacher, arms[0].evaluate)
        assert recipe.stages[0] == arms[0].stages[0]
        assert recipe.stages[-1].data == arms[0].stages[-1].data
        assert recipe.student.head == arms[0].student.head
        assert recipe.student.encoder.name == arms[0].student.encoder.name


def test_smoke_cuts_every_stage_and_leaves_what_is_not_length(tmp_path):
    for whole, small in zip(demo.load_arms(), demo.load_arms(smoke=True), strict=True):
        assert {stage.steps for stage in small.stages} <= {0, 2}
        assert {stage.stem_steps for stage in small.stages if hasattr(stage, "stem_steps")} <= {2}
        assert [stage.data.domains for stage in small.stages] == [stage.data.domains for stage in whole.stages]
        assert small.student == whole.student
    proxied = load(demo.recipes_folder() / "world_vanilla_kd.yaml", [
        "stages.1.proxy={data: {domains: [proxy], images: 900}}"])  # fmt: skip
    changes = demo.shortened(proxied, steps=3, images=5)
    cut = load(demo.recipes_folder() / "world_vanilla_kd.yaml", [
        "stages.1.proxy={data: {domains: [proxy], images: 900}}", *changes])  # fmt: skip
    assert (cut.stages[1].steps, cut.stages[1].proxy.data.images, cut.stages[1].proxy.batch) == (3, 5, 2)


def test_a_seed_and_overrides_reach_every_arm_and_a_wrong_one_is_an_error():
    arms = demo.load_arms(["evaluate.images=3"], seed=7)
    assert {(recipe.seed, recipe.evaluate.images) for recipe in arms} == {(7, 3)}
    with pytest.raises(UserError, match="did you mean 'images'"):
        demo.load_arms(["evaluate.imags=3"])


@pytest.mark.parametrize("case", [
    (True, "auto", "precision bf16-mixed\n"),
    (False, "auto", "precision 32-true; this machine has no fast bf16\n"),
    (False, "bf16-mixed", "precision bf16-mixed; slow: this machine emulates bf16; 32-true is several times faster\n"),
    (True, "32-true", "precision 32-true\n"),
])  # fmt: skip
@pytest.mark.parametrize("command", ["run", "demo"])
def test_the_precision_follows_the_processor(monkeypatch, call, tmp_path, command, case):
    computes, precision, line = case

    def stop(*_, **__):
        raise UserError("enough")

    monkeypatch.setattr(environment, "computes_bf16", lambda _=None: computes)
    monkeypatch.setattr(demo, "run_demo", stop)
    words = ["world_none", "--dry-run"] if command == "run" else ["--smoke"]
    _, _, err = call(command, *words, f"precision={precision}", "--out", tmp_path)
    assert line in err
