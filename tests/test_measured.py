"""The pages of measurements are those that the raw files give, and the README and the findings quote them correctly."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RAW = DOCS / "raw"


@pytest.fixture(scope="module")
def pages():
    """File name -> text of every generated page."""
    sys.path.insert(0, str(DOCS))
    try:
        import tables

        return tables.pages()
    finally:
        sys.path.remove(str(DOCS))
        for name in ("tables", "grids"):
            sys.modules.pop(name, None)


def cells(text: str) -> dict[str, list[str]]:
    """First column of the first table -> its other columns, without bold."""
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table
    rows = [[cell.strip().replace("**", "") for cell in line.split("|")[1:-1]] for line in table.group().splitlines()]
    return {row[0]: row[1:] for row in rows}


def spread(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"


def of(runs: list[dict], row: str) -> list[str]:
    """Source, mean over the unseen domains and retention of a row of Table 1."""
    own = [run for run in runs if run["row"] == row]
    unseen = [
        float(np.mean([run["domains"][d]["miou"] for d in ("clear", "night", "fog", "snow", "rain")])) for run in own
    ]
    kept = [run["retention"] for run in own]
    return [spread([run["domains"]["game"]["miou"] for run in own]), spread(unseen), spread(kept)]


ROWS = {"No distillation": "No distillation (encoder trained)", "Vanilla KD": "+ Vanilla KD", "GKD": "+ GKD"}


def test_the_pages_are_current(pages):
    found = {path.name: path.read_text(encoding="utf-8") for path in RAW.glob("*.md")}
    assert sorted(found) == sorted(pages)
    assert [name for name in pages if pages[name] != found[name]] == [], "run: python docs/tables.py"


def test_every_raw_file_is_linked_from_a_page(pages):
    elsewhere = (ROOT / "benchmarks" / "estimate.md").read_text(encoding="utf-8")
    everything = "\n".join([*pages.values(), elsewhere])
    raw = [path.name for path in RAW.iterdir() if path.suffix != ".md"]
    assert len(raw) > 40
    assert [name for name in raw if name not in everything] == []


def test_a_page_has_what_numpy_computes_from_its_raw_file(pages):
    runs = json.loads((RAW / "table1_world.json").read_text(encoding="utf-8"))["runs"]
    found = cells(pages["table1_world.md"])
    head = found["model"]
    for row in {run["row"] for run in runs}:
        line = dict(zip(head, found[row], strict=True))
        assert [line["game (source)"], line["mean unseen"], line["retention (%)"]] == of(runs, row)


@pytest.mark.parametrize(("page", "head"), [("README.md", "## Start"), ("docs/results.md", "## GKD keeps ")])
def test_a_table_is_table_1(page, head):
    runs = json.loads((RAW / "table1_world.json").read_text(encoding="utf-8"))["runs"]
    found = cells((ROOT / page).read_text(encoding="utf-8").partition(head)[2])
    assert {title: found[title][:3] for title in ROWS} == {title: of(runs, row) for title, row in ROWS.items()}


def short(title: str) -> str:
    """The title up to a comma or a bracket."""
    return re.split(r", | \(", title)[0]


TITLES = {
    "Heir (ours)": "Heir",
    "Teacher, DeiT-Tiny": "Teacher",
    "Teacher, encoder frozen": "Teacher",
    "Vanilla KD, relative, with photographs": "Vanilla KD, relative, with proxy",
}
"""Titles on the pages of rows that the tables call otherwise."""


@pytest.mark.parametrize(
    ("page", "head", "name"),
    [
        ("docs/results.md", "# Results", "real_pair_deit"),
        ("docs/results/real.md", "## DeiT-Tiny to a student", "real_pair_deit"),
        ("docs/results/real.md", "## DINOv2-S to the same", "real_pair"),
    ],
)
def test_a_table_is_that_of_a_real_pair(page, head, name):
    """Source and mean unseen of every row: mean and spread over the seeds, or the interval of one seed."""
    raw = json.loads((RAW / f"{name}.json").read_text(encoding="utf-8"))
    shown = cells((ROOT / page).read_text(encoding="utf-8").partition(head)[2])
    found = {TITLES.get(title, title): row for title, row in shown.items()}
    runs = [*raw["runs"], raw["teachers"][0] | {"row": "Teacher"}]
    rows = dict.fromkeys(run["row"] for run in runs)
    assert {"Teacher", "Heir", "Vanilla KD", "GKD, two stages", "No distillation"} <= set(rows) & set(found)
    assert page == "docs/results.md" or set(rows) <= set(found)
    for row in rows.keys() & found.keys():
        assert found[row][:2] == list(map(measured, *pairs_of([run for run in runs if run["row"] == row])))


def pairs_of(runs: list[dict]) -> tuple[list, list]:
    """The scores on the source and on unseen domains over the runs, and the interval of each, if it is shown."""
    scores = [[run["domains"]["boston"]["miou"] for run in runs], [run["mean_unseen"] for run in runs]]
    return scores, [None, runs[0]["mean_unseen_interval"]]


def measured(values: list[float], interval: list[float] | None) -> str:
    """As the pages write a score."""
    if len(values) > 1:
        return spread(values)
    within = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{100 * values[0]:.1f}{within}"


def test_a_number_that_is_not_the_raw_file_s_is_found():
    text = "| model | source |\n| --- | ---: |\n| GKD | **1.0 ± 0.1** |\n"
    assert cells(text)["GKD"] == ["1.0 ± 0.1"]
    assert spread([0.1, 0.2]) == "15.0 ± 7.1"


def test_the_environment_of_the_readme_is_the_raw_file_s():
    runs = json.loads((RAW / "table1_world.json").read_text(encoding="utf-8"))["runs"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for key in ("commit", "torch"):
        assert {run["environment"][key] for run in runs} == {re.search(rf"{key} ([\w.]+\w)", readme)[1]}
    hardware = {run["environment"]["hardware"].split(",")[0] for run in runs}
    assert all(name in readme for name in hardware)
