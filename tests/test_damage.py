"""Run folders that were damaged, killed, or held by somebody: what can be made again is named and made again."""

from __future__ import annotations

import json
import platform
import re
import shutil
import time

import pytest

from tiny_runs import Child, hold, only, run_and_die, tiny_file

DISTILL = {"text": only("agnostic", evaluate=None, checkpoint_every=1)}


def damaged(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: damaged(run / "stages/01-agnostic/manifest.json"),
            "damaged manifest .*01-agnostic.*delete",
        ),
        (lambda run: (run / "stages/01-agnostic/manifest.json").write_text("[]"), "damaged manifest"),
        (lambda run: (run / "stages/01-agnostic/manifest.json").write_bytes(b"\xff"), "damaged manifest"),
        (lambda run: damaged(run / "stages/02-task/encoder.safetensors"), "does not match the digest in its manifest"),
        (
            lambda run: (run / "stages/00-teacher/head.safetensors").unlink(),
            "head.safetensors does not match",
        ),
    ],
)
def test_damage_in_a_run_folder_is_one_line(complaint, tmp_path, finished, damage, message):
    folder = shutil.copytree(finished, tmp_path / "run")
    damage(folder)
    assert re.search(message, complaint("run", tiny_file(tmp_path), "--out", folder))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: damaged(run / "scores/student.json"), "scores/student.json is damaged or missing; scoring the s"),
        (lambda run: damaged(run / "scores/teacher.npz"), "scores/teacher.npz is damaged or missing; scoring the tea"),
        (lambda run: (run / "pictures/student/fog-0.png").unlink(), "fog-0.png is damaged or missing; scoring the stu"),
        (lambda run: (run / "recipe.yaml").write_text("["), "recipe.yaml is damaged; writing it again"),
        (lambda run: flip(run / "recipe.yaml"), "recipe.yaml is damaged; writing it again"),
        (lambda run: damaged(run / "environment.json"), "environment.json is damaged; writing it again"),
        (lambda run: damaged(run / "results.json"), ""),
    ],
)
def test_what_can_be_made_again_is_named_and_made_again(call, caplog, tmp_path, finished, damage, message):
    """The command that every such message names, `run` on the same folder, brings back what was there."""
    folder = shutil.copytree(finished, tmp_path / "run")
    damage(folder)
    status, _out, err = call("run", tiny_file(tmp_path), "--out", folder)
    assert status == 0, err
    assert [line for line in caplog.messages if message in line] or not message
    ours, theirs = (json.loads((place / "results.json").read_text())["models"] for place in (folder, finished))
    assert ours == theirs
    for name in ("recipe.yaml", "pictures/student/fog-0.png"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    caplog.clear()
    assert call("report", folder, "--out", tmp_path / "page.html")[0] == 0
    assert not caplog.messages


def flip(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b"images: 4", b"images: 5", 1))
    assert path.read_bytes() != data


def test_a_run_of_another_recipe_with_a_damaged_recipe_is_left_alone(complaint, tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "recipe.yaml").write_text("[")
    assert "was made with other settings" in complaint("run", tiny_file(tmp_path), "seed=1", "--out", folder)
    assert (folder / "recipe.yaml").read_text() == "["


def test_a_folder_that_is_being_written_is_refused_and_a_killed_runs_lock_is_none(complaint, tmp_path, finished, call):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / ".lock").write_text("left by a killed run")
    (folder / "scores" / ".student.json.abcdefgh.tmp").write_text("half")
    child = Child(tmp_path / "output", hold, folder)
    end = time.monotonic() + 120
    while not (folder / "held").exists():
        assert time.monotonic() < end, child.text()
        time.sleep(0.01)
    line = complaint("run", tiny_file(tmp_path), "--out", folder)
    who = f"is being written by process {child.process.pid} on {platform.node()} since 20"
    assert who in line
    assert who in complaint("evaluate", folder, "evaluate.images=1")
    child.process.kill()
    child.wait()
    assert call("run", tiny_file(tmp_path), "--out", folder)[0] == 0
    assert not list(folder.rglob(".*"))


def test_a_domains_name_writes_nowhere_else(complaint, tmp_path):
    name = "../../x"
    line = complaint(
        "run", tiny_file(tmp_path), f"evaluate.domains=[game, {name}]", "evaluate.unseen=[]", "--out", tmp_path / "run"
    )
    assert f"'{name}' cannot be a file name" in line


def test_a_dry_run_wants_the_folders_that_the_run_will_read(complaint, tmp_path):
    line = complaint("run", tiny_file(tmp_path), "--dry-run", "--reuse", tmp_path / "none")
    assert "none: not a run folder with stages" in line


def test_a_teacher_alone_is_trained_scored_and_reported(call, tmp_path, finished):
    text = only("teacher", student=None)
    status, _out, err = call("run", tiny_file(tmp_path, text), "--out", tmp_path / "run", "--reuse", finished)
    assert status == 0, err
    models = json.loads((tmp_path / "run/results.json").read_text())["models"]
    theirs = json.loads((finished / "results.json").read_text())["models"]["teacher"]
    assert models["student"]["domains"] == theirs["domains"]
    assert (tmp_path / "run/report.html").is_file()


def test_a_run_without_scores_says_how_to_get_them_and_that_works(call, complaint, tmp_path, finished):
    text = only("teacher", "agnostic", "task", evaluate=None)
    folder = tmp_path / "run"
    assert call("run", tiny_file(tmp_path, text), "--out", folder, "--reuse", finished)[0] == 0
    line = complaint("report", folder, "--out", tmp_path / "page.html")
    assert f"segdistill evaluate {folder} evaluate.domains=[...]" in line
    assert call("evaluate", folder, "evaluate.domains=[fog]", "evaluate.images=1")[0] == 0


def test_a_damaged_stage_elsewhere_is_not_taken(call, caplog, tmp_path, finished):
    other = shutil.copytree(finished, tmp_path / "other")
    damaged(other / "stages/00-teacher/head.safetensors")
    recipe = tiny_file(tmp_path, only("teacher", evaluate=None))
    assert call("run", recipe, "--out", tmp_path / "run", "--reuse", other)[0] == 0
    assert "--reuse: skipped: " in caplog.text
    assert (tmp_path / "run/stages/00-teacher/head.safetensors").read_bytes() == (
        finished / "stages/00-teacher/head.safetensors"
    ).read_bytes()


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(call, caplog, tmp_path, finished):
    recipe = tiny_file(tmp_path, **DISTILL)
    arguments = (recipe, tmp_path / "run", tmp_path / "trace", ("00-agnostic", 4))
    assert Child(tmp_path / "output", run_and_die, *arguments).wait() == -9
    folder = tmp_path / "run/stages/00-agnostic"
    names = ["step-00000002.pt", "step-00000003.pt"]
    assert sorted(path.name for path in (folder / "checkpoint").iterdir()) == names
    data = bytearray((folder / "checkpoint" / names[1]).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "checkpoint" / names[1]).write_bytes(data)
    assert call("run", recipe, "--out", tmp_path / "run")[0] == 0
    assert "step-00000003.pt (its digest differs): continuing from step-00000002.pt" in caplog.text
    whole = finished / "stages/01-agnostic/encoder.safetensors"  # the same stage, uninterrupted
    assert (folder / "encoder.safetensors").read_bytes() == whole.read_bytes()
