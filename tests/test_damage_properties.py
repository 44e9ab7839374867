"""Any damage to a run folder: the same answer as before, or one line; never a traceback, never another answer."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mutations import damaged, spoiled
from segdistill.config import UserError
from segdistill.results import load_run
from tiny_runs import tiny_file

READ = ("results.json", "environment.json", "metrics.jsonl", "recipe.yaml", "stages/01-agnostic/manifest.json")
ALL = (*READ, "scores/student.json", "scores/teacher.npz", "pictures/teacher/fog-0.png",
       "stages/01-agnostic/encoder.safetensors", "stages/02-task/head.safetensors")  # fmt: skip
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def quick(examples):
    return settings(derandomize=True, max_examples=examples, deadline=None, suppress_health_check=FIXTURES)


@pytest.fixture(scope="module")
def copy(tmp_path_factory, finished):
    """A finished run to damage; whoever does puts the file back."""
    folder = tmp_path_factory.mktemp("damage")
    tiny_file(folder)
    return shutil.copytree(finished, folder / "run")


def spoil(draw, path):
    """Damage the file: its bytes, or, of JSON, one value."""
    data = path.read_bytes()
    if path.suffix == ".json" and draw(st.booleans()):
        path.write_text(json.dumps(draw(spoiled(json.loads(data), most=1))))
    else:
        path.write_bytes(draw(damaged(data)))
    return data


@quick(150)
@given(data=st.data(), name=st.sampled_from(READ))
def test_a_report_of_a_damaged_folder_is_the_same_or_one_line(copy, finished, data, name):
    """Of the log, whose end may be cut off, every line that is read is one that was written."""
    whole, said = load_run(finished).model_copy(update={"folder": copy}), ""
    before = spoil(data.draw, copy / name)
    try:
        run = load_run(copy)
        assert all(step in whole.log for step in run.log)
        assert name == "metrics.jsonl" or run.log == whole.log
        same = {"log": whole.log}
        if name == "recipe.yaml" and run.recipe is not None:
            same["recipe"] = whole.recipe
            assert whole.recipe.startswith(run.recipe) or "# sha256" not in run.recipe
        assert run.model_copy(update=same) == whole
    except UserError as error:
        said = str(error)
    finally:
        (copy / name).write_bytes(before)
    assert "\n" not in said


@quick(16)
@given(data=st.data(), name=st.sampled_from(ALL), command=st.sampled_from(("run", "run", "evaluate", "report")))
def test_a_command_on_a_damaged_folder_ends_equal_or_in_one_line(copy, finished, call, data, name, command):
    spoil(data.draw, copy / name)
    arguments = {
        "run": ("run", copy.parent / "tiny.yaml", "--out", copy),
        "evaluate": ("evaluate", copy),
        "report": ("report", copy, "--out", copy.parent / "page.html"),
    }
    status, out, err = call(*arguments[command])
    lines = [line for line in err.splitlines() if line.startswith("segdistill: ")]
    models = None
    if status == 0:
        models = json.loads((copy / "results.json").read_text())["models"]
    shutil.rmtree(copy)
    shutil.copytree(finished, copy)
    assert (status, len(lines)) in ((0, 0), (2, 1)), out + err
    assert "Traceback" not in err
    if models is not None:
        assert models == json.loads((finished / "results.json").read_text())["models"]
