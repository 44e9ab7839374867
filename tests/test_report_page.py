"""What a page owes its readers: order, names, units, and a terminal's width."""

import itertools
import re

import pytest

from fake_runs import ALL_PICTURES, make_run, rewrite
from page_reader import Page
from segdistill.report import headline, main_table, render, to_latex, to_terminal
from segdistill.results import collect, load_run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Two arms of two seeds with all pictures."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        for name, strength in (("plain", 0.15), ("gkd", 0.31)):
            make_run(root / f"{name}-{seed}", name, name, seed, strength, pictures=ALL_PICTURES)
    return sorted(root.iterdir())


def test_a_page_can_be_read_without_seeing_it(demo):
    text = render(collect(demo))
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        assert re.search(r"<caption>\S", table)
        assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", table))
    assert all(re.search(r'alt="[^"]+"', picture) for picture in re.findall(r"<img[^>]*>", text))
    assert all(re.search(r'role="img" aria-label="[^"]+"', plot) for plot in re.findall(r"<svg[^>]*>", text))


def test_a_page_takes_its_scores_name_and_unit_from_the_results(tmp_path):
    results = make_run(tmp_path / "run", title="Tagger", pictures={"domains": {}})
    for model in results["models"].values():
        for scores in model["domains"].values():
            scores["f1"] = scores.pop("miou")
            del scores["iou"]
    metrics = {"f1": {"label": "F1", "unit": ""}}
    rewrite(tmp_path / "run", models=results["models"], primary="f1", metrics=metrics)
    text = render(collect([tmp_path / "run"]))
    page = Page(text)
    mean = results["models"]["student"]["mean_unseen"]
    assert headline(collect([tmp_path / "run"])).startswith(f"Tagger reaches {mean:.3f} F1 on unseen domains")
    assert page.rows[3][7] == f"{mean:.3f}"
    assert not re.search(r"\bm?iou\b", text, re.IGNORECASE)
    assert 'id="classes"' not in text


def test_a_terminal_table_fits_its_width_and_says_what_it_leaves_out(demo):
    comparison = collect(list(demo))
    titles = [column.title for column in main_table(comparison).columns]
    for width in (70, 100, 140, 400):
        rows, below = to_terminal(comparison, width)
        assert sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)) - 2 <= width
        left_out = [title for title in titles if title not in rows[0]]
        assert all(title in below[0] for title in left_out)
        assert "mean unseen" in rows[0]
    assert left_out == []


def test_the_environment_of_a_folder_of_scores_is_in_its_results(tmp_path):
    make_run(tmp_path / "run")
    (tmp_path / "run" / "environment.json").unlink()
    rewrite(tmp_path / "run", environment={"commit": "abc"})
    assert load_run(tmp_path / "run").environment == {"commit": "abc"}


def test_every_character_that_latex_reads_as_something_else_is_escaped(tmp_path):
    make_run(tmp_path / "run", title="a#b $1 {c} 2^3 ~ x_y & 5% \\d")
    text = to_latex(collect([tmp_path / "run"]))
    assert r"a\#b \$1 \{c\} 2\textasciicircum{}3 \textasciitilde{} x\_y \& 5\% \textbackslash{}d" in text


def test_pictures_of_an_unknown_task_are_shown_as_they_are(tmp_path):
    make_run(tmp_path / "run")
    rewrite(tmp_path / "run", task="tags")
    assert Page(render(collect([tmp_path / "run"]))).rows
