"""The page on adding a method: its blocks, taken as they stand, are a method that passes every check and a run."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path

import pytest

import checks
from segdistill.methods import METHODS
from segdistill.recipe import load
from segdistill.runs.execute import run

PAGE = (Path(__file__).parents[1] / "docs" / "adding.md").read_text(encoding="utf-8")
CHECKS = [getattr(checks, name) for name in dir(checks) if name.startswith("check_") and name != "check_setting"]


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[number]


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The page's method, listed as the page says."""
    path = tmp_path / "cosine.py"
    path.write_text(block("python"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("cosine", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cosine", module)
    spec.loader.exec_module(module)
    name, cls = re.fullmatch(r'\s*"(\w+)": (\w+),\s*', block("text", 0)).groups()
    monkeypatch.setitem(METHODS, name, getattr(module, cls))
    monkeypatch.setitem(checks.PERTURBED, name, ast.literal_eval("{" + block("text", 1) + "}")[name])
    return name


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_example_passes_the_common_checks(added, check):
    check(added)


def test_every_setting_of_the_example_is_perturbed_and_acts(added):
    assert set(checks.PERTURBED[added]) == set(METHODS[added].Config.model_fields)
    for field in checks.PERTURBED[added]:
        checks.check_setting(added, field)


def test_the_example_recipe_runs(added, tmp_path):
    path = tmp_path / "world_cosine.yaml"
    path.write_text(block("yaml"), encoding="utf-8")
    assert len(block("yaml").splitlines()) <= 25
    short = ["data.size=[32,64]", "stages.task.steps=2", "stages.task.batch=2", "stages.task.data.images=4"]
    results = run(load(path, [*short, "evaluate.images=2", "evaluate.pictures=0"]), tmp_path / "run")
    assert set(results["models"]["student"]["domains"]) == {"game", "dusk", "haze"}
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"angle"' in log
