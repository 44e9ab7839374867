"""The list of the paper's tables and figures is complete, and each file that it names exists and is shipped."""

import re
from pathlib import Path

from segdistill.grid import load_table
from segdistill.shipped import recipes_folder

PAGE = Path(__file__).resolve().parents[1] / "docs/papers.md"
EXPECTED = [*(f"Table {number}" for number in range(1, 11)), "Figure 1", "Figure 8", "Figure 9"]


def rows() -> dict[str, tuple[list[str], list[str]]]:
    """(tables on real data, tables on the world) by place in the paper."""
    section = PAGE.read_text(encoding="utf-8").partition("## GKD's tables and figures")[2].partition("\n## ")[0]
    cells = [line.strip("|").split("|") for line in section.splitlines() if re.match(r"\| (Table|Figure) \d", line)]
    return {cell[0].strip(): tuple(re.findall(r"`(\w+)`", each) for each in cell[1:3]) for cell in cells}


def test_every_table_and_figure_has_its_line_and_its_files() -> None:
    found = rows()
    assert list(found) == EXPECTED
    for real, world in found.values():
        assert not any(name.endswith("_world") for name in real)
        assert all("_world" in name for name in world)
        for name in (*real, *world):
            assert load_table(recipes_folder() / "tables" / f"{name}.yaml").name == name


def test_every_shipped_table_of_the_paper_is_listed() -> None:
    listed = {name for real, world in rows().values() for name in (*real, *world)}
    shipped = {path.stem for path in (recipes_folder() / "tables").glob("*.yaml")}
    assert {name for name in shipped if re.match(r"table\d|figure\d", name)} - listed <= {"table1_world_smoke"}


def test_the_figures_on_the_world_are_what_their_titles_say() -> None:
    table = load_table(recipes_folder() / "tables/figure1_world.yaml")
    settings = list(table.sweep.values.values())
    assert [one[0].count(",") + 1 if one else 1 for one in settings] == [1, 2, 3]
    assert [row.recipe for row in load_table(recipes_folder() / "tables/figure8_world.yaml").rows] == [
        "world_daformer",
        "world_vitkd",
        "world_gkd",
    ]
