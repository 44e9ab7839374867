"""Every shipped recipe: it loads, its resolved form says the same, and two steps of each of its stages run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from official_files import NARROW
from segdistill.grid.demo import DEMOS, SMOKE, recipes_folder, shortened
from segdistill.listing import recipes as listed
from segdistill.recipe import dump, load

pytestmark = pytest.mark.usefixtures("official_files")


@pytest.fixture(autouse=True)
def _beside_the_facades(facades, monkeypatch):
    """The recipes real_* describe their data below the working folder."""
    monkeypatch.chdir(facades)


RECIPES = sorted(recipes_folder().glob("*.yaml"))
OBJECTS = ("ade20k_instance", "cityscapes_instance", "voc_detection", "voc_detection_gkd")
"""Real recipes with objects, which test_instance_recipes.py and test_detection.py run."""


def small(recipe):
    """Overrides that make a recipe run in seconds."""
    changes = shortened(recipe)
    if recipe.data.source == "world":
        return [*changes, *(change for change in SMOKE if recipe.evaluate or "evaluate" not in change)]
    own = [f"stages.{stage.name}.{key}=null" for stage in recipe.stages if stage.type == "distill"
           for key in ("size", "patch", "teacher_resample")]  # fmt: skip
    return [*changes, *own, *NARROW, *adapted(recipe)]


def adapted(recipe):
    """Overrides that keep the adapter of an encoder that another one stands in for."""
    models = {"student": recipe.student, "teacher": recipe.teacher}
    return [f"{role}.encoder.rein={{}}" for role, model in models.items() if model is not None and model.encoder.rein]


def test_the_demonstration_and_the_list_show_recipes_that_are_there():
    assert {f"{arm}.yaml" for arms in DEMOS.values() for arm in arms} <= {path.name for path in RECIPES}
    assert [row[0] for row in listed()[1:]] == [path.stem for path in RECIPES]
    assert all(row[1] for row in listed())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_named_like_its_file_and_its_resolved_form_says_the_same(tmp_path, path):
    recipe = load(path)
    assert recipe.name == path.stem
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump(recipe), encoding="utf-8")
    assert load(resolved).model_dump() == recipe.model_dump()


WORLD = [path for path in RECIPES if path.stem.startswith("world")]
REAL = [path for path in RECIPES if path not in WORLD and path.stem not in OBJECTS]


@pytest.mark.parametrize("path", WORLD, ids=lambda path: path.stem)
def test_two_steps_of_every_stage_run_on_the_command_line(tmp_path, call, path):
    recipe, out = load(path), tmp_path / "run"
    status, _, err = call("run", path, *small(recipe), "--out", out)
    assert not status, err
    check_run(recipe, out, 2, [1, 2])


def check_run(recipe, out, steps, logged):
    """Every stage trained for ``steps``, of which those in ``logged`` are in the log, and every domain was scored."""
    log = out / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    labels = [f"{number:02d}-{stage.name}" for number, stage in enumerate(recipe.stages) if stage.steps]
    assert [(line["stage"], line["step"]) for line in lines] == [(label, step) for label in labels for step in logged]
    results = json.loads((out / "results.json").read_text())
    assert [stage["steps"] for stage in results["stages"]] == [steps if stage.steps else 0 for stage in recipe.stages]
    if recipe.evaluate is not None:
        assert set(results["models"]["student"]["domains"]) == set(recipe.evaluate.domains)
        assert Path(out / "report.html").stat().st_size > 1000


def test_a_recipe_that_names_its_papers_table_shows_the_papers_numbers(tmp_path, call):
    path, out = recipes_folder() / "gtav_single_stage.yaml", tmp_path / "run"
    call("run", path, *small(load(path)), "--out", out)
    page = (out / "report.html").read_text()
    assert "Table 1, DINOv2-B to ViT-S" in page
    for number in ("58.8", "46.4", "54.1"):  # teacher, vanilla KD and GKD on GTAV's targets
        assert re.search(rf"<td[^>]*>{number}</td>", page)


@pytest.mark.parametrize("name", ["world_gkd", "world_vanilla_kd_proxy", "cityscapes_gkd", "endovis18_gkd"])
def test_a_dry_run_tells_the_stages_and_leaves_nothing(tmp_path, monkeypatch, call, name):
    monkeypatch.chdir(tmp_path)
    recipe = load(recipes_folder() / f"{name}.yaml")
    changes = small(recipe) if recipe.data.source == "files" else []
    status, printed, _ = call("run", recipes_folder() / f"{name}.yaml", *changes, "--dry-run")
    assert not status
    assert all(f"{number:02d}-{stage.name}" in printed for number, stage in enumerate(recipe.stages))
    assert "GFLOP/s assumed" in printed
    assert not any(tmp_path.iterdir())


def test_a_dry_run_names_weights_and_data_that_are_not_there(tmp_path, monkeypatch, call):
    arguments = ("run", recipes_folder() / "gtav_gkd.yaml", "accelerator=cpu", "--dry-run")
    status, _, line = call(*arguments)
    assert status == 2
    assert "dinov2_vitb14_pretrain.pth" in line
    assert "deit_small_distilled_patch16_224-649709d9.pth" in line
    monkeypatch.setenv("SEGDISTILL_DATA", str(tmp_path))
    assert "GTA5" in call(*arguments)[2]


def at_own_augmentation(recipe, steps):
    """Overrides that keep a real recipe's data sets, stages and augmentation, at a size that 50 steps take a second."""
    own = [f"stages.{stage.name}.{key}=null" for stage in recipe.stages if stage.type == "distill"
           for key in ("size", "patch", "teacher_resample")]  # fmt: skip
    return [*shortened(recipe, steps=steps), *own, *NARROW, "teacher.encoder={name: world_student}",
            *adapted(recipe), "log_every=10", "checkpoint_every=1000"]  # fmt: skip


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_fifty_steps_of_every_real_recipe_run_with_its_own_augmentation(tmp_path, call, path):
    recipe, out = load(path), tmp_path / "run"
    status, _, err = call("run", path, *at_own_augmentation(recipe, 50), "--out", out)
    assert not status, err
    resolved = load(out / "recipe.yaml")
    assert [stage.augment for stage in resolved.stages] == [stage.augment for stage in recipe.stages]
    check_run(recipe, out, 50, [10, 20, 30, 40, 50])
