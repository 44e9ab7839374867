"""The accelerator's script in its tiny form: every measurement runs, and the page names those that did not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "accelerator.py"


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("accelerator", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["accelerator"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_measurement_of_the_tiny_form_is_made(accelerator, tmp_path):
    bench = accelerator.Bench(accelerator.TINY, 10.0, tmp_path, "abc")
    accelerator.run(bench, 1, accelerator.PARTS)
    assert bench.left == []
    found = json.loads((tmp_path / "accelerator.json").read_text())
    parts = [row["part"] for row in found["rows"]]
    names = "Distillation step", "One QSD head", "Patch embedding", "Task step", "Evaluation by windows"
    assert set(parts) == {*names, "Input pipeline"}
    for row in found["rows"]:
        assert row["images_per_s"] == pytest.approx(row["images"] / row["seconds"])
        if row["part"] == "Input pipeline":
            assert row["share"] is None
            continue
        assert row["share"] == pytest.approx(row["flops"] / row["seconds"] / found["peak"])
    flops = {row["name"].rpartition(": ")[2]: row["flops"] for row in found["rows"] if row["part"] == parts[0]}
    assert flops["cached"] < flops["ours"] < flops["naive"]  # no teacher; one pass of B + B / 2 for two of B
    page = (tmp_path / "accelerator.md").read_text()
    assert all(f"| {row['name']} |" in page for row in found["rows"])


def test_what_no_time_is_left_for_or_fails_is_named(accelerator, tmp_path):
    late = accelerator.Bench(accelerator.TINY, 0.0, tmp_path, "abc")
    late.measure("Part", "late", lambda images: pytest.fail("it was begun"), 1)
    bench = accelerator.Bench(accelerator.TINY, 1.0, tmp_path, "abc")
    bench.measure("Part", "broken", lambda images: 1 / 0, 1)
    assert late.left == ["Part: late"]
    assert bench.left == ["Part: broken: ZeroDivisionError: division by zero"]
    assert "- Part: broken: ZeroDivisionError" in bench.page()
