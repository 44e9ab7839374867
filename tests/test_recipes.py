"""Every shipped recipe: it loads, its resolved form says the same, and two steps of each of its stages run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from segdistill import cli
from segdistill.demo import ARMS, SMOKE, recipes_folder, shortened
from segdistill.listing import recipes as listed
from segdistill.recipe import dump, load

RECIPES = sorted(recipes_folder().glob("*.yaml"))


def test_the_demonstration_and_the_list_show_recipes_that_are_there():
    assert {f"{arm}.yaml" for arm in ARMS} <= {path.name for path in RECIPES}
    assert [row[0] for row in listed()[1:]] == [str(path) for path in RECIPES]
    assert all(row[1] for row in listed())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_named_like_its_file_and_its_resolved_form_says_the_same(tmp_path, path):
    recipe = load(path)
    assert recipe.name == path.stem
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump(recipe), encoding="utf-8")
    assert load(resolved) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_steps_of_every_stage_run_on_the_command_line(tmp_path, monkeypatch, capsys, path):
    recipe, out = load(path), tmp_path / "run"
    small = [*shortened(recipe), *(change for change in SMOKE if recipe.evaluate or "evaluate" not in change)]
    monkeypatch.setattr(sys, "argv", ["segdistill", "run", str(path), *small, "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, capsys.readouterr().err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    labels = [f"{number:02d}-{stage.name}" for number, stage in enumerate(recipe.stages)]
    assert [(line["stage"], line["step"]) for line in lines] == [(label, step) for label in labels for step in (1, 2)]
    results = json.loads((out / "results.json").read_text())
    assert [stage["steps"] for stage in results["stages"]] == [2] * len(labels)
    if recipe.evaluate is not None:
        assert set(results["models"]["student"]["domains"]) == set(recipe.evaluate.domains)
        assert Path(out / "report.html").stat().st_size > 1000
