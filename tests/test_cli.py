"""The command line: what it prints, what it imports, and one line for every mistake."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from segdistill import world
from segdistill.cli import commands
from segdistill.encoders import ENCODERS
from segdistill.files import write_signed
from segdistill.generalize import GENERALIZERS
from segdistill.heads import HEADS
from segdistill.methods import METHODS
from segdistill.methods.gkd import GKD
from segdistill.pictures import colorize
from segdistill.train import checkpoint
from tiny_runs import TINY, Child, command, only, run_and_die, tiny_file


def test_help_needs_no_heavy_module(tmp_path):
    code = (
        "import sys; sys.argv = ['segdistill', sys.argv[1]]\n"
        "from segdistill.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = ('torch', 'timm', 'lightning', 'transformers', 'torchvision', 'scipy', 'numpy', 'PIL', 'jinja2')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "Usage: segdistill" in done.stdout
    for name in ("demo", "run", "evaluate", "report", "list", "data"):
        assert f"  {name} " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_lists_show_every_table(call):
    for what, names in (("encoders", [*ENCODERS, "timm:NAME"]), ("heads", HEADS), ("methods", METHODS),
                        ("generalizers", GENERALIZERS)):  # fmt: skip
        status, out, _ = call("list", what)
        assert status == 0
        assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")][1:] == list(names)
        assert max(map(len, out.splitlines())) <= 100
    domains = call("list", "domains")[1]
    assert "night" in domains
    assert "unseen" in domains
    recipes = call("list", "recipes")[1]
    assert "world_pretrain_teacher " in recipes
    assert "/" not in recipes.splitlines()[1].split()[0]
    tables = call("list", "tables")[1]
    assert "table1_world " in tables
    assert "table1_gtav " in tables
    assert "weights" in call("list", "weights")[1]


def test_preview_writes_a_picture_of_the_named_domains(call, tmp_path):
    path = tmp_path / "sheet.png"
    status, out, _ = call("data", "preview", "--out", path, "--domains", "fog, proxy", "--count", 2, "--height", 32)
    assert status == 0
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert f"{picture.width} x {picture.height} pixels, 2 domains" in out
        pixels = np.asarray(picture.convert("RGB"))
    drawn = world.render("proxy", "train", 1, size=(32, 64))
    assert np.array_equal(pixels[-82:-50, -70:-6], drawn.image)  # the last image, and its label below
    assert np.array_equal(pixels[-44:-12, -70:-6], colorize(drawn.label, world.COLORS.tolist()))


def test_a_data_set_is_sampled_prepared_and_checked(call, complaint, tmp_path):
    size = ("--images", 1, "--size", 32, 64)
    status, out, _ = call("data", "sample", "mapillary", "--out", tmp_path / "raw", "--zip", *size)
    assert (status, out) == (0, f"{tmp_path / 'raw' / 'mapillary'}: 1 archive\n")
    arguments = ("data", "prepare", "mapillary_half", "--root", tmp_path / "raw", "--out", tmp_path / "out")
    for made in ("2 files made, 0 kept", "0 files made, 2 kept"):
        status, out, _ = call(*arguments, "--processes", 1)
        assert status == 0
        assert made in out
    status, out, _ = call("data", "check", "mapillary_half", "--root", tmp_path / "out", "--processes", 1)
    assert status == 0
    assert "mapillary_half: can be used for evaluation" in out
    assert "unknown sample 'gta': did you mean 'gtav'" in complaint("data", "sample", "gta", "--out", tmp_path)
    assert "contains a sample with other settings" in complaint(
        "data", "sample", "mapillary", "--out", tmp_path / "raw"
    )
    assert "acdc needs no preparation" in complaint(
        "data", "prepare", "acdc", "--root", tmp_path, "--out", tmp_path / "x"
    )


def test_a_run_on_the_command_line_ends_with_a_table_and_a_page_and_two_can_be_compared(call, tmp_path, finished):
    folder, recipe = shutil.copytree(finished, tmp_path / "a"), tiny_file(tmp_path)
    status, out, err = call("run", recipe, "--out", folder, "title=Tiny one")
    assert status == 0, err
    assert [line for line in err.splitlines() if "finished" in line][:1] == ["00-teacher: finished"]
    student = json.loads((folder / "results.json").read_text())["models"]["student"]
    assert f"{100 * student['mean_unseen']:.1f}" in next(line for line in out.splitlines() if "Tiny one" in line)
    assert "<html" in (folder / "report.html").read_text()
    other = shutil.copytree(finished, tmp_path / "b")
    results = json.loads((other / "results.json").read_text())
    del results["digest"]
    (other / "results.json").write_text(json.dumps(results | {"name": "second", "title": "Tiny two"}))
    status, out, err = call("report", folder, other, "--out", tmp_path / "both.html")
    assert status == 0, err
    assert "Tiny one" in out
    assert "Tiny two" in out
    assert "<html" in (tmp_path / "both.html").read_text()


def test_evaluate_scores_other_domains(call, tmp_path, finished):
    changes = ["evaluate.domains=[dusk]", "evaluate.unseen=[]", "evaluate.images=1"]
    status, out, _ = call("evaluate", finished, *changes, "--out", tmp_path / "scores")
    assert status == 0
    assert "dusk" in out
    assert (tmp_path / "scores" / "report.html").is_file()


def test_evaluate_takes_names_of_data_with_their_splits(call, complaint, tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    status, out, _ = call("evaluate", folder, "--data", "dusk:val", "game", "evaluate.images=1")
    assert status == 0
    assert "dusk" in out
    results = json.loads((folder / "on/dusk_val-game/results.json").read_text())
    assert (results["source"], results["unseen"]) == (["game"], ["dusk"])
    assert (folder / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert (folder / "on/dusk_val-game/report.html").is_file()
    assert "--root only works with --data" in complaint("evaluate", folder, "--root", tmp_path)
    assert "not of the form key=value" in complaint("evaluate", folder, "game")


RECIPES = [
    ("seed=one", "seed: Input should be a valid integer.*got 'one'"),
    ("stages.task.stepz=1", "stepz: unknown key; did you mean 'steps'"),
    ("evaluate.imagse=1", "evaluate.imagse: unknown key; did you mean 'images'"),
    ("stages.agnostic.method.type=gdk", "unknown method 'gdk': did you mean 'gkd'. allowed: .*gkd"),
    ("student.encoder.name=world_studnet", "unknown encoder 'world_studnet': did you mean 'world_student'"),
    ("student.head.type=semfp", "unknown head 'semfp': did you mean 'semfpn'"),
    ("stages.task.type=tsk", "unknown stage type 'tsk': did you mean 'task'"),
    ("stages.task.type=[task]", "unknown stage type"),
    ("stages.task.data.domains=[gmae]", "unknown domain 'gmae': did you mean 'game'"),
    ("evaluate.domains=[game,fog,rian,rain]", "evaluate: unknown domain 'rian': did you mean 'rain'"),
    ("data.classes=world31", "unknown label space 'world31': did you mean 'world13'"),
    ("stages.task.name=agnostic", "stage names must differ; agnostic appears twice"),
    ("stages.tusk.steps=1", "no 'tusk' there; did you mean 'task'. allowed: teacher, agnostic, task"),
    ("stages.7.steps=1", "no '7' there"),
    ("seed", "not of the form key=value"),
    ("seed=[", "not valid YAML"),
    ("log_every.x=1", "'log_every' is a value, not a group"),
    ("evaluate.unseen=[game]", "stage teacher is trained on 'game'; remove it from 'unseen'"),
    ("evaluate.splits={night: val}", "splits names night, missing from 'domains'"),
    ("evaluate.unseen=[night]", "unseen names night, missing from 'domains'"),
    ("evaluate.validation=[fog]", "fog: validation domains cannot count as unseen"),
    ("student=null", "stage agnostic needs a student"),
    ("teacher=null", "stage teacher needs a teacher"),
    ("student.head=null", "stage task needs a head for the student"),
    ("stages.task.freeze_encoder=true", "a distillation term cannot train a frozen encoder"),
    ("stages.task.method=null", "proxy images are for the distillation term"),
    ("stages.task.data.domains=[game,proxy]", "domain 'proxy' has no labels"),
    ("evaluate.domains=[proxy,fog,rain]", "evaluate: domain 'proxy' has no labels"),
    ("data.size=[30,64]", "30 x 64 is not divisible by the patch 8.*32 x 64"),
    ("stages.agnostic.steps=0", "steps: Input should be greater than or equal to 1, got 0"),
    ("student.encoder.weights=none.safetensors", "no encoder weights at 'none.safetensors'"),
    ("student.encoder.weights=shipped:nothing", "no shipped weights 'nothing'"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), RECIPES)
def test_a_mistake_in_a_recipe_is_one_line(complaint, tmp_path, override, message):
    line = complaint("run", tiny_file(tmp_path), override, "--out", tmp_path / "run")
    assert re.search(message, line), line
    assert len(line) < 400, line


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "a recipe is a mapping"), ("", "a recipe is a mapping"),
     ("name: x", "stages: is missing"), ("name: x\nstages: [3]", "a stage is {type: ..., settings}")],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_one_line(complaint, tmp_path, text, message):
    assert message in complaint("run", tiny_file(tmp_path, text))


def test_all_problems_of_a_recipe_are_told_at_once(complaint, tmp_path):
    line = complaint("run", tiny_file(tmp_path), "seed=x", "bogus=1", "stages.0.steps=0", "student.encoder.name=x")
    for part in ("seed: ", "bogus: unknown key", "steps: Input should be greater", "unknown encoder 'x'"):
        assert part in line
    line = complaint("run", tiny_file(tmp_path), "data.size=[30,64]", "data.classes=x", "stages.task.name=agnostic")
    for part in ("appears twice", "not divisible", "unknown label space"):
        assert line.count(part) == 1, line
    line = complaint("run", tiny_file(tmp_path), "stages.task.data.domains=[y]", "evaluate.domains=[z]",
                     "evaluate.unseen=[]", "student.encoder.weights=none")  # fmt: skip
    for part in ("stage task: unknown domain 'y'", "evaluate: unknown domain 'z'"):
        assert line.count(part) == 1, line


def test_missing_files_and_folders_are_one_line(complaint, tmp_path, finished):
    assert "no recipe at" in complaint("run", tmp_path / "none.yaml")
    assert "not a run folder with stages" in complaint("run", tiny_file(tmp_path), "--reuse", tmp_path / "none")
    assert "no recipe at" in complaint("evaluate", tmp_path / "none")
    assert "unknown list 'encoder': did you mean 'encoders'" in complaint("list", "encoder")
    assert "unknown domain 'fgo'" in complaint("data", "preview", "--domains", "fgo", "--out", tmp_path / "x.png")
    (tmp_path / "file").write_text("")
    assert "cannot write to" in complaint("run", tiny_file(tmp_path), "--out", tmp_path / "file" / "run")
    assert "file" in complaint("data", "preview", "--count", 1, "--height", 32, "--out", tmp_path / "file" / "x.png")


def damaged(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_folder_of_another_recipe_is_left_alone(complaint, tmp_path, finished):
    line = complaint("run", tiny_file(tmp_path), "seed=1", "--out", finished)
    assert "holds a run with different seed; choose another --out or delete it" in line
    changed = shutil.copytree(finished, tmp_path / "run")
    path = changed / "stages/01-agnostic/manifest.json"
    write_signed(path, json.loads(path.read_text()) | {"fingerprint": "0"})
    assert "was made with other settings or weights" in complaint("run", tiny_file(tmp_path), "--out", changed)


def test_asking_for_a_gpu_that_is_not_there_is_one_line(complaint, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = complaint("run", tiny_file(tmp_path), "accelerator=cuda", "--out", tmp_path / "run")
    assert "torch sees no GPU here; use accelerator=cpu" in line


def test_weights_that_are_damaged_or_of_another_encoder_are_one_line(complaint, tmp_path, finished):
    path = tmp_path / "encoder.safetensors"
    shutil.copy(finished / "stages/01-agnostic/encoder.safetensors", path)
    recipe = tiny_file(tmp_path, only("teacher", evaluate=None))
    run = ["run", recipe, "--out", tmp_path / "run", f"teacher.encoder.weights={path}"]
    assert "does not fit world_teacher" in complaint(*run)
    shutil.rmtree(tmp_path / "run")
    damaged(path)
    assert "is damaged or not a safetensors file" in complaint(*run)


DISTILL = {"text": only("agnostic", evaluate=None, checkpoint_every=1)}


@pytest.mark.parametrize("fatal", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(complaint, tmp_path, monkeypatch, fatal):
    forward, calls = GKD.forward, []

    def spoiled(self, student, teacher):
        terms = forward(self, student, teacher)
        calls.append(1)
        return {name: term * (math.inf if len(calls) > fatal else 1) for name, term in terms.items()}

    monkeypatch.setattr(GKD, "forward", spoiled)
    recipe = tiny_file(tmp_path, **DISTILL)
    line = complaint("run", recipe, "--out", tmp_path / "run")
    assert "the loss is not finite (" in line
    assert "stage 00-agnostic, step " in line
    step = int(line.partition("step ")[2].partition(":")[0])
    folder = tmp_path / "run/stages/00-agnostic/checkpoint"
    state = checkpoint.load(folder, 8)
    assert state is None if step == 0 else state["step"] == step
    assert f"with another --out; --reuse {tmp_path / 'run'} keeps its finished stages" in line


def test_a_disk_that_is_full_in_the_middle_of_a_file_leaves_the_earlier_checkpoint(tmp_path):
    recipe, output = tiny_file(tmp_path, **DISTILL), tmp_path / "output"
    arguments = (recipe, tmp_path / "run", tmp_path / "trace", ("00-agnostic", 2))
    assert Child(output, run_and_die, *arguments).wait() == -9
    folder = tmp_path / "run/stages/00-agnostic/checkpoint"
    assert [path.name for path in folder.iterdir()] == ["step-00000001.pt"]
    child = Child(output, command, ["run", str(recipe), "--out", str(tmp_path / "run")], 2_000_000)
    assert child.wait() == 2, child.text()
    assert "Traceback" not in child.text()
    assert "segdistill: cannot write the checkpoint of step 2" in child.text()
    assert [path.name for path in folder.iterdir()] == ["step-00000001.pt"]
    assert checkpoint.load(folder, 8)["step"] == 1


def test_a_full_disk_elsewhere_is_one_line(complaint, tmp_path, finished, monkeypatch):
    folder, sync = shutil.copytree(finished, tmp_path / "run"), os.fsync

    def full(handle):
        if "results.json" in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in complaint("run", tiny_file(tmp_path), "--out", folder)
    assert (folder / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def test_an_interruption_says_how_to_go_on(call, monkeypatch):
    def interrupt(rows):
        raise KeyboardInterrupt

    monkeypatch.setattr("segdistill.cli.commands.print_table", interrupt)
    status, _, err = call("list", "methods")
    assert status == 130
    assert err.splitlines()[-1] == "segdistill: interrupted (SIGINT); the same command continues where it stopped"


def test_the_tiny_recipe_has_every_stage_type_but_those_of_objects():
    from segdistill.recipe import STAGES

    ours = {stage["type"] for stage in yaml.safe_load(TINY)["stages"]}
    assert ours | {"semi", "pseudo_label", "open_vocabulary", "inherit"} == set(
        STAGES
    )  # tests/stages has a recipe of each


def test_a_recipe_with_steps_in_quotes_is_announced(capsys):
    commands._announce("x", {"stages": [{"steps": "300"}, {"steps": 5}, {}]})
    assert capsys.readouterr().err == "x: 3 stages, 305 steps\n"


def test_a_table_under_torchrun_is_refused(complaint, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert "bench starts processes of its own: run it without torchrun" in complaint("bench", "table1_world")
