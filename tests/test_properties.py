"""Spoiled recipes, tables and overrides: each is read as it says, or refused in one line; nothing else, and soon."""

from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mutations import damaged, paths, spoiled
from segdistill.config import UserError
from segdistill.grid.demo import recipes_folder
from segdistill.grid.table import cells_of, load_table
from segdistill.recipe import dump, load
from segdistill.runs.execute import run
from segdistill.runs.plan import make_plan
from tiny_runs import TINY

RECIPES = sorted(recipes_folder().glob("*.yaml"))
TABLES = sorted((recipes_folder() / "tables").glob("*.yaml"))
TREES = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RECIPES]
GRIDS = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in TABLES]
SMALL = yaml.safe_load(TINY)
LONGEST = 2000


def effort(share=1.0):
    """The profile's number of examples, or a share of it: for tests whose examples take longer."""
    return settings(max_examples=max(5, int(settings().max_examples * share)))


def accepted(action):
    """What ``action`` returns, or None where it refuses in one line. Any other exception fails the test."""
    try:
        return action()
    except UserError as error:
        line = str(error)
        assert line.strip()
        assert len(line) < LONGEST, line
        assert line.isprintable(), line
        return None


def written(folder, tree):
    """A file that says ``tree``."""
    path = folder / "spoiled.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


@st.composite
def nudged(draw, tree):
    """A copy of ``tree`` in which one number is another, not far from it; or a shared default is said and changed."""
    tree = copy.deepcopy(tree)
    places = [way for way in paths(tree) if isinstance(leaf(tree, way), int | float | None)]
    *way, key = draw(st.sampled_from(places))
    number = leaf(tree, (*way, key)) or 1
    leaf(tree, way)[key] = draw(st.sampled_from((0, 1, 2, 3, 7, 0.5, 2 * number, number + 8)))
    return tree


def leaf(tree, way):
    for step in way:
        tree = tree[step]
    return tree


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@effort(2)
@given(tree=st.sampled_from(TREES).flatmap(spoiled))
def test_a_spoiled_recipe_is_read_or_refused_in_one_line(folder, tree):
    recipe = accepted(lambda: load(written(folder, tree)))
    if recipe is not None:
        assert load(written(folder, yaml.safe_load(dump(recipe)))) == recipe


@effort(0.5)
@given(tree=st.one_of(spoiled(SMALL, most=1), nudged(SMALL)))
def test_a_spoiled_recipe_has_a_plan_or_is_refused_in_one_line(folder, tree):
    recipe = accepted(lambda: load(written(folder, tree)))
    if recipe is not None:
        accepted(lambda: make_plan(recipe, speed=1e9))


def work(recipe):
    """Pixels that a run of ``recipe`` sees, about."""
    stages = sum(stage.batch * min(stage.steps, 2) for stage in recipe.stages)
    rendered = sum((each.images or 0) * len(each.domains) for stage in recipe.stages for _, each, _ in stage.reads())
    scored = 0 if recipe.evaluate is None else (recipe.evaluate.images or 0) * len(recipe.evaluate.domains)
    return (stages + rendered + scored) * recipe.data.size[0] * recipe.data.size[1]


@effort(0.2)
@given(tree=st.one_of(spoiled(SMALL, most=1), nudged(SMALL)))
def test_a_spoiled_recipe_runs_or_is_refused_in_one_line(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("run")
    recipe = accepted(lambda: load(written(folder, tree)))
    if recipe is None:
        return
    two = [stage.model_copy(update={"steps": min(stage.steps, 2)}) for stage in recipe.stages]
    recipe = recipe.model_copy(update={"stages": tuple(two), "workers": 0})
    assume(work(recipe) < 2**19)
    results = accepted(lambda: run(recipe, folder / "run"))
    if results is not None:
        assert (folder / "run" / "results.json").exists()


@effort()
@given(tree=st.sampled_from(GRIDS).flatmap(spoiled))
def test_a_spoiled_table_is_read_or_refused_in_one_line(folder, tree):
    accepted(lambda: load_table(written(folder, tree)))


@effort(0.2)
@given(tree=spoiled(yaml.safe_load((recipes_folder() / "tables/table1_world_smoke.yaml").read_text())))
def test_the_runs_of_a_spoiled_table_are_found_or_refused_in_one_line(folder, tree):
    table = accepted(lambda: load_table(written(folder, tree)))
    if table is not None:
        accepted(lambda: cells_of(table, recipes_folder()))


@effort(2)
@given(data=damaged(TINY.encode()))
def test_a_damaged_file_is_read_or_refused_in_one_line(folder, data):
    path = folder / "damaged.yaml"
    path.write_bytes(data)
    accepted(lambda: load(path))


KEYS = st.lists(st.sampled_from(("stages", "task", "0", "7", "data", "domains", "evaluate", "seed", "", "-1", "\u00b2",
                                 "student", "head", "strides")), min_size=1, max_size=5).map(".".join)  # fmt: skip
VALUES = st.one_of(st.text(max_size=30), st.recursive(st.none() | st.booleans() | st.integers() | st.floats(),
                   lambda inner: st.lists(inner, max_size=3), max_leaves=5).map(repr))  # fmt: skip


@effort(5)
@given(
    overrides=st.lists(st.one_of(st.text(max_size=30), st.tuples(KEYS, VALUES).map("=".join)), min_size=1, max_size=3)
)
def test_odd_overrides_are_read_or_refused_in_one_line(folder, overrides):
    accepted(lambda: load(written(folder, copy.deepcopy(SMALL)), overrides))
