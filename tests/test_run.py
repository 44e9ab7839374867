"""Runs as processes see them: killed and continued, skipped, shared, scored again."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from lightning.fabric import Fabric
from safetensors.torch import load_file

from segdistill import environment
from segdistill.config import UserError
from segdistill.files import sealed_text
from segdistill.recipe import dump, load
from segdistill.runlog import Quiet
from segdistill.runs import folder as folders
from segdistill.runs.execute import fingerprints, run
from segdistill.runs.folder import settled
from segdistill.runs.rescore import evaluate_run
from segdistill.runs.score import Scored
from tiny_runs import Child, command, die_while_saving, only, run_and_die, tiny, tiny_file

STAGES = ("00-teacher", "01-agnostic", "02-task")


def weights(folder):
    """Every tensor that the stages left, by file."""
    return {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.glob("stages/*/*.safetensors"))}


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"], line["loss"], line["terms"], line["lr"]) for line in lines]


def assert_same_run(folder, other):
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    for file, tensors in ours.items():
        assert all(torch.equal(value, theirs[file][key]) for key, value in tensors.items()), file
    assert losses(folder) == losses(other)


class Record(Quiet):
    """What a run told its watcher."""

    def __init__(self):
        self.states, self.steps, self.works = [], [], set()

    def stage(self, label, steps, state):
        self.states.append((label, state))

    def step(self, label, step, steps, loss):
        self.steps.append((label, step))

    def work(self, what, done, total, skipped=0):
        self.works.add(what)


def test_a_run_killed_again_and_again_ends_as_an_uninterrupted_one(tmp_path, finished):
    recipe, folder, trace = tiny_file(tmp_path), tmp_path / "run", tmp_path / "trace"
    deaths = [
        (die_while_saving, "step-00000004.pt"),  # in the distillation stage: its checkpoint of step 2 is the newest
        (run_and_die, ("01-agnostic", 7)),
        (run_and_die, ("02-task", 0)),  # between the stages
        (die_while_saving, "head.safetensors"),  # trained, not handed over: continues from its last checkpoint
        (run_and_die, ("02-task", 3)),
    ]
    begins = []
    for target, where in deaths[:4]:
        trace.write_text("")
        child = Child(tmp_path / "output", target, recipe, folder, trace, where)
        assert child.wait() == -9, child.text()
        begins.append(trace.read_text().splitlines()[:1])
    shutil.rmtree(folder / "stages" / "02-task")  # once more, killed in the middle
    trace.write_text("")
    assert Child(tmp_path / "output", *deaths[4][:1], recipe, folder, trace, deaths[4][1]).wait() == -9
    trace.write_text("")
    child = Child(tmp_path / "output", run_and_die, recipe, folder, trace, None)
    assert child.wait() == 0, child.text()
    begins.append(trace.read_text().splitlines()[:1])
    assert begins == [["00-teacher 1"], ["01-agnostic 3"], ["01-agnostic 7"], ["02-task 1"], ["02-task 3"]]
    assert_same_run(folder, finished)
    ours, theirs = (json.loads((path / "results.json").read_text()) for path in (folder, finished))
    assert ours["retention"] == theirs["retention"]
    for role in ("teacher", "student"):
        assert ours["models"][role]["domains"] == theirs["models"][role]["domains"]
    assert not list(folder.glob("stages/*/checkpoint"))


def test_a_stage_that_reads_logits_continues_exactly_and_saves_no_teacher(tmp_path, finished):
    text = only("teacher", "task", name="logits", evaluate=None).replace("type: gkd", "type: logit_kd")
    recipe, folder, trace = tiny_file(tmp_path, text), tmp_path / "killed", tmp_path / "trace"
    record = Record()
    run(load(recipe), tmp_path / "whole", reuse=[finished], watcher=record)
    assert record.states == [("00-teacher", "reused"), ("01-task", "running")]
    shutil.copytree(tmp_path / "whole" / "stages" / "00-teacher", folder / "stages" / "00-teacher")
    child = Child(tmp_path / "output", run_and_die, recipe, folder, trace, ("01-task", 5))
    assert child.wait() == -9, child.text()
    kept = torch.load(folder / "stages" / "01-task" / "checkpoint" / "step-00000004.pt", weights_only=True)
    assert set(kept["modules"]) == {"head", "encoder", "method", "presence"}
    assert kept["modules"]["method"] == {}
    run(load(recipe), folder)
    assert_same_run(folder, tmp_path / "whole")
    assert {term for _, _, _, terms, _ in losses(folder) for term in terms} == {"cross_entropy", "presence", "pixel"}
    assert sorted(path.name for path in (folder / "stages" / "01-task").iterdir()) == [
        "encoder.safetensors", "head.safetensors", "images.txt", "manifest.json", "proxy_images.txt"]  # fmt: skip


def test_logits_come_from_the_head_that_the_teachers_stage_left(tmp_path, finished):
    """A teacher's head that was trained otherwise gives another first loss."""
    text = only("teacher", "task", name="logits", evaluate=None).replace("type: gkd", "type: logit_kd")
    first = []
    for number, steps in enumerate((2, 3)):
        short = [f"stages.teacher.steps={steps}", "stages.task.steps=1"]
        folder = tmp_path / str(number)
        run(load(tiny_file(tmp_path, text), short), folder, reuse=[finished])
        first.append(losses(folder)[-1][3])
    assert first[0]["cross_entropy"] == first[1]["cross_entropy"]
    assert first[0]["pixel"] != first[1]["pixel"]


def test_a_finished_run_trains_and_scores_nothing_again(tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    before, record = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/*")}, Record()
    again = run(tiny(tmp_path), folder, watcher=record)
    assert record.states == [(label, "finished") for label in STAGES]
    assert record.steps == []
    assert not [what for what in record.works if "scoring" in what]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/*")} == before
    assert again["models"] == json.loads((finished / "results.json").read_text())["models"]


def test_equal_stages_of_another_run_are_copied_and_others_are_trained(tmp_path, finished):
    recipe = load(tiny_file(tmp_path, only("teacher", "task", name="companion")), ["stages.task.steps=1"])
    record = Record()
    results = run(recipe, tmp_path / "run", reuse=[finished], watcher=record)
    assert record.states == [("00-teacher", "reused"), ("01-task", "running")]
    assert {label for label, _ in record.steps} == {"01-task"}
    copy = weights(tmp_path / "run")["stages/00-teacher/head.safetensors"]
    original = weights(finished)["stages/00-teacher/head.safetensors"]
    assert all(torch.equal(copy[key], original[key]) for key in original)
    assert "scoring the teacher on fog" not in record.works  # its scores came along
    assert "scoring the student on fog" in record.works
    theirs = json.loads((finished / "results.json").read_text())
    assert results["models"]["teacher"] == theirs["models"]["teacher"]
    assert (tmp_path / "run" / "pictures" / "teacher" / "fog-0.png").is_file()


def test_a_stage_with_a_seed_of_its_own_is_shared_by_runs_of_all_seeds(tmp_path):
    one, other = (fingerprints(tiny(tmp_path, "stages.agnostic.seed=7", f"seed={seed}")) for seed in (0, 1))
    assert [a == b for a, b in zip(one, other, strict=True)] == [False, True, False]
    assert one[1] != fingerprints(tiny(tmp_path, "stages.agnostic.seed=8"))[1]


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "stages.teacher.steps=1",
        "stages.teacher.optimizer.lr=0.1",
        "data.redraw=1",
        "teacher.head.width=16",
    ],
)
def test_a_stage_of_other_settings_is_not_taken_from_another_run(tmp_path, finished, change):
    recipe = load(tiny_file(tmp_path, only("teacher", evaluate=None)), [change])
    record = Record()
    run(recipe, tmp_path / "run", reuse=[finished], watcher=record)
    assert record.states == [("00-teacher", "running")]


def test_a_folder_from_before_a_setting_existed_continues(tmp_path, finished):
    """A setting that the stored recipe does not have has its default."""
    folder = shutil.copytree(finished, tmp_path / "run")
    stored = yaml.safe_load((folder / "recipe.yaml").read_text())
    del stored["strategy"], stored["stages"][1]["accumulate"], stored["evaluate"]["corrupt"]
    (folder / "recipe.yaml").write_text(sealed_text(yaml.safe_dump(stored, sort_keys=False)))
    record, recipe = Record(), load(tiny_file(tmp_path))
    run(recipe, folder, watcher=record)
    assert {state for _, state in record.states} == {"finished"}
    with pytest.raises(UserError, match="different stages"):
        run(load(tiny_file(tmp_path), ["stages.agnostic.accumulate=2"]), folder)


def test_results_have_what_the_report_reads_and_retention_is_the_ratio_of_the_means_over_unseen(finished):
    results = json.loads((finished / "results.json").read_text())
    assert results["format"] == 1
    assert (results["name"], results["seed"]) == ("tiny", 0)
    assert (results["source"], results["unseen"], results["validation"]) == (["game"], ["fog", "rain"], [])
    assert len(results["classes"]) == len(results["colors"]) == 13
    assert [stage["name"] for stage in results["stages"]] == ["teacher", "agnostic", "task"]
    means = {}
    for role, model in results["models"].items():
        assert set(model["domains"]) == {"game", "fog", "rain"}
        means[role] = sum(model["domains"][name]["miou"] for name in ("fog", "rain")) / 2
        assert model["mean_unseen"] == pytest.approx(means[role], abs=1e-6)
        assert model["seconds"] > 0
    assert results["models"]["student"]["parameters"]["encoder"] == 1_238_672
    assert results["retention"] == pytest.approx(means["student"] / means["teacher"], rel=1e-3)
    assert results["environment"]["commit"]
    assert results["pictures"]["domains"] == {"game": [0], "fog": [0], "rain": [0]}
    first = {f"{name}-0.png" for name in ("game", "fog", "rain")}
    worst = {f"{name}-{index}.png" for name, ((index, _),) in results["pictures"]["worst"].items()}
    assert len(worst) == 3
    for kind, kept in {
        "image": first | worst,
        "truth": first | worst,
        "teacher": first,
        "student": first | worst,
    }.items():
        assert {path.name for path in (finished / "pictures" / kind).iterdir()} == kept


def test_manifests_name_their_files_and_their_settings(finished):
    for label in STAGES:
        manifest = json.loads((finished / "stages" / label / "manifest.json").read_text())
        assert set(manifest["files"]) == {path.name for path in (finished / "stages" / label).glob("*.safetensors")}
        assert manifest["settings"]["name"] == manifest["name"] == label[3:]
        assert manifest["commit"]
        assert manifest["hardware"]


def test_scoring_on_other_domains_leaves_the_run_as_it_is(tmp_path, finished):
    recipe = tiny(tmp_path)
    changed = tiny(tmp_path, "evaluate.domains=[game,night]", "evaluate.unseen=[night]", "evaluate.images=1")
    before = {path: path.read_bytes() for path in finished.rglob("*.json*")}
    results = evaluate_run(recipe, changed, finished, tmp_path / "scores")
    assert set(results["models"]["student"]["domains"]) == {"game", "night"}
    assert results["unseen"] == ["night"]
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["models"] == results["models"]
    assert {path: path.read_bytes() for path in finished.rglob("*.json*")} == before
    with pytest.raises(UserError, match="evaluate cannot change seed"):
        evaluate_run(recipe, tiny(tmp_path, "seed=3"), finished, tmp_path / "scores")


def test_changed_evaluation_settings_score_again_and_train_nothing(tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    record = Record()
    results = run(tiny(tmp_path, "evaluate.images=1", "evaluate.unseen=[rain]"), folder, watcher=record)
    assert record.states == [(label, "finished") for label in STAGES]
    assert "scoring the student on rain" in record.works
    student = results["models"]["student"]
    assert student["mean_unseen"] == pytest.approx(student["domains"]["rain"]["miou"])


def test_two_processes_train_the_same_student_as_one(tmp_path, image_cache):
    text = only("agnostic", name="pair", stages=[
        {"type": "distill", "name": "agnostic", "data": {"domains": ["proxy"], "images": 4}, "batch": 4, "steps": 3,
         "method": {"type": "mse"}, "optimizer": {"lr": 0.001, "lr_reference_batch": None}},
        {"type": "task", "name": "task", "data": {"domains": ["game"], "images": 4}, "batch": 2, "steps": 2,
         "freeze_encoder": True},
    ])  # fmt: skip
    recipe = tiny_file(tmp_path, text)
    run(load(recipe), tmp_path / "one")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
             "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}  # fmt: skip
    children = [
        Child(tmp_path / f"output-{rank}", command, ["run", str(recipe), "--out", str(tmp_path / "two")],
              environment=place | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip
    assert [child.wait() for child in children] == [0, 0], children[0].text() + children[1].text()
    one, two = (load_file(tmp_path / name / "stages/00-agnostic/encoder.safetensors") for name in ("one", "two"))
    start = load_file(tmp_path / "one/stages/00-agnostic/encoder.safetensors")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=2e-5, msg=key)
    assert start.keys() == one.keys()
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    seen = [sum(map(sum, result["models"]["student"]["domains"]["fog"]["confusion"])) for result in results]
    assert seen[0] == seen[1] > 0  # both processes' images were counted, each once


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_an_automatic_precision_is_the_machines_and_stays_that_of_a_begun_run(tmp_path, monkeypatch):
    """A run that moves to another machine goes on as it began, and so does one that came before the setting."""
    recipe = tiny(tmp_path, "precision=auto")
    monkeypatch.setattr(environment, "computes_bf16", lambda _: True)
    assert settled(recipe, tmp_path / "run").precision == "bf16-mixed"
    assert fingerprints(recipe) == fingerprints(tiny(tmp_path, "precision=bf16-mixed"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(sealed_text(dump(settled(recipe))))
    monkeypatch.setattr(environment, "computes_bf16", lambda _: False)
    assert settled(recipe).precision == "32-true"
    assert settled(recipe, tmp_path / "run").precision == "bf16-mixed"
    (tmp_path / "run" / "recipe.yaml").write_text("damaged")
    assert settled(recipe, tmp_path / "run").precision == "32-true"


def test_the_environment_in_the_results_is_from_before_the_scoring(tmp_path, monkeypatch):
    class Second(Fabric):
        is_global_zero = False

        def __init__(self):
            """No process but this one."""

        def barrier(self):
            """Nobody to wait for."""

    order = []
    monkeypatch.setattr(environment, "describe", lambda: order.append("environment"))
    monkeypatch.setattr(folders, "score", lambda *_, results, **__: order.append("score") or results)
    folders.write_results(tiny(tmp_path), [object.__new__(Scored)], [], tmp_path, fabric=Second(), watcher=Quiet())
    assert order == ["environment", "score"]
