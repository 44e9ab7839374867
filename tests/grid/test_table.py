"""Table files: what they may say, and the runs that they make."""

from __future__ import annotations

import pytest

from segdistill import environment
from segdistill.config import UserError, parse
from segdistill.data import files
from segdistill.grid import cells_of, check_paper, costs, load_table, plan_cells
from segdistill.grid.demo import recipes_folder
from segdistill.grid.execute import dependencies
from segdistill.grid.table import TableConfig
from tiny_runs import TINY

ROWS = [{"title": "None", "recipe": "tiny", "settings": ["stages.task.method=null", "stages.task.proxy=null"]},
        {"title": "GKD", "recipe": "tiny"}]  # fmt: skip


@pytest.fixture
def recipes(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


def table(**changes):
    return parse(TableConfig, {"name": "t", "title": "T", "rows": ROWS} | changes)


def test_cells_are_rows_times_values_times_seeds_in_the_order_of_seeds(recipes):
    sweep = {"title": "images", "values": {"few": ["stages.task.data.images=2"], "all": []}}
    cells = cells_of(table(seeds=[3, 5], sweep=sweep), recipes)
    assert [(cell.seed, cell.row, cell.value) for cell in cells] == [
        (seed, row, value) for seed in (3, 5) for row in (0, 1) for value in ("few", "all")
    ]
    assert [cell.recipe.seed for cell in cells[:5]] == [3, 3, 3, 3, 5]
    assert [cell.recipe.stages[-1].data.images for cell in cells[:2]] == [2, 4]
    assert len({cell.folder_name for cell in cells}) == len(cells)


def test_equal_computations_have_one_key_whatever_they_are_called(recipes):
    rows = [ROWS[1], {"title": "Another name", "recipe": "tiny"}, {"title": "Other", "recipe": "tiny",
            "settings": ["evaluate.images=3"]}]  # fmt: skip
    same, renamed, other = cells_of(table(rows=rows), recipes)
    assert same.key == renamed.key != other.key
    assert same.prints == other.prints


def test_a_plan_counts_the_stages_of_every_seed_and_opens_the_weights_of_one(recipes, monkeypatch):
    opened, made = [], costs.make_plan
    monkeypatch.setattr(
        costs, "make_plan", lambda recipe, **given: opened.append(recipe.title) or made(recipe, **given)
    )
    settings = ["stages.agnostic.decode=gpu", "stages.agnostic.augment={rand_augment: null, erase: 0}"]
    cells = cells_of(table(seeds=[3, 5], rows=[{**ROWS[1], "settings": settings}]), recipes)
    plan = plan_cells(cells)
    assert opened == ["GKD"]
    assert [stage.flops for stage in plan.stages] == 2 * [stage.flops for stage in plan_cells(cells[1:]).stages]
    assert [stage.label.partition(": ")[0] for stage in plan.stages] == ["GKD, seed 3"] * 3 + ["GKD, seed 5"] * 3
    assert "decode=gpu needs a GPU" in " ".join(plan.doubts)


def test_a_table_lists_every_folder_and_looks_into_it_once(facades, monkeypatch):
    listed, looked, find, look = [], [], files.find, files.look
    monkeypatch.chdir(facades)
    (facades / "weights").mkdir(exist_ok=True)
    (facades / "weights/dinov2_vits14_timm.safetensors").write_text("any bytes")
    monkeypatch.setattr(files, "find", lambda where, split: listed.append((where.name, split)) or find(where, split))
    monkeypatch.setattr(files, "look", lambda *given: looked.append(given) or look(*given))
    rows = [{"title": "Heir", "recipe": "real_heir"}, {"title": "GKD", "recipe": "real_two_stage"}]
    cells_of(table(rows=rows, seeds=[0]), recipes_folder())
    once = len(looked)
    cells = cells_of(table(rows=rows, seeds=[1, 2]), recipes_folder())
    assert len(cells) == 4
    assert len(listed) == 2 * len(set(listed)) > 10
    assert len(looked) == 2 * once
    assert len({id(cell.recipe.data) for cell in cells}) == 1


def test_a_table_that_another_machine_began_keeps_its_precision(recipes, tmp_path, monkeypatch):
    settings, begun = ["precision=auto"], tmp_path / "cells"
    monkeypatch.setattr(environment, "computes_bf16", lambda _: True)
    there = cells_of(table(settings=settings), recipes, begun=begun)
    monkeypatch.setattr(environment, "computes_bf16", lambda _: False)
    assert {cell.recipe.precision for cell in cells_of(table(settings=settings), recipes, begun=begun)} == {"32-true"}
    (begun / there[0].folder_name).mkdir(parents=True)  # one of its runs
    assert cells_of(table(settings=settings), recipes, begun=begun) == there
    assert {cell.recipe.precision for cell in there} == {"bf16-mixed"}
    given = cells_of(table(settings=["precision=32-true"]), recipes, begun=begun)
    assert {cell.recipe.precision for cell in given} == {"32-true"}


def test_overrides_of_the_call_come_last(recipes):
    settings = ["stages.task.steps=4"]
    cells = cells_of(table(settings=settings), recipes, ("stages.task.steps=6",))
    assert {cell.recipe.stages[-1].steps for cell in cells} == {6}


def test_cells_wait_for_the_first_one_with_their_stage_and_never_for_a_later_one(recipes):
    waits = dependencies(cells_of(table(seeds=[0, 1]), recipes))
    assert waits == [{}, {0: 2}, {}, {2: 2}]  # the two stages before the task, of the same seed


@pytest.mark.parametrize(("change", "said"), [
    ({"rows": [*ROWS, ROWS[0]]}, "None appears twice"),
    ({"rows": []}, "rows"),
    ({"seeds": [1, 1]}, "seeds must differ"),
    ({"rows": [row | {"baseline": True} for row in ROWS]}, "more than one baseline"),
    ({"colour": 1}, "unknown key"),
    ({"name": "With Space"}, "name"),
])  # fmt: skip
def test_a_wrong_table_is_one_line(change, said):
    with pytest.raises(UserError, match=said) as caught:
        table(**change)
    assert "\n" not in str(caught.value)


def test_all_wrong_rows_are_named_at_once(recipes):
    rows = [{"title": "A", "recipe": "nowhere"}, {"title": "B", "recipe": "tiny", "settings": ["stages.tusk.steps=1"]}]
    with pytest.raises(UserError, match=r"row 'A': no recipe.*row 'B': override"):
        cells_of(table(rows=rows), recipes)


def test_a_paper_row_that_is_not_there_is_named_before_anything_runs():
    place = {"table": "1", "block": "DINOv2-B to ViT-S", "source": "GTAV"}
    check_paper(table(paper=place, rows=[ROWS[1] | {"paper": "GKD"}]))
    for change, said in (({}, "no row 'GDK': did you mean 'GKD'"), ({"table": "77"}, "unknown table"),
                         ({"block": "x"}, "no 'x'"), ({"source": "Mars"}, "no source 'Mars'")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            check_paper(table(paper=place | change, rows=[ROWS[1] | {"paper": "GDK"}]))
    with pytest.raises(UserError, match="has no 'paper'"):
        check_paper(table(rows=[ROWS[1] | {"paper": "GKD"}]))


def test_overrides_that_begin_with_table_change_the_table_and_no_cell(recipes):
    path = recipes / "t.yaml"
    rows = (
        "- {title: A, recipe: tiny, settings: &all [stages.task.steps=4]}\n- {title: B, recipe: tiny, settings: *all}"
    )
    path.write_text(f"name: t\ntitle: T\nseeds: [0, 1]\nrows:\n{rows}\n")
    changes = ("table.seeds=[7]", "table.name=u", "table.rows.1.settings.0=stages.task.steps=6", "log_every=3")
    config = load_table(path, changes)
    assert (config.name, config.seeds) == ("u", (7,))
    cells = cells_of(config, recipes, changes)
    assert [(cell.recipe.stages[-1].steps, cell.recipe.log_every) for cell in cells] == [(4, 3), (6, 3)]
    with pytest.raises(UserError, match="unknown key"):
        load_table(path, ("table.sedes=[7]",))


def test_a_tables_place_in_the_paper_is_that_of_its_runs(recipes):
    place = {"table": "2", "block": "DINOv2-B to DINOv2-S", "source": "GTAV"}
    config = table(paper=place)
    assert {cell.recipe.paper for cell in cells_of(config, recipes)} == {config.paper}
    assert {cell.key for cell in cells_of(config, recipes)} == {cell.key for cell in cells_of(table(), recipes)}


@pytest.mark.parametrize("path", sorted((recipes_folder() / "tables").glob("*world*.yaml")), ids=lambda path: path.stem)
def test_every_table_on_the_world_resolves_and_is_named_like_its_file(path):
    config = load_table(path)
    assert config.name == path.stem
    check_paper(config)
    cells = cells_of(config, recipes_folder())
    assert {cell.row for cell in cells} == set(range(len(config.rows)))
    head = path.read_text().splitlines()[:4]
    assert any("Paper:" in line for line in head) and any("Cost:" in line for line in head)


@pytest.mark.parametrize("content", ["rows: [", "- 1", ""])
def test_a_damaged_table_file_is_one_line(tmp_path, content):
    path = tmp_path / "t.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"t\.yaml"):
        load_table(path)
    with pytest.raises(UserError, match="no table at"):
        load_table(tmp_path / "u.yaml")
