"""The table's numbers, gains and marks, against numbers that are known."""

from __future__ import annotations

import csv

import pytest

from fake_runs import flat
from segdistill.bench import Outcome, collect_table, to_csv, to_latex, to_markdown
from segdistill.bench.table import Cell, TableConfig
from segdistill.config import parse
from tiny_runs import tiny

PAPER = {"table": "1", "block": "DINOv2-B to ViT-S", "source": "Cityscapes"}
ROWS = [{"title": "None", "recipe": "x", "baseline": True, "paper": "DeiT"},
        {"title": "GKD & co", "recipe": "x", "paper": "GKD"}, {"title": "Ours", "recipe": "x"}]  # fmt: skip


def result(folder, scores, **changes):
    """A table of the given student scores: {(row, value, seed): score or None for a cell that failed}."""
    table = parse(TableConfig, {"name": "t", "title": "T", "rows": ROWS, "seeds": [0, 1]} | changes)
    recipe = tiny(folder)
    outcomes = []
    for (row, value, seed), score in scores.items():
        place = folder / f"{row}-{value}-{seed}".replace("/", "_")
        cell = Cell(row, value, seed, recipe, (), "")
        if score is not None:
            flat(place, score, name=f"r{row}", seed=seed)
        outcomes.append(Outcome(cell, place, None if score is not None else "went wrong"))
    return collect_table(table, outcomes)


def test_means_spreads_gains_and_the_best_are_what_they_should_be(tmp_path):
    scores = {
        (0, "", 0): 0.20,
        (0, "", 1): 0.22,
        (1, "", 0): 0.30,
        (1, "", 1): 0.34,
        (2, "", 0): 0.25,
        (2, "", 1): None,
    }
    found = result(tmp_path, scores, paper=PAPER)
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in to_markdown(found).splitlines()]
    heads, teacher, none, gkd, ours = lines[0], *lines[2:]
    at = heads.index
    assert heads[0] == "method"
    assert teacher[at("Avg.")] == "50.0 ± 0.0"
    assert teacher[at("paper: Avg.")] == "66.2"
    assert none[at("Avg.")] == "21.0 ± 1.4"
    assert (none[at("gain")], gkd[at("gain")], ours[at("gain")]) == ("–", "+11.0", "+4.0")
    assert gkd[at("Avg.")] == "**32.0 ± 2.8**"
    assert gkd[at("retention (%)")] == "64.0 ± 5.7"
    assert (none[at("paper: Avg.")], gkd[at("paper: Avg.")], ours[at("paper: Avg.")]) == ("40.7", "57.7", "–")
    assert found.errors == ("Ours, seed 1: went wrong",)


def test_a_tie_by_what_is_shown_marks_both_and_the_teacher_is_never_marked(tmp_path):
    found = result(tmp_path, {(0, "", 0): 0.30001, (1, "", 0): 0.30004, (2, "", 0): 0.29})
    markdown = to_markdown(found).splitlines()
    assert [line.count("**30.0**") > 0 for line in markdown[3:]] == [True, True, False]
    assert "**" not in markdown[2]


def test_a_sweep_has_a_column_per_value(tmp_path):
    sweep = {"title": "labels", "values": {"1/16": [], "full": []}}
    scores = {(0, "1/16", 0): 0.1, (0, "full", 0): 0.2, (1, "1/16", 0): 0.3, (1, "full", 0): None}
    markdown = to_markdown(result(tmp_path, scores, sweep=sweep)).splitlines()
    assert markdown[0].split("|")[1:4] == [" labels ", " 1/16 ", " full "]
    assert markdown[3] == "| None | 10.0 | **20.0** |"
    assert markdown[4] == "| GKD & co | **30.0** | – |"


def test_groups_have_headings_and_baselines_of_their_own(tmp_path):
    rows = [row | {"group": group} for group in ("F2L", "F2F") for row in ROWS[:2]]
    scores = {(0, "", 0): 0.1, (1, "", 0): 0.3, (2, "", 0): 0.2, (3, "", 0): 0.25}
    found = result(tmp_path, scores, rows=rows)
    assert [round(found.gain(row, ""), 6) for row in (1, 3)] == [20.0, 5.0]
    headings = [line for line in to_markdown(found).splitlines() if line.startswith("| *")]
    assert [line.split("*")[1] for line in headings] == ["F2L", "F2F"]


def test_latex_escapes_and_csv_keeps_every_digit(tmp_path):
    found = result(tmp_path, {(0, "", 0): 1 / 3, (1, "", 0): 0.25})
    latex = to_latex(found)
    assert r"GKD \& co" in latex
    assert r"\textbf{33.3}" in latex
    assert latex.count(r"\\") == 5  # heads, teacher, three rows
    rows = list(csv.DictReader(to_csv(found).splitlines()))
    assert [float(row["mean_unseen"]) for row in rows] == pytest.approx([1 / 3, 0.25], abs=0)
    assert [row["row"] for row in rows] == ["None", "GKD & co"]
