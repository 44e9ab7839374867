"""Real data through the command line: a recipe on Cityscapes and ACDC in their official layouts, and `data check`."""

from __future__ import annotations

import json
import re

import pytest

from segdistill.recipe import load
from segdistill.runs.execute import fingerprints
from tiny_runs import Child, command
from tiny_sets import truncate, write

RECIPE = """
name: real
data: {{source: files, size: [32, 64], root: {root}}}
teacher: {{encoder: {{name: world_teacher}}}}
student: {{encoder: {{name: world_student}}, head: {{type: semfpn, width: 8}}}}
stages:
  - {{type: distill, name: agnostic, data: {{domains: [imagenet]}}, batch: 2, steps: 2, method: {{type: gkd}}}}
  - type: task
    name: task
    data: {{domains: [cityscapes, "acdc:fog"], fraction: 1/2, weights: [3, 1]}}
    batch: 2
    steps: 2
    freeze_encoder: true
evaluate: {{domains: [cityscapes, "acdc:night"], unseen: ["acdc:night"], split: val, images: null, pictures: 1}}
accelerator: cpu
precision: 32-true
"""


@pytest.fixture
def root(tmp_path):
    write("cityscapes", tmp_path / "sets", layout=1, count=4)
    write("acdc", tmp_path / "sets")
    write("imagenet", tmp_path / "sets")
    (tmp_path / "real.yaml").write_text(RECIPE.format(root=tmp_path / "sets"))
    return tmp_path


def test_a_recipe_on_real_layouts_runs_and_says_which_images_it_used(call, root):
    status, _, err = call("run", root / "real.yaml", "--out", root / "run")
    assert status == 0, err
    results = json.loads((root / "run/results.json").read_text())
    assert results["classes"][0] == "road"
    domains = results["models"]["student"]["domains"]
    assert {name: scores["images"] for name, scores in domains.items()} == {"cityscapes": 4, "acdc:night": 2}
    assert len((root / "run/stages/00-agnostic/images.txt").read_text().splitlines()) == 2
    used = (root / "run/stages/01-task/images.txt").read_text().splitlines()
    assert [line.split("/")[0] for line in used] == ["cityscapes", "cityscapes", "acdc:fog"]
    status, _, err = call("run", root / "real.yaml", "--out", root / "run")
    assert [line for line in err.splitlines() if "finished" in line] == ["00-agnostic: finished", "01-task: finished"]


def test_a_fingerprint_knows_the_images_and_not_their_place(root):
    before = fingerprints(load(root / "real.yaml"))
    (root / "sets").rename(root / "moved")
    moved = fingerprints(load(root / "real.yaml", [f"data.root={root / 'moved'}"]))
    assert moved == before
    write("acdc", root / "moved", count=3)
    more = fingerprints(load(root / "real.yaml", [f"data.root={root / 'moved'}"]))
    assert more[0] == before[0]
    assert more[1] != before[1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.root=nowhere", "stage agnostic: no ImageNet-1k.*at nowhere/imagenet; expected there: train/.*get it"),
        ("stages.task.data.domains=[imagenet,cityscapes]", "stage task: domain 'imagenet' has no labels"),
        ("evaluate.split=test", "evaluate: the labels of cityscapes's split 'test' are not public; use split: val"),
        ("evaluate.images=50", "evaluate: cityscapes: images 0 to 50 of split 'val' are requested, and it has 4"),
        ("stages.task.data.fraction=7", "fraction: Input should be less than or equal to 1"),
        ("stages.task.data.weights=[1]", "weights has 1 numbers for 2 domains"),
        ("data.on_bad_sample=ignore", "on_bad_sample: Input should be 'error' or 'skip'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(call, root, override, message):
    status, out, err = call("run", root / "real.yaml", override, "--out", root / "run")
    lines = [line for line in err.splitlines() if line.startswith("segdistill: ")]
    assert status == 2, out + err
    assert len(lines) == 1, err
    assert re.search(message, lines[0]), lines[0]
    assert not (root / "run").exists()


def test_a_damaged_image_ends_a_run_in_one_line(root):
    for path in (root / "sets/cityscapes/leftImg8bit/train").rglob("*.png"):
        truncate(path)
    child = Child(
        root / "output", command, ["run", str(root / "real.yaml"), "--out", str(root / "run")]
    )  # here, the type checker would read an image too
    assert child.wait() == 2, child.text()
    (line,) = [line for line in child.text().splitlines() if "segdistill: " in line]
    assert line.endswith("_leftImg8bit.png: is damaged: image file is truncated")
    assert "Traceback" not in child.text()


def test_check_prints_what_it_found_and_its_status_says_whether_to_train(call, root):
    sets = root / "sets"
    status, out, _ = call("data", "check", "cityscapes", "--root", sets, "--processes", 1)
    assert status == 0
    assert "cityscapes: can be used for training" in out
    assert "train: 4 images, officially 2975" in out
    assert re.search(r"road +\d", out)
    truncate(next((sets / "cityscapes/leftImg8bit/val").rglob("*.png")))
    status, out, _ = call("data", "check", "cityscapes", "--root", sets, "--processes", 1)
    assert status == 1
    assert re.search(r"val, faults: .*_leftImg8bit.png: is damaged", out)
    assert "cityscapes: not usable: split val has faults" in out
    status, _, err = call("data", "check", "voc2012", "--root", sets)
    assert status == 2
    assert "segdistill: split 'train': no Pascal VOC" in err or "segdistill: no Pascal VOC" in err


def test_check_takes_a_description_of_your_own(call, root):
    (root / "dataset.yaml").write_text("labels: null\nimages: sets/imagenet\nsplits: {train: train}\n")
    for name in (root, root / "dataset.yaml"):
        status, out, _ = call("data", "check", name, "--processes", 1)
        assert status == 0
        assert "can be used for distillation" in out


def test_the_data_sets_are_listed(call):
    status, out, _ = call("data", "list")
    assert status == 0
    assert re.search(r"acdc +ACDC +19 +night snow fog rain +1080 x 1920", out)
    assert re.search(r"imagenet .* varies ", out)
