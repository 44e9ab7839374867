"""The table's numbers, gains and marks, against numbers that are known."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from fake_runs import UNSEEN
from fake_tables import PAPER, ROWS, result
from segdistill.config import UserError
from segdistill.grid import lead
from segdistill.metrics.base import RESAMPLES, redrawn_mean
from segdistill.metrics.confusion import ImageCounts
from segdistill.metrics.unlabelled import Note, notes_of
from segdistill.report import to_csv, to_json, to_latex, to_markdown
from segdistill.runs.score import read_samples, write_samples
from segdistill.tasks.semantic import SemanticSamples


def table_lines(found):
    """The lines of the Markdown table, without the sentences below it."""
    return [line for line in to_markdown(found).splitlines() if line.startswith("|")]


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
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table_lines(found)]
    heads, teacher, none, gkd, ours = lines[0], *lines[2:]
    at = heads.index
    assert heads[0] == "model"
    assert teacher[at("mean unseen")] == "50.0 ± 0.0"
    assert teacher[at("paper: Avg.")] == "66.2"
    assert none[at("mean unseen")] == "21.0 ± 1.4"
    assert (none[at("gain")], gkd[at("gain")], ours[at("gain")]) == ("–", "+11.0", "+4.0")
    assert gkd[at("mean unseen")] == "**32.0 ± 2.8**"
    assert gkd[at("retention (%)")] == "**64.0 ± 5.7**"
    assert (none[at("paper: Avg.")], gkd[at("paper: Avg.")], ours[at("paper: Avg.")]) == ("40.7", "57.7", "–")
    assert found.errors == ("Ours, seed 1: went wrong",)


def test_a_tie_by_what_is_shown_marks_both_and_the_teacher_is_never_marked(tmp_path):
    found = result(tmp_path, {(0, "", 0): 0.30001, (1, "", 0): 0.30004, (2, "", 0): 0.29})
    markdown = table_lines(found)
    assert [line.count("**30.0**") > 0 for line in markdown[3:]] == [True, True, False]
    assert "**" not in markdown[2]


def test_a_sweep_has_a_column_per_value(tmp_path):
    sweep = {"title": "labels", "values": {"1/16": [], "full": []}}
    scores = {(0, "1/16", 0): 0.1, (0, "full", 0): 0.2, (1, "1/16", 0): 0.3, (1, "full", 0): None}
    markdown = to_markdown(result(tmp_path, scores, sweep=sweep)).splitlines()
    assert markdown[0].split("|")[1:4] == [" labels ", " 1/16 ", " full "]
    assert markdown[3] == "| None | 10.0 | **20.0** |"
    assert markdown[4] == "| GKD & co | **30.0** | – |"


def test_the_papers_numbers_stand_beside_every_value_of_a_sweep_and_come_from_the_groups_place(tmp_path):
    sweep = {"title": "labels", "values": {title: [] for title in ("1/16", "1/8", "1/4", "full")}}
    places = {arch: {"table": "3", "block": f"F2L {arch}", "source": "Cityscapes"} for arch in ("DeiT-S", "DeiT-B")}
    rows = [{"title": arch, "recipe": "x", "group": arch, "paper": arch} for arch in places]
    scores = {(row, value, 0): 0.2 for row in (0, 1) for value in sweep["values"]}
    found = result(tmp_path, scores, sweep=sweep, rows=rows, papers=places)
    lines = to_markdown(found).splitlines()
    assert lines[0].split(" | ")[-4:] == ["paper: 1:16", "paper: 1:8", "paper: 1:4", "paper: full |"]
    small, large = (next(line for line in lines if line.startswith(f"| {arch} |")) for arch in places)
    assert small.split(" | ")[-4:] == ["32.7", "38.0", "38.2", "40.7 |"]
    assert large.split(" | ")[-4:] == ["39.1", "42.6", "43.4", "47.0 |"]
    short = result(tmp_path / "b", {(0, "full", 0): 0.2}, sweep={"title": "l", "values": {"full": []}}, rows=rows,
                   papers=places)  # fmt: skip
    assert "paper" not in to_markdown(short).splitlines()[0]  # its columns are not this sweep's
    with pytest.raises(UserError, match=r"groups F2X, but no row"):
        result(tmp_path, {}, rows=rows, papers={"F2X": PAPER})


def test_groups_have_headings_and_baselines_of_their_own(tmp_path):
    rows = [row | {"group": group} for group in ("F2L", "F2F") for row in ROWS[:2]]
    scores = {(0, "", 0): 0.1, (1, "", 0): 0.3, (2, "", 0): 0.2, (3, "", 0): 0.25}
    found = result(tmp_path, scores, rows=rows)
    assert [round(found.gain(row), 6) for row in (1, 3)] == [20.0, 5.0]
    headings = [line for line in to_markdown(found).splitlines() if line.startswith("| *")]
    assert [line.split("*")[1] for line in headings] == ["F2L", "F2F"]


def test_latex_escapes_and_csv_keeps_every_digit(tmp_path):
    found = result(tmp_path, {(0, "", 0): 1 / 3, (1, "", 0): 0.25})
    latex = to_latex(found)
    assert r"GKD \& co" in latex
    assert r"\textbf{33.3}" in latex
    assert latex.count(r"\\") == 5  # heads, teacher, three rows
    rows = list(csv.DictReader(to_csv(found).splitlines()))[1:3]  # between the teacher and the row that has not run
    assert [float(row["mean_unseen"]) for row in rows] == pytest.approx([1 / 3, 0.25], abs=0)
    assert [row["title"] for row in rows] == ["None", "GKD & co"]


def test_json_holds_what_the_table_rests_on_and_the_teacher_once_a_seed(tmp_path):
    scores = {(0, "", 0): 0.20, (1, "", 0): 1 / 3, (1, "", 1): 0.32, (2, "", 0): None}
    found = result(tmp_path, scores, paper=PAPER)
    raw = json.loads(to_json(found))
    assert [(run["row"], run["seed"]) for run in raw["runs"]] == [("None", 0), ("GKD & co", 0), ("GKD & co", 1)]
    gkd = raw["runs"][1]
    assert gkd["mean_unseen"] == 0.33333
    assert set(gkd["domains"]) == set(found.runs[1, "", 0].student.domains)
    assert len(gkd["domains"][UNSEEN[0]]["iou"]) == len(raw["classes"])
    assert [(teacher["seed"], teacher["mean_unseen"]) for teacher in raw["teachers"]] == [(0, 0.5), (1, 0.5)]
    assert raw["not_finished"] == ["Ours, seed 0: went wrong"]
    assert raw["table"]["rows"][1]["title"] == "GKD & co"
    assert "command" not in gkd["environment"]  # it may hold somebody's folders
    assert gkd["retention"] == round(found.runs[1, "", 0].retention, 5)


def test_the_best_row_is_held_against_its_runner_up_on_the_same_images(tmp_path):
    scores = {(0, "", 0): 0.20, (1, "", 0): 0.30, (2, "", 0): 0.28, (1, "", 1): 0.32, (2, "", 1): 0.25}
    table = result(tmp_path, scores)
    (found,) = table.runner_ups()
    assert [(one.first, one.second) for one in table.leads] == [(1, 2), (1, 0)]
    assert (found.first, found.second, found.seeds) == (1, 2, (0, 1))
    assert found.points == pytest.approx(4.5)
    assert found.beaten == 0.0
    assert found.interval[0] == pytest.approx(found.interval[1])  # images that are all alike: any draw says the same
    assert found.interval[0] == pytest.approx(4.5, abs=0.6)


def of_two_classes(hits):
    """Samples of images of 200 pixels: ``hits`` of 100 are right in either class."""
    matrices = [np.array([[h, 100 - h], [100 - h, h]]) for h in hits]
    return SemanticSamples(ImageCounts.of(2, matrices), notes_of([Note(1, 1) for _ in matrices]))


def test_an_interval_over_domains_says_whether_the_lead_depends_on_one_of_them(tmp_path):
    found = result(tmp_path, {(0, "", 0): 0.20, (1, "", 0): 0.201})
    hits = np.full(20, 40)
    for number, gap in enumerate(gaps := (0, 2, 2, 2, 40)):  # in correct pixels of 100; the last domain carries it
        pair = {0: of_two_classes(hits), 1: of_two_classes(hits + gap)}
        for row, kept in pair.items():
            path = found.runs[row, "", 0].folder / "scores" / "student.npz"
            known = read_samples(path, "semantic") if number else {}
            write_samples(path, {**known, UNSEEN[number]: kept})
    one = lead(found, 1, 0, samples={})
    iou = [100 * (h / (200 - h)) for h in (40 + np.array(gaps))]
    each = np.array(iou) - iou[0]
    assert one.interval == pytest.approx([each.mean()] * 2)  # all images of a domain are alike
    assert one.over_domains[0] < each.mean() / 2 < one.over_domains[1]
    assert "over domains; not ahead" in found.sentence(one)
    few = replace(found, runs={key: run.model_copy(update={"unseen": UNSEEN[:3]}) for key, run in found.runs.items()})
    assert lead(few, 1, 0, samples={}).over_domains is None


def test_domains_that_agree_are_as_sure_as_their_images():
    scores = np.random.default_rng(0).normal(5, 1, RESAMPLES)
    assert redrawn_mean(np.tile(scores, (6, 1))) == pytest.approx(scores)
    apart = redrawn_mean(np.tile(np.arange(16.0)[:, None], RESAMPLES))
    assert apart.mean() == pytest.approx(7.5, abs=0.2)
    assert apart.std() == pytest.approx(np.arange(16.0).std() / 4, rel=0.1)


def test_a_lead_that_the_images_do_not_carry_has_zero_in_its_interval(tmp_path):
    found = result(tmp_path, {(0, "", 0): 0.20, (1, "", 0): 0.201})
    hits = np.random.default_rng(0).integers(20, 90, 40)
    for row, own in ((0, hits), (1, hits[::-1])):
        path = found.runs[row, "", 0].folder / "scores" / "student.npz"
        write_samples(path, dict.fromkeys(UNSEEN, of_two_classes(own)))
    one = lead(found, 1, 0, samples={})
    assert one.interval[0] < 0 < one.interval[1]
    assert 0.0 < one.beaten < 1.0
    assert lead(found, 1, 2, samples={}) is None  # no seed in common
    assert "paired bootstrap" in found.sentence(one)
