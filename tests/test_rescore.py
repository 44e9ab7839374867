"""What is trained already: task checkpoints, stages and runs without the files that they were trained on."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import task_files
from object_files import city_file, city_image, drawn, save
from segdistill.config import UserError
from segdistill.files import DIGEST, TEXT_MARK
from segdistill.recipe import change, load
from segdistill.runs.execute import run
from segdistill.runs.folder import fingerprints, model_from_files
from segdistill.runs.plan import make_plan
from segdistill.runs.score import load_model
from segdistill.world import LABEL_SPACES
from tiny_runs import TINY, only, tiny, tiny_file
from tiny_sets import write

CLASSES = tuple(LABEL_SPACES["world13"].names)
TASK = {"type": "task", "name": "task", "data": {"domains": ["game"], "images": 2}, "batch": 2, "steps": 1}
NETWORK = {"encoder": {"name": "tiny_task"}, "head": task_files.NARROW}
RECIPE = {
    "name": "lone", "data": {"size": [32, 64], "classes": "world13"}, "teacher": NETWORK, "student": NETWORK,
    "stages": [TASK], "evaluate": {"domains": ["fog", "rain"], "unseen": ["fog", "rain"], "images": 2, "pictures": 1},
    "accelerator": "cpu", "precision": "32-true",
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder_table():
    with pytest.MonkeyPatch.context() as patch:
        task_files.install(patch)
        yield


@pytest.fixture(scope="module")
def source(encoder_table):
    """The network that the checkpoints are written from. Not to be changed."""
    return task_files.network(CLASSES)


@pytest.fixture
def lone(tmp_path, source):
    """A folder with the recipe and a checkpoint of ``source``."""
    (tmp_path / "lone.yaml").write_text(yaml.safe_dump(RECIPE))  # with anchors: teacher and student are written once
    task_files.save_task(tmp_path / "iter_40000.pth", task_files.task_state(source), CLASSES)
    return tmp_path


@pytest.fixture
def told(call):
    """Call the command line: (exit status, stdout, the line in which it complains)."""

    def run(*arguments):
        status, out, err = call(*arguments)
        lines = [line for line in err.splitlines() if line.startswith("segdistill: ")]
        assert "Traceback" not in err
        assert len(lines) == (status == 2), err
        return status, out, lines[0] if lines else err

    return run


def filled(folder, file, *overrides):
    """The student with the weights in ``file``."""
    parts = [f"student.{part}.weights={file}" for part in ("encoder", "head")]
    recipe = change(load(folder / "lone.yaml"), [*parts, *overrides])
    return load_model(model_from_files(recipe, "student", folder), CLASSES)


@torch.no_grad()
def test_a_task_checkpoint_computes_what_the_network_computes_that_it_was_written_from(lone, source):
    images = torch.rand(2, 3, 32, 64, generator=torch.Generator().manual_seed(1))
    expected = source.scores(images)
    save_file(task_files.task_state(source), lone / "task.safetensors")
    for name in ("iter_40000.pth", "task.safetensors"):
        segmenter = filled(lone, lone / name)
        torch.testing.assert_close(segmenter.scores(images), expected, atol=1e-5, rtol=0)
        for part in (segmenter.encoder, segmenter.head):
            assert (part.loaded.share, part.loaded.unexpected) == (1.0 if part is segmenter.head else
                                                                   pytest.approx(1, abs=0.01), [])  # fmt: skip
    report = filled(lone, lone / "iter_40000.pth").head.loaded
    assert set(report.dropped) == {"meta", "message_hub", "optimizer"} | {
        key for key in task_files.task_state(source) if key.startswith("backbone.")
    }
    assert not torch.allclose(task_files.network(CLASSES, queries=7).scores(images), expected, atol=1e-3)


def test_a_checkpoint_is_scored_beside_its_file_as_its_network_would_be(told, lone, source):
    file = lone / "iter_40000.pth"
    status, out, err = told("evaluate", file, "--recipe", lone / "lone.yaml")
    assert status == 0, err
    results = json.loads((lone / "iter_40000-scores/results.json").read_text())
    model = results["models"]["student"]
    assert f"{100 * model['mean_unseen']:.1f}" in out
    assert (lone / "iter_40000-scores/report.html").is_file()
    assert (results["unseen"], results["retention"], results["stages"]) == (["fog", "rain"], None, [])
    assert set(model["weights"]) == {"encoder", "head"}
    assert "100.00 % of the parameters" in model["weights"]["head"]
    assert model["parameters"]["head"] == sum(p.numel() for p in source.head.parameters())
    recipe = load(lone / "lone.yaml")
    for name, scores in model["domains"].items():
        confusion = np.zeros((13, 13), int)
        for sample in recipe.data.open(recipe.evaluate.selection(recipe.data, name)):
            image = torch.tensor(sample.image).permute(2, 0, 1)[None] / 255
            known = sample.label != 255
            np.add.at(confusion, (sample.label[known], source.predict(image)[0].numpy()[known]), 1)
        assert scores["confusion"] == confusion.tolist()


def test_other_data_another_role_and_a_teachers_files_are_given_on_the_command_line(told, lone):
    file, recipe = lone / "iter_40000.pth", lone / "lone.yaml"
    files = [f"teacher.{part}.weights={file}" for part in ("encoder", "head")]
    status, _, err = told("evaluate", file, "--recipe", recipe, *files, "--data", "night", "game", "evaluate.images=1")
    assert status == 0, err
    results = json.loads((lone / "iter_40000-scores/on/night-game/results.json").read_text())
    assert (results["source"], results["unseen"], results["retention"]) == (["game"], ["night"], 1.0)
    status, _, err = told("evaluate", file, "--recipe", recipe, "--role", "teacher", "--out", lone / "x")
    assert status == 0, err
    assert json.loads((lone / "x/results.json").read_text())["models"]["student"]["title"] == "Teacher"


def without(pattern):
    return lambda state: {key: value for key, value in state.items() if not re.match(pattern, key)}


def resized(key, rows):
    return lambda state: state | {key: torch.ones(rows, *state[key].shape[1:])}


SEMFPN = "student.head={type: semfpn, width: 8}"


@pytest.mark.parametrize(
    ("change", "override", "message"),
    [
        (resized("decode_head.cls_embed.weight", 12), "seed=0", "knows 11 classes, the data has 13: take data"),
        (None, "data.classes=cityscapes19", "knows 13 classes, the data has 19"),
        (None, "student.head.width=128", "has the width 64, this mask2former 128: set head.width=64"),
        (without("decode_head"), "seed=0", r"has neither decode_head\.\* nor the keys of our mask2former: give"),
        (without("backbone"), "seed=0", r"has a task head \(decode_head\.\*\) and no backbone\.\*: give"),
        (without("decode_head.query_feat"), "seed=0", r"missing transformer.queries_features.weight; .*9\d\.\d % of"),
        (lambda state: state | {"decode_head.conv_seg.bias": torch.ones(13)}, "seed=0", "unexpected conv_seg.bias;"),
        (None, SEMFPN, "mmseg has no semfpn: choose the head mask2former"),
        (lambda state: state | {"decode_head.cls_embed.bias": torch.full((14,), torch.nan)}, "seed=0", "not finite"),
        (None, "student.head=null", "needs a head for the student"),
        (None, "student.head.weights=null", "the student's head has no weights: set student.head.weights"),
        (None, "student.encoder.name=deit_s", "does not fit deit_s"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(told, lone, source, change, override, message):
    file, state = lone / "iter_40000.pth", task_files.task_state(source)
    task_files.save_task(file, change(state) if change else state)
    _, _, line = told("evaluate", file, "--recipe", lone / "lone.yaml", override)
    assert re.search(message, line), line
    assert not (lone / "iter_40000-scores/results.json").exists()


def test_class_names_in_a_checkpoint_must_be_those_of_the_data(lone, source):
    state = task_files.task_state(source)
    renamed = [name.upper().replace(" ", "_") for name in CLASSES]
    assert filled(lone, task_files.save_task(lone / "iter_40000.pth", state, renamed)).num_classes == 13
    swapped = [CLASSES[1], CLASSES[0], *CLASSES[2:]]
    with pytest.raises(UserError, match=r"number 0 is 'sidewalk', in the data 'road'; .*keep its state_dict alone"):
        filled(lone, task_files.save_task(lone / "iter_40000.pth", state, swapped))


def test_a_mistake_in_what_to_score_is_one_line(told, lone, finished):
    file, recipe = lone / "iter_40000.pth", lone / "lone.yaml"
    moved = shutil.copytree(finished / "stages/02-task", lone / "02-task")
    for arguments, message in [
        ((file,), "iter_40000.pth is a checkpoint file: describe its network with --recipe RECIPE"),
        ((file, "--recipe", lone / "none.yaml"), "no recipe at .*none.yaml"),
        ((file, "--recipe", recipe, "--role", "both"), "unknown role 'both'"),
        ((file, "--recipe", recipe, "--root", lone), "--root only works with --data"),
        ((finished, "--recipe", recipe), "--recipe is for a checkpoint file"),
        ((lone / "none.pth",), "no recipe at .*give a run folder, the folder of one of its stages, or a checkpoint"),
        ((moved,), "is a stage outside its run folder"),
        ((finished / "stages/01-agnostic",), "01-agnostic trains no head: .*allowed: 00-teacher, 02-task"),
        ((finished / "stages/02-task", "--role", "student"), "--role student works for runs and files only"),
        ((finished, "teacher.head.weights=x"), "evaluate cannot change teacher"),
    ]:
        _, _, line = told("evaluate", *arguments)
        assert re.search(message, line), line


def test_one_stage_and_one_role_of_a_run_are_scored_alone(told, tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "stages/02-task")  # the stage before it is enough
    status, _, err = told("evaluate", folder / "stages/00-teacher", "evaluate.images=1")
    assert status == 0, err
    results = json.loads((folder / "on/00-teacher/results.json").read_text())
    assert list(results["models"]) == ["student"]
    assert [stage["name"] for stage in results["stages"]] == ["teacher"]
    assert "stages/02-task is not finished" in told("evaluate", folder, "--out", tmp_path / "x")[2]
    kept = json.loads((finished / "results.json").read_text())["models"]
    for role in ("teacher", "student"):
        whole = shutil.copytree(finished, tmp_path / role)
        assert told("evaluate", whole, "--role", role)[0] == 0
        assert json.loads((whole / "on" / role / "results.json").read_text())["models"] == {"student": kept[role]}
        assert (whole / "results.json").read_bytes() == (finished / "results.json").read_bytes()


def test_an_instance_run_is_scored_on_data_with_objects(told, tmp_path, finished_objects):
    folder = shutil.copytree(finished_objects, tmp_path / "run")
    assert told("evaluate", folder, "--data", "dusk", "evaluate.images=1")[0] == 0
    results = json.loads((folder / "on/dusk/results.json").read_text())
    assert (results["primary"], results["unseen"]) == ("ap", ["dusk"])
    assert results["models"]["student"]["domains"]["dusk"]["images"] == 1
    data = "cityscapes_instances:val"
    city_image(tmp_path)
    save(city_file(tmp_path, "instanceIds.png"), drawn([7, 24001, 26001, 26002]).astype(np.uint16))
    status, _, err = told("evaluate", folder, "--data", data, "--root", tmp_path, "--role", "student")
    assert status == 0, err
    scored = json.loads(next((folder / "on").rglob("cityscapes_instances*/results.json")).read_text())
    assert scored["models"]["student"]["domains"]["cityscapes_instances"]["ap"] is not None
    _, _, line = told("evaluate", folder, "--data", "cityscapes:val", "--root", tmp_path)
    assert "domain 'cityscapes' has class maps but no objects; choose one of: cityscapes_instances, " in line


def test_a_task_stage_starts_from_a_head_and_is_another_one_than_without(lone, source):
    file, still = lone / "iter_40000.pth", "stages.task.optimizer.lr=1e-12"
    fresh = load(lone / "lone.yaml", [still, "evaluate=null", "teacher=null"])
    recipe = change(fresh, [f"student.head.weights={file}"])
    assert any("mask2former <- " in line for line in make_plan(recipe, speed=1e9).weights)
    run(recipe, lone / "run")
    stage = lone / "run/stages/00-task"
    trained = load_file(stage / "head.safetensors")
    for key, value in source.head.state_dict().items():
        torch.testing.assert_close(trained[key], value, atol=1e-6, rtol=0)
    assert (
        "iter_40000.pth' (mmengine): 100.00 %" in json.loads((stage / "manifest.json").read_text())["weights"]["head"]
    )
    before = fingerprints(recipe)
    assert before != fingerprints(fresh)
    task_files.save_task(file, task_files.task_state(source), ["x"])
    assert fingerprints(recipe) != before
    with pytest.raises(UserError, match=r"number 0 is 'x', in the data 'road'"):
        run(recipe, lone / "again")
    assert not (lone / "again").exists()


def test_a_stage_of_ours_gives_its_head_and_says_its_classes(tmp_path, finished):
    text = only("task", evaluate=None, teacher=None)
    changes = ["stages.task.method=null", "stages.task.proxy=null", "stages.task.optimizer.lr=1e-12",
               f"student.head.weights={finished / 'stages/02-task'}"]  # fmt: skip
    run(load(tiny_file(tmp_path, text), changes), tmp_path / "run")
    ours, theirs = (load_file(path / "head.safetensors") for path in (
        tmp_path / "run/stages/00-task", finished / "stages/02-task"))  # fmt: skip
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in theirs)
    with pytest.raises(UserError, match=r"knows 13 classes, the data has 19"):
        run(load(tiny_file(tmp_path, text), [*changes, "data.classes=cityscapes19"]), tmp_path / "other")
    copy = shutil.copytree(finished / "stages/02-task", tmp_path / "copy")
    (copy / "head.safetensors").write_bytes((finished / "stages/00-teacher/head.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"differs from the sha256 in 'manifest.json'"):
        run(load(tiny_file(tmp_path, text), [*changes, f"student.head.weights={copy}"]), tmp_path / "other")
    with pytest.raises(UserError, match=r"no head weights at .*head.safetensors': give a task checkpoint"):
        run(load(tiny_file(tmp_path, text), [*changes, f"student.head.weights={tmp_path}"]), tmp_path / "other")


def test_a_teacher_from_files_gives_logits_and_retention_without_a_stage_of_its_own(tmp_path, finished):
    stage = finished / "stages/00-teacher"
    text = only("task", evaluate=yaml.safe_load(TINY)["evaluate"] | {"images": 1})
    logits = ["stages.task.method={type: logit_kd}", "stages.task.steps=1"]
    with pytest.raises(UserError, match=r"no earlier stage trains the teacher's head; .*teacher.head.weights"):
        load(tiny_file(tmp_path, text), logits)
    results = run(load(tiny_file(tmp_path, text), [*logits, f"teacher.head.weights={stage}"]), tmp_path / "run")
    assert results["retention"] is not None
    assert "teacher_head" in json.loads((tmp_path / "run/stages/00-task/manifest.json").read_text())["weights"]
    again = run(tiny(tmp_path, "evaluate.images=1"), shutil.copytree(finished, tmp_path / "whole"))
    assert results["models"]["teacher"]["domains"] == again["models"]["teacher"]["domains"]


FILES = """
name: real
data: {{source: files, size: [32, 64], root: {root}}}
student: {{encoder: {{name: world_student, weights: {weights}}}, head: {{type: semfpn, width: 8}}}}
stages:
  - {{type: task, name: task, data: {{domains: [gtav]}}, batch: 2, steps: 1, freeze_encoder: true}}
evaluate: {{domains: [cityscapes], unseen: [cityscapes], images: null, pictures: 0}}
accelerator: cpu
precision: 32-true
"""


@pytest.fixture
def moved(tmp_path, finished):
    """A run that was trained on GTAV where there is no GTAV any more, but ACDC and Potsdam."""
    weights = shutil.copy(finished / "stages/01-agnostic/encoder.safetensors", tmp_path / "start.safetensors")
    for name in ("gtav", "cityscapes"):
        write(name, tmp_path / "sets")
    (tmp_path / "real.yaml").write_text(FILES.format(root=tmp_path / "sets", weights=weights))
    run(load(tmp_path / "real.yaml"), tmp_path / "run")
    shutil.rmtree(tmp_path / "sets")
    write("acdc", tmp_path / "here", subsets=("night",))
    write("potsdam_rgb", tmp_path / "here")
    return tmp_path


def test_a_run_is_scored_where_only_the_scored_images_are(told, moved, monkeypatch):
    monkeypatch.delenv("SEGDISTILL_DATA", raising=False)
    ask = ("evaluate", moved / "run", "--data", "acdc:night", "--root", moved / "here")
    status, _, err = told(*ask)
    assert status == 0, err
    results = json.loads((moved / "run/on/acdc_night/results.json").read_text())
    assert (results["unseen"], results["models"]["student"]["domains"]["acdc:night"]["images"]) == (["acdc:night"], 2)
    for arguments, message in [
        (("run", moved / "real.yaml", "--out", moved / "x"), "stage task: no .*expected there: .*get it from"),
        (("run", moved / "real.yaml", "--dry-run"), "stage task: no .*expected there: "),
        (("evaluate", moved / "run"), "evaluate: no .*Cityscapes|evaluate: no Cityscapes"),
        ((*ask[:3], "potsdam_rgb", *ask[4:]), "was trained on the classes road, .*'potsdam_rgb' has impervious"),
    ]:
        _, _, line = told(*arguments)
        assert re.search(message, line), line


def test_a_scored_image_that_the_run_was_trained_on_is_told_if_its_images_are_still_there(told, moved):
    write("gtav", moved / "sets")
    scored = next((moved / "here").rglob("rgb_anon/night/val/**/*.png"))
    next((moved / "sets").rglob("images/*.png")).write_bytes(scored.read_bytes())
    ask = ("evaluate", moved / "run", "--data", "acdc:night", "--root", moved / "here", "--out", moved / "scores")
    line = (
        r"evaluate: 1 of the 2 images of 'acdc:night' are also read by stage task \(for example, .* is a copy of .*; "
    )
    status, _, err = told(*ask)
    assert (status, bool(re.search(line + "remove them from one of the two", err))) == (2, True), err
    assert not (moved / "scores").exists()
    status, _, err = told(*ask, "evaluate.unseen=[]")
    assert (status, bool(re.search("warning: " + line + "its score says nothing", err))) == (0, True), err


def test_what_a_run_was_made_of_is_checked_without_its_images(told, moved):
    ask = ("evaluate", moved / "run", "--data", "acdc:night", "--root", moved / "here")
    start, manifest, recipe = (moved / name for name in (
        "start.safetensors", "run/stages/00-task/manifest.json", "run/recipe.yaml"))  # fmt: skip
    kept = start.read_bytes()
    start.write_bytes(kept + b" ")
    assert "is not the file that the student started from" in told(*ask)[2]
    start.unlink()
    assert "the run folder does not hold the student's start weights: no encoder weights at" in told(*ask)[2]
    start.write_bytes(kept)
    text = recipe.read_text()
    recipe.write_text(text.replace("steps: 1", "steps: 2"))
    assert "is damaged or was edited" in told(*ask)[2]
    recipe.write_text(text.replace("steps: 1", "steps: 2").rpartition(TEXT_MARK)[0])  # the seal taken off
    assert "was made with other settings or weights" in told(*ask)[2]
    recipe.write_text(text)
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: value for key, value in content.items() if key not in ("origin", DIGEST)}))
    assert re.search("no .*GTA", told(*ask)[2])  # an older manifest: the images themselves must tell
