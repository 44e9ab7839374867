"""The radar: its corners are the scores, who stands out, and when there is none."""

import math

import pytest

from fake_runs import UNSEEN, flat, make_run, rewrite
from segdistill.report import render
from segdistill.report.charts import radar
from segdistill.report.views import group_views
from segdistill.results import collect

RADIUS, MIDDLE = 150, (240, 192)


def radar_of(*folders, named=()):
    (view,) = group_views(collect(folders))
    return radar(view, named, radius=RADIUS, middle=MIDDLE)


def shapes(plot):
    """{title: (class words, corner points)} of the outlines."""
    return {shape.title.partition(":")[0]: (shape.color.split(), shape.points) for shape in plot.shapes}


def test_a_corner_lies_on_its_axis_as_far_out_as_its_score(tmp_path):
    results = make_run(tmp_path / "a", "gkd", "GKD", strength=0.31)
    make_run(tmp_path / "b", "none", "None", strength=0.15)
    plot = radar_of(tmp_path / "a", tmp_path / "b")
    rings = [float(text.text) for text in plot.texts if text.kind != "axis"]
    _, corners = shapes(plot)["GKD"]
    assert len(corners) == len(UNSEEN)
    for axis, (domain, (x, y)) in enumerate(zip(UNSEEN, corners, strict=True)):
        across, up = x - MIDDLE[0], MIDDLE[1] - y
        score = results["models"]["student"]["domains"][domain]["miou"]
        assert math.hypot(across, up) / RADIUS * rings[-1] == pytest.approx(100 * score, abs=0.05)
        assert math.atan2(across, up) % math.tau == pytest.approx(math.tau * axis / len(UNSEEN), abs=0.01)
    assert rings == sorted(rings)
    assert [text.text for text in plot.texts if text.kind == "axis"] == list(UNSEEN)


def test_the_best_and_the_named_are_in_front_the_others_back_and_the_teacher_neither(tmp_path):
    scores = {"good": 0.4, "middling": 0.3, "bad": 0.2}
    plot = radar_of(*(flat(tmp_path / name, score, name) for name, score in scores.items()), named=[2])
    kinds = {title: kind for title, (kind, _) in shapes(plot).items()}
    assert kinds["good"] == ["a0", "front", "best"]
    assert kinds["middling"][1:] == ["back"]
    assert kinds["bad"][1:] == ["front"]
    assert kinds["Teacher"] == ["teacher"]
    assert next(iter(kinds)) == "middling"  # drawn first, below the others


def test_two_domains_make_no_radar_and_a_model_without_a_score_no_outline(tmp_path):
    a, b = flat(tmp_path / "a", 0.4, "a"), flat(tmp_path / "b", 0.3, "b")
    for run in (a, b):
        rewrite(run, unseen=UNSEEN[:2])
    assert radar_of(a, b) is None
    results = make_run(tmp_path / "c", "c", "C")
    results["models"]["student"]["domains"]["fog"]["miou"] = None
    results["models"]["student"]["mean_unseen"] = None
    rewrite(tmp_path / "c", models=results["models"], retention=None)
    assert list(shapes(radar_of(tmp_path / "c"))) == ["Teacher"]


def test_long_and_strange_domain_names_are_cut_and_escaped(tmp_path):
    run = tmp_path / "a"
    results = make_run(run, unseen=("<b>&fog", "x" * 30, "rain"), pictures={"domains": {}}, retention=None)
    for model in results["models"].values():
        model["domains"] |= {"<b>&fog": model["domains"]["fog"], "x" * 30: model["domains"]["fog"]}
        model["mean_unseen"] = None
    rewrite(run, models=results["models"])
    names = [text.text for text in radar_of(run).texts if text.kind == "axis"]
    assert names == ["<b>&fog", "x" * 13 + "…", "rain"]
    page = render(collect([run]))
    assert "<b>&fog" not in page
    assert "&lt;b&gt;&amp;fog</text>" in page
