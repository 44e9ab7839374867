"""What a recipe's text shows is found without torch, in the words of the full check, and only what that finds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from mutations import spoiled
from segdistill.config import Config, UserError
from segdistill.generalize import GENERALIZERS
from segdistill.grid.table import cells_of, load_table
from segdistill.methods import METHODS
from segdistill.overrides import apply
from segdistill.precheck import RECIPE, TABLE, check_recipe, check_table, classes_of, light, summaries
from segdistill.recipe import Recipe, load
from segdistill.shipped import recipe_path, recipes_folder, table_path
from segdistill.stages.distill import DistillConfig
from segdistill.stages.task import TaskConfig
from tiny_runs import TINY, tiny_file

RECIPES = sorted(recipes_folder().glob("*.yaml"))
TABLES = sorted((recipes_folder() / "tables").glob("*.yaml"))


def test_the_classes_that_are_read_have_the_fields_of_those_that_run():
    pairs = [(Recipe, *RECIPE), (DistillConfig, "segdistill.stages.distill", "DistillConfig"),
             (TaskConfig, "segdistill.stages.task", "TaskConfig")]  # fmt: skip
    for table, package, listed in ((METHODS, "methods", "METHODS"), (GENERALIZERS, "generalize", "GENERALIZERS")):
        pairs += [(table[name].Config, home, f"{each}.Config")
                  for name, (home, each) in classes_of(f"segdistill.{package}", listed).items()]  # fmt: skip
    for real, module, name in pairs:
        read = light(module, name)
        assert issubclass(read, Config)
        assert read.model_fields.keys() == real.model_fields.keys(), name
        for field, info in real.model_fields.items():
            assert read.model_fields[field].is_required() == info.is_required(), f"{name}.{field}"


def test_everything_that_is_shipped_passes():
    for path in RECIPES:
        check_recipe(path)
    for path in TABLES:
        assert check_table(path)["rows"]


MISTAKES = [
    (["sede=1"], "sede: unknown key; did you mean 'seed'?"),
    (["seed=x"], "seed: Input should be a valid integer"),
    (["seed=-1"], "seed: Input should be greater than or equal to 0, got -1"),
    (["name=A b"], "name: String should match pattern"),
    (["precision=8"], "precision: Input should be '32-true'"),
    (["teacher.encoder.name=world_techer"], "unknown encoder 'world_techer': did you mean 'world_teacher'?"),
    (["student.head.type=fpn"], "unknown head 'fpn': did you mean 'semfpn'?"),
    (["student.head.widht=3"], "head.widht: unknown key; did you mean 'width'?"),
    (["stages.agnostic.method.type=gk"], "unknown method 'gk': did you mean 'gkd'?"),
    (["stages.agnostic.method.patch_wieght=1"], "method.patch_wieght: unknown key; did you mean 'patch_weight'?"),
    (["stages.agnostic.method.mask_first=7"], "mask_first"),
    (["stages.task.optimizer.lr=0"], "lr: Input should be greater than 0, got 0"),
    (["task=sematic"], "unknown task 'sematic': did you mean 'semantic'?"),
    (["stages.task.type=tsk"], "unknown stage type 'tsk': did you mean 'task'?"),
    (["stages.task.data.split=all"], "split: Input should be 'train'"),
    (["data.source=disk"], "unknown source 'disk'"),
    (["data.size=[64]"], "data.size.1: is missing"),
    (["evaluate.imagse=1"], "evaluate.imagse: unknown key; did you mean 'images'?"),
    (["stages.tsk.steps=1"], "no 'tsk' there; did you mean 'task'?"),
    (["steps"], "is not of the form key=value"),
    (["seed=x", "bogus=1", "stages.0.steps=0", "student.encoder.name=x"], "bogus: unknown key"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_a_mistake_is_named_as_the_full_check_names_it(tmp_path, overrides, message):
    path = tiny_file(tmp_path)
    with pytest.raises(UserError) as quick:
        check_recipe(path, overrides)
    with pytest.raises(UserError) as whole:
        load(path, overrides)
    assert message in str(quick.value)
    lines = [re.sub(r"no_such.*", "", line) for line in str(quick.value).split("; ")]
    for line in lines:
        assert line.removesuffix(", got 'x'") in str(whole.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=spoiled(yaml.safe_load(TINY)))
def test_what_the_full_check_accepts_passes(tmp_path, values):
    """Whatever is wrong with a recipe: a complaint without torch is one of the full check's, too."""
    path = tmp_path / "spoiled.yaml"
    path.write_text(yaml.safe_dump(values))
    try:
        check_recipe(path)
    except UserError:
        with pytest.raises(UserError):
            load(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("table.seeds=[x]", "seeds.0: Input should be a valid integer"),
        ("table.sed=1", "sed: unknown key"),
        ("x", "form"),
    ],
)
def test_tables_are_checked_too(override, message):
    path = table_path(Path("table1_world"))
    with pytest.raises(UserError, match=message):
        check_table(path, [override])
    with pytest.raises(UserError, match="did you mean 'table1_world'"):
        check_table(path.with_name("table1_wrld.yaml"))
    light(*TABLE)


ROWS = [
    ({"rows.0.recipe": "world_gdk"}, "no recipe at .*world_gdk.yaml"),
    ({"rows.0.settings": ["stages.task.stpes=3"]}, "row 'A': .*stage 'task'.stpes: unknown key; did you mean 'st"),
    ({"rows.1.settings": ["student.encoder.name=world_studnet"]}, "row 'B': .*did you mean 'world_student'"),
    ({"settings": ["log_every=x"]}, "row 'A': log_every: Input should be a valid integer.*row 'B': log_every"),
    ({"sweep": {"title": "s", "values": {"one": [], "two": ["stages.tsk.steps=3"]}}}, "row 'A', two: .*no 'tsk' there"),
]


@pytest.mark.parametrize(("changes", "message"), ROWS)
def test_rows_are_checked_like_recipes_in_the_words_of_the_full_check(tmp_path, changes, message):
    values = {"name": "mine", "title": "Mine", "rows": [{"title": "A", "recipe": "world_gkd"},
                                                       {"title": "B", "recipe": "world_none"}]}  # fmt: skip
    for key, value in changes.items():
        apply(values, f"{key}={json.dumps(value)}")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=message) as quick:
        check_table(path)
    with pytest.raises(UserError) as whole:
        cells_of(load_table(path), recipes_folder())
    assert str(quick.value).partition(", got")[0] in str(whole.value)
    assert "\n" not in str(quick.value)


def test_an_override_of_all_rows_is_checked_on_all_of_them():
    path = table_path(Path("table1_world"))
    with pytest.raises(UserError, match=r"row '.*': .*did you mean 'imag"):
        check_table(path, ["evaluate.imagse=1"])
    check_table(path, ["evaluate.images=1", "table.seeds=[0]"])


def test_a_shipped_recipe_goes_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_path(Path("world_gkd")) == recipes_folder() / "world_gkd.yaml"
    assert recipe_path(Path("nothing")) == Path("nothing")
    Path("world_gkd").write_text("a file of one's own")
    assert recipe_path(Path("world_gkd")) == Path("world_gkd")


def test_every_method_has_a_summary():
    lines = summaries("segdistill.methods", "METHODS")
    assert lines.keys() == METHODS.keys()
    assert all(len(line) > 10 for line in lines.values())


COMMANDS = {
    "run none.yaml": "no recipe at",
    "run world_gkd stages.task.stepz=3": "did you mean 'steps'",
    "run world_gkd student.encoder.name=world_studnet": "did you mean 'world_student'",
    "run world_gkd --reuse none": "not a run folder with stages",
    "bench none": "no table at",
    "bench table1_world table.seed=1": "did you mean 'seeds'",
    "bench table1_world evaluate.imagse=1": "did you mean 'images'",
    "demo sede=1": "did you mean 'seed'",
    "evaluate none": "no recipe at",
    "predict none none.png --out x": "no model at",
    "estimate none photos": "no model at",
    "list": "methods",
    "list methods": "gkd",
    "list heads": "semfpn",
    "list encoders": "dinov2_b",
    "list domains": "night",
    "list recipes": "world_gkd ",
    "list tables": "table1_world ",
    "list weights": "shipped:world_teacher",
    "list nothing": "unknown list",
    "--version": "segdistill 0",
}


def test_first_words_need_no_torch():
    """One process gives all commands and looks after each for what takes seconds to import."""
    code = (
        "import sys, io, contextlib\n"
        "from segdistill.cli import main\n"
        f"for line, words in {COMMANDS!r}.items():\n"
        "    sys.argv, out = ['segdistill', *line.split()], io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):\n"
        "        try: main()\n"
        "        except SystemExit: pass\n"
        "    assert words in out.getvalue(), (line, out.getvalue())\n"
        "    heavy = [n for n in ('torch', 'timm', 'lightning', 'transformers', 'matplotlib') if n in sys.modules]\n"
        "    assert not heavy, (line, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
