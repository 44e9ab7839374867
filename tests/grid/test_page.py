"""The page that a table ends in: its words, its numbers, its figures, against results that are known."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from fake_runs import ALL_PICTURES, SOURCE, UNSEEN, make_run, rewrite
from fake_tables import PAPER, ROWS, result
from page_reader import Page
from segdistill.config import parse
from segdistill.grid import Cell, Outcome, TableConfig, collect_table
from segdistill.report import headline, main_table, remarks, render, write_tables
from segdistill.report.page import policy
from segdistill.report.views import MANY, row_colors
from tiny_runs import tiny

SWEEP = {"title": "labels", "values": {"1/16": [], "full": []}}
GROUPED = [row | {"group": group} for group in ("F2L", "F2F") for row in ROWS[:2]]


def svgs(text, kind):
    return [ET.fromstring(found) for found in re.findall(rf'<svg class="{kind}".*?</svg>', text)]


def printed_rows(found):
    """The table as text, a star at a column's best."""
    table = main_table(found)
    heads = [table.first, *(column.title for column in table.columns)]
    return [heads, *([line.title, *(cell.text + "*" * cell.best for cell in line.cells)] for line in table.lines)]


def sections(text):
    return re.findall(r'<section id="(\w+)"', text)


def test_the_table_of_the_page_is_the_table_that_is_printed(tmp_path):
    scores = {(0, "", 0): 0.2, (0, "", 1): 0.22, (1, "", 0): 0.3, (1, "", 1): 0.34, (2, "", 0): 0.25, (2, "", 1): None}
    found = result(tmp_path, scores, paper=PAPER)
    page = Page(render(found))
    printed = printed_rows(found)
    shown = [
        [cell + "*" * bold for cell, bold in zip(cells, bolds, strict=True)]
        for cells, bolds in zip(page.rows[1:], page.bold[1:], strict=True)
    ]
    assert shown == printed
    assert page.open == []
    assert "66.2" in page.words and "DINOv2, ViT-B" in page.words  # the paper's rows, in full
    assert "Ours, seed 1: went wrong" in page.words
    assert any("1 run has not finished" in words for words in page.words)


def test_the_page_needs_nothing_from_outside_and_holds_every_part(tmp_path):
    found = result(tmp_path, {(row, "", 0): 0.2 + row / 10 for row in range(3)}, paper=PAPER)
    for (row, _, seed), run in found.runs.items():  # pictures, which quick runs have not
        make_run(run.folder / "p", f"r{row}", seed=seed, pictures=ALL_PICTURES)
        (run.folder / "p" / "pictures").rename(run.folder / "pictures")
        run.pictures.domains.update({domain: tuple(indices) for domain, indices in ALL_PICTURES["domains"].items()})
    text = render(found)
    page = Page(text)
    assert f'http-equiv="Content-Security-Policy" content="{html.escape(policy()).replace("&#x27;", "&#39;")}"' in text
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert not re.search(r"url\(|@import|https?://|<link|<script ", text)
    assert sections(text) == ["table", "paper", "bars", "leads", "classes", "curves", "pictures", "how"]
    assert text.count("<img") == 9 * (2 + 2 * 4)  # image, truth; classes and errors of teacher and three rows
    assert len(svgs(text, "radar")) == 1


def test_titles_cannot_become_markup(tmp_path):
    evil = '<script>alert("x")</script>'
    rows = [{"title": evil + str(i), "recipe": "x", "group": evil, "baseline": i == 0} for i in range(2)]
    sweep = {"title": evil, "values": {evil: [], "b": []}}
    for number, changes in enumerate(({"sweep": sweep}, {})):
        values = (evil, "b") if changes else ("",)
        scores = {(row, value, seed): 0.2 + row / 10 for row in range(2) for value in values for seed in (0, 1)}
        scores[0, values[0], 1] = None
        text = render(result(tmp_path / str(number), scores, rows=rows, title=evil, **changes))
        assert text.count("<script") == 1  # the page's own
        assert Page(text).open == []
        assert svgs(text, "radar")


def test_the_answer_names_the_best_its_lead_and_what_it_keeps(tmp_path):
    found = result(tmp_path / "a", {(0, "", 0): 0.2, (1, "", 0): 0.4, (2, "", 0): 0.25})
    (one,) = found.runner_ups()
    low, high = one.interval
    assert one.bounds == (f"{low:.1f}", f"{high:.1f}")
    assert headline(found) == (
        f"GKD & co is best on unseen domains: 40.0 mIoU, 15.0 points ahead of Ours "
        f"(95 % interval {low:.1f} to {high:.1f}); it keeps 80.0 % of its teacher's mIoU, with 1.20 M parameters "
        "against the teacher's 5.35 M."
    )
    assert remarks(found) == ["One seed each: differences of a point or two may be chance."]
    page = Page(render(found))
    assert {"40.0", "+15.0", "+20.0", "80.0"} <= set(page.words)
    worse = result(tmp_path / "b", {(0, "", 0): 0.3, (1, "", 0): 0.2, (2, "", 0): 0.55})
    assert headline(worse).endswith(
        "; that is 10.0 % above its teacher, with 1.20 M parameters against the teacher's 5.35 M."
    )
    assert "GKD & co ends below None." in remarks(worse)
    worst = result(tmp_path / "c", {(0, "", 0): 0.6, (1, "", 0): 0.2, (2, "", 0): 0.55})
    assert "GKD & co and Ours end below None." in remarks(worst)


def test_a_lead_within_the_images_chance_is_said_and_drawn_open(tmp_path):
    found = result(tmp_path, {(0, "", 0): 0.20, (1, "", 0): 0.2006})
    (one,) = found.runner_ups()  # the images of both are alike: an interval of zero width at zero
    assert not one.settled
    assert one.bounds == ("0.0", "0.0")
    assert replace(one, interval=(-0.04, 0.3)).bounds == ("0.0", "0.3")
    assert ", so it may be chance)" in headline(found)
    assert re.search(r'class="row a\d open"', render(found))


@pytest.mark.parametrize(("scores", "said"), [
    ({(1, "", 0): 0.4}, "GKD & co reaches 40.0 mIoU on unseen domains; it keeps 80.0 % of its teacher's mIoU, "
     "with 1.20 M parameters against the teacher's 5.35 M."),
    ({(0, "", 0): 0.3, (1, "", 0): 0.30004}, "GKD & co and None are level on unseen domains, at 30.0 mIoU."),
    ({(0, "", 0): None}, "No run of this table has finished."),
])  # fmt: skip
def test_one_row_a_tie_and_nothing_at_all_have_their_sentences(tmp_path, scores, said):
    found = result(tmp_path, scores)
    assert headline(found) == said
    paths = write_tables(found, tmp_path / "out")
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.json", "table.tex", "report.html"]
    assert Page(paths[-1].read_text()).open == []


def test_a_score_that_is_missing_leaves_a_dash_and_no_row_in_the_charts(tmp_path):
    found = result(tmp_path, {(0, "", 0): 0.2, (1, "", 0): 0.3})
    run = found.runs[1, "", 0]
    models = json.loads((run.folder / "results.json").read_text())["models"]
    models["student"]["domains"]["fog"]["miou"] = models["student"]["mean_unseen"] = None
    rewrite(run.folder, models=models, retention=None)
    again = result_again(found)
    page = Page(render(again))
    gkd = next(row for row in page.rows if row[0] == "GKD & co")
    at = page.rows[1].index
    assert (gkd[at("fog")], gkd[at("mean unseen")], gkd[at("rain")]) == ("–", "–", "30.0")
    assert headline(again).startswith("None reaches 20.0 mIoU")


def result_again(found):
    """The same table read anew from its folders."""
    outcomes = [
        Outcome(Cell(row, value, seed, tiny(run.folder / "again"), (), ""), run.folder)
        for (row, value, seed), run in found.runs.items()
    ]
    return collect_table(parse(TableConfig, found.config), outcomes)


def test_a_sweep_has_a_curve_per_row_whose_heights_are_the_scores(tmp_path):
    scores = {
        (row, value, seed): 0.1 + 0.1 * (row % 2) + 0.05 * (value == "full") + 0.01 * seed
        for row in range(4)
        for value in ("1/16", "full")
        for seed in (0, 1)
    }
    found = result(tmp_path, scores, rows=GROUPED, sweep=SWEEP)
    text = render(found)
    panels = svgs(text, "sweep")
    assert len(panels) == 2
    for panel in panels:
        ticks = [(float(t.get("y")), float(t.text)) for t in panel.iter("text") if t.get("text-anchor") == "end"]
        (y0, low), (y1, high) = ticks[0], ticks[-1]
        lines = {group.find("title").text.partition(":")[0]: group for group in panel.iter("g")}
        assert set(lines) == {"Teacher", "None", "GKD & co"}
        heights = [float(circle.get("cy")) for circle in lines["GKD & co"].iter("circle")]
        seen = [low + (y - y0) / (y1 - y0) * (high - low) for y in heights]
        assert seen == pytest.approx([20.5, 25.5], abs=0.1)
        assert sum(path.get("class") == "whisker" for path in lines["GKD & co"].iter("path")) == 2
        assert [t.text for t in panel.iter("text") if t.get("text-anchor") == "middle"] == ["1/16", "full"]
    assert headline(found) == (
        "F2L: GKD & co is best at both values of labels, by 10.0 points. "
        "F2F: GKD & co is best at both values of labels, by 10.0 points."
    )
    assert "F2L, labels: full" in Page(text).words  # what radar, classes and pictures show
    assert sections(text)[:2] == ["table", "sweep"]


def test_a_sweep_is_tested_at_every_value_and_told_who_wins_where(tmp_path):
    scores = {(0, "1/16", 0): 0.3, (1, "1/16", 0): 0.2, (0, "full", 0): 0.2, (1, "full", 0): 0.3}
    found = result(tmp_path, scores, sweep=SWEEP)
    assert [(one.value, one.first, one.second) for one in found.runner_ups()] == [("1/16", 0, 1), ("full", 1, 0)]
    assert found.sentence(found.runner_ups()[0]).startswith(
        "1/16: None is ahead of GKD & co by 10.0 points (95 % interval"
    )
    assert headline(found) == "None is best at 1 of 2 values of labels, GKD & co at 1."
    assert "GKD & co ends below None at 1/16." in remarks(found)


def test_colours_belong_to_titles_and_the_best_has_the_first(tmp_path):
    scores = {(0, "", 0): 0.1, (1, "", 0): 0.3, (2, "", 0): 0.2, (3, "", 0): 0.25}
    found = result(tmp_path, scores, rows=GROUPED)
    assert row_colors(found) == {-1: "teacher", 0: "a1", 1: "a0", 2: "a1", 3: "a0"}
    nine = [{"title": str(i), "recipe": "x"} for i in range(9)]
    colors = row_colors(result(tmp_path / "nine", {(4, "", 0): 0.2}, rows=nine))
    assert len(set(colors.values())) == 10
    assert colors[4] == "a0"


def test_a_long_table_shows_the_best_of_each_group_in_detail(tmp_path):
    rows = [{"title": f"try {i}", "recipe": "x", "group": g} for g in ("A", "B") for i in range(MANY // 2 + 1)]
    scores = {(row, "", 0): 0.2 + row / 100 for row in range(len(rows))}
    text = render(result(tmp_path, scores, rows=rows))
    (shape,) = svgs(text, "radar")
    titles = [group.find("title").text.rpartition(":")[0] for group in shape.iter("g")]
    assert sorted(titles) == ["A: try 6", "B: try 6", "Teacher"]
    assert "The best row of each group" in Page(text).words


@pytest.mark.parametrize("sweep", [None, SWEEP])
def test_seconds_and_peak_memory_stand_in_the_table_of_a_sweep_in_one_of_their_own(tmp_path, sweep):
    value = "full" if sweep else ""
    found = result(tmp_path, {(0, value, 0): 0.2, (1, value, 0): 0.3}, sweep=sweep)
    for (row, _, _), run in found.runs.items():
        for path in (run.folder / "stages").glob("*/manifest.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"memory_mb": 1000 + row}))
    text = render(result_again(found))
    start = text.index("<table", text.index('id="cost"' if sweep else 'id="table"'))
    page = Page(text[start : text.index("</table>", start) + len("</table>")])
    heads, *rows = page.rows if sweep else page.rows[1:]
    shown = [[row[0], row[heads.index("full" if sweep else "seconds")], row[heads.index("peak MiB")]] for row in rows]
    times = ("1 min 01 s", "2 min 00 s", "2 min 00 s") if sweep else ("61.2", "120", "120")
    assert shown[:3] == [["Teacher", times[0], "–"], ["None", times[1], "1,000"], ["GKD & co", times[2], "1,001"]]
    assert ('id="cost"' in text) == bool(sweep)


def test_the_headline_is_about_students_where_a_group_of_teachers_is_better(tmp_path):
    scores = {(0, "", 0): 0.4, (1, "", 0): 0.5, (2, "", 0): 0.2, (3, "", 0): 0.3}
    found = result(tmp_path, scores, rows=GROUPED)
    assert [ranked[0] for ranked in found.tops()] == [1, 3]
    for row in (0, 1):
        folder = found.runs[row, "", 0].folder
        models = json.loads((folder / "results.json").read_text())["models"]
        rewrite(folder, models={"student": models["student"]}, retention=None)
    again = result_again(found)
    assert [ranked[0] for ranked in again.tops()] == [3, 1]
    assert headline(again).startswith("F2F: GKD & co is best on unseen domains: 30.0")


def test_a_row_without_a_teacher_is_compared_with_that_of_its_seed_in_its_group_alone(tmp_path):
    found = result(tmp_path, {(row, "", seed): 0.2 for row in range(4) for seed in range(2)}, rows=GROUPED)
    for row, seed in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 1)):
        folder = found.runs[row, "", seed].folder
        models = json.loads((folder / "results.json").read_text())["models"]
        rewrite(folder, models={"student": models["student"]}, retention=None)
    models["teacher"]["mean_unseen"] /= 2
    models["teacher"]["domains"] = {
        name: each | {"miou": each["miou"] / 2} for name, each in models["teacher"]["domains"].items()
    }
    rewrite(found.runs[3, "", 1].folder, models=models, retention=0.8)
    arms = result_again(found).arms
    assert [arms[row, ""].retentions for row in range(4)] == [(None, None), (None, None), (0.4, 0.8), (0.4, 0.8)]


def test_bold_is_the_best_of_its_own_group(tmp_path):
    scores = {(0, "", 0): 0.1, (1, "", 0): 0.3, (2, "", 0): 0.2, (3, "", 0): 0.15, (3, "", 1): None}
    found = result(tmp_path, scores, rows=GROUPED)
    lines = printed_rows(found)
    assert found.errors == ("F2F: GKD & co, seed 1: went wrong",)
    at = lines[0].index("mean unseen")
    assert [line[at] for line in lines[2:]] == ["10.0", "30.0*", "20.0*", "15.0"]
    assert len(SOURCE + UNSEEN) == at - 1
