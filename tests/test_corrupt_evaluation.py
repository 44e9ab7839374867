"""Evaluation under corruption: the arithmetic of P, mPC and rPC, what is stored and resumed, the command, the pages."""

from __future__ import annotations

import json
import shutil
from statistics import fmean

import numpy as np
import pytest

from fake_runs import make_run, rewrite
from segdistill.config import UserError, parse
from segdistill.data.corrupted import CorruptConfig, Corrupted
from segdistill.data.corruptions import COMMON
from segdistill.data.dataset import DataSelection
from segdistill.data.rendered import WorldSource
from segdistill.grid import load_table
from segdistill.recipe import load
from segdistill.report import corruption_table, headline, main_table, render, to_json
from segdistill.report.corruptions import severity_panels
from segdistill.report.views import group_views
from segdistill.results import collect, load_run
from segdistill.runs.corruptions import summary
from tiny_runs import tiny, tiny_file

TWO = {"names": ["fog", "saturate", "contrast"], "severities": [1, 5]}


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_the_command_scores_student_and_teacher_and_writes_what_it_used(run, call) -> None:
    before = results_of(run)
    status, out, err = call("evaluate", run, "--corrupt", "fog,saturate,contrast", "--severity", "5,1", "--images", "1")
    assert not status, err
    results = results_of(run)
    for role in ("teacher", "student"):
        found = results["models"][role]["corruptions"]
        assert found["domains"] == ["game"], "the domain that the stages were trained on"
        assert found["severities"] == [1, 5]
        scores = found["scores"]
        assert list(scores) == ["fog", "contrast", "saturate"]
        assert found["mpc"] == pytest.approx(fmean([*scores["fog"], *scores["contrast"]])), "not of the extra ones"
        assert found["rpc"] == pytest.approx(found["mpc"] / found["clean"])
        assert results["models"][role]["domains"] == before["models"][role]["domains"]
    (line,) = (run / "scores/corruptions-images.txt").read_text().splitlines()
    assert line in ("game/000000", "game/000001")
    assert "weather: fog" in out and "mPC" in out
    page = (run / "report.html").read_text()
    assert "Corruption by corruption" in page


def test_stored_scores_are_kept_and_only_what_is_missing_is_added(run, call, monkeypatch) -> None:
    from segdistill.runs import corruptions

    scored, real = [], corruptions.evaluate
    monkeypatch.setattr(corruptions, "evaluate", lambda m, d, *a, **k: scored.append(list(d)) or real(m, d, *a, **k))
    options = ("--role", "student", "--out", run)
    assert not call("evaluate", run, "--corrupt", "fog", "--severity", "1", *options)[0]
    assert scored == [["clean"], ["fog/1"]]
    first = results_of(run)["models"]["student"]["corruptions"]
    assert not call("evaluate", run, "--corrupt", "fog,contrast", "--severity", "1,2", *options)[0]
    assert scored[2:] == [["fog/2"], ["contrast/1", "contrast/2"]]
    second = results_of(run)["models"]["student"]["corruptions"]
    assert second["scores"]["fog"][0] == first["scores"]["fog"][0]
    stored = run / "scores/student-corruptions.json"
    stored.write_text(stored.read_text().replace('"clean"', '"klean"'))  # damaged: all is scored again
    assert not call("evaluate", run, "--corrupt", "fog", "--severity", "1", *options)[0]
    assert scored[4:] == [["clean"], ["fog/1"]]
    assert results_of(run)["models"]["student"]["corruptions"]["scores"] == first["scores"]


def test_a_run_of_objects_is_scored_in_the_same_way(finished_objects, tmp_path, call) -> None:
    shutil.copytree(finished_objects, tmp_path / "run")
    status, _, err = call("evaluate", tmp_path / "run", "--corrupt", "brightness", "--severity", "2")
    assert not status, err
    found = load_run(tmp_path / "run").student.corruptions
    assert set(found.scores) == {"brightness"}
    assert found.images == 2


def test_mistakes_are_one_line(run, call) -> None:
    for arguments, message in (
        (("--corrupt", "fogg"), "unknown corruption 'fogg': did you mean 'fog'?"),
        (("--corrupt", "fog", "--severity", "6"), "less than or equal to 5, got 6"),
        (("--corrupt", "fog", "--severity", "1,x"), "got 'x'"),
        (("--corrupt", "fog", "--severity", "1,1"), "each severity once"),
        (("--severity", "1"), "belong to --corrupt"),
    ):
        status, _, err = call("evaluate", run, *arguments)
        assert status == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1
    with pytest.raises(UserError, match="at least one corruption"):
        parse(CorruptConfig, {"names": []})
    with pytest.raises(UserError, match=r"corrupt\.domains names clear, missing from 'domains'"):
        parse_tiny(run, "evaluate.corrupt={domains: [clear]}")


def parse_tiny(folder, *overrides):
    return tiny(folder / "again", *overrides)


def test_recipes_without_corruptions_keep_their_keys(tmp_path) -> None:
    plain, corrupted = tiny(tmp_path).evaluate, tiny(tmp_path, "evaluate.corrupt={names: [fog]}").evaluate
    assert "corrupt" not in plain.facts()
    assert corrupted.facts()["corrupt"]["domains"] == ["game"]
    untrained = load(tiny_file(tmp_path), ["evaluate.corrupt={}", "evaluate.unseen=[game, fog, rain]"]).evaluate
    assert untrained.corrupt.domains == ("game", "fog", "rain")


def test_summary_is_the_mean_over_domains_corruptions_and_severities() -> None:
    config = parse(CorruptConfig, TWO)
    rng = np.random.default_rng(0)
    labels = ["clean", *(f"{name}/{level}" for name in TWO["names"] for level in (1, 5))]
    stored = {domain: {label: {"miou": float(rng.random())} for label in labels} for domain in ("a", "b")}
    found = summary(config, stored, {"a": 3, "b": 4}, "miou")
    value = {label: fmean(stored[domain][label]["miou"] for domain in stored) for label in labels}
    assert found["images"] == 7
    assert found["clean"] == pytest.approx(value["clean"])
    assert found["scores"]["saturate"] == pytest.approx([value["saturate/1"], value["saturate/5"]])
    assert found["mpc"] == pytest.approx(fmean(value[f"{n}/{s}"] for n in ("fog", "contrast") for s in (1, 5)))
    assert found["families"] == {"weather": ["fog"], "digital": ["contrast"], "extra": ["saturate"]}
    assert found["by_domain"]["b"]["clean"] == stored["b"]["clean"]["miou"]
    stored["a"]["fog/5"]["miou"] = None
    assert summary(config, stored, {"a": 3, "b": 4}, "miou")["mpc"] is None


def test_the_subset_is_drawn_by_seed_and_nested() -> None:
    few, many = (parse(CorruptConfig, {"images": count}).rows("game", 50) for count in (5, 20))
    assert len(few) == 5
    assert set(few) < set(many)
    assert few != parse(CorruptConfig, {"images": 5, "seed": 1}).rows("game", 50)
    assert few != parse(CorruptConfig, {"images": 5}).rows("fog", 50)
    assert parse(CorruptConfig, {}).rows("game", 3) == [0, 1, 2]
    assert parse(CorruptConfig, {}).corruptions() == COMMON


def test_an_image_is_the_same_whatever_else_is_chosen(image_cache) -> None:
    dataset = WorldSource(size=(32, 64)).open(DataSelection(domains=("game",), split="test", images=4))
    whole = Corrupted(dataset, range(4), "snow", 3)
    part = Corrupted(dataset, [2], "snow", 3)
    assert np.array_equal(part[0].image, whole[2].image)
    assert not np.array_equal(part[0].image, dataset[2].image)
    assert np.array_equal(part[0].label, dataset[2].label)
    assert not np.array_equal(Corrupted(dataset, [2], "snow", 3, seed=1)[0].image, part[0].image)
    assert list(part.listing()) == ["game/000002"]


def corrupted(folder, level: float, **changes):
    """Gives both models of a run scores that fall from ``level`` with the severity."""
    results = results_of(folder)
    for role, top in (("teacher", level + 0.1), ("student", level)):
        scores = {"fog": [top - 0.1, top - 0.2], "contrast": [top - 0.2, top - 0.3]}
        results["models"][role]["corruptions"] = {
            "domains": ["game"], "images": 48, "seed": 0, "severities": [1, 5], "clean": top, "mpc": top - 0.2,
            "rpc": (top - 0.2) / top, "scores": scores, "families": {"weather": ["fog"], "digital": ["contrast"]},
        } | changes  # fmt: skip
    rewrite(folder, models=results["models"])
    return folder


def test_tables_have_clean_mpc_and_rpc_where_any_run_has(tmp_path) -> None:
    make_run(tmp_path / "a", "gkd", "GKD")
    make_run(tmp_path / "b", "none", "None")
    assert "mpc" not in {column.key for column in main_table(collect([tmp_path / "a"])).columns}
    corrupted(tmp_path / "a", 0.5)
    found = collect([tmp_path / "a", tmp_path / "b"])
    table = main_table(found)
    places = {column.key: place for place, column in enumerate(table.columns)}
    texts = {line.title: [line.cells[places[key]].number for key in ("clean", "mpc", "rpc")] for line in table.lines}
    assert texts["GKD"] == ["50.0", "30.0", "60.0"]
    assert texts["None"] == ["–", "–", "–"]
    assert "mPC: mean over 2 of the 15 common corruptions" in " ".join(table.notes)
    own = {line.title: [cell.number for cell in line.cells] for line in corruption_table(found).lines}
    assert own == {"clean images": ["60.0", "50.0"], "mPC": ["40.0", "30.0"], "fog": ["45.0", "35.0"],
                   "contrast": ["35.0", "25.0"]}  # fmt: skip
    assert json.loads(to_json(found))["runs"][0]["corruptions"]["mpc"] == 0.3


def test_the_page_draws_a_curve_per_corruption_from_clean_to_the_last_severity(tmp_path) -> None:
    make_run(tmp_path / "a", "gkd", "GKD")
    found = collect([corrupted(tmp_path / "a", 0.5)])
    panels = severity_panels(group_views(found)[0])
    assert [title for title, _ in panels] == ["Mean of 2 common", "fog", "contrast"]
    student = panels[1][1].shapes[-1]
    assert student.title == "GKD: 0 50.0, 1 40.0, 5 30.0"
    heights = [y for _, y in student.points]
    assert heights == sorted(heights), "downwards on the page: the score falls"
    page = render(found)
    assert 'id="corruptions"' in page
    assert "Corrupted images" in page


def test_without_unseen_domains_the_headline_is_the_best_under_corruption(tmp_path) -> None:
    for name, level in (("gkd", 0.5), ("none", 0.4)):
        make_run(tmp_path / name, name, name, source=["game"], unseen=[], validation=[], retention=None)
        corrupted(tmp_path / name, level)
        models = results_of(tmp_path / name)["models"]
        rewrite(tmp_path / name, models={role: one | {"mean_unseen": None} for role, one in models.items()})
    found = collect([tmp_path / "gkd", tmp_path / "none"])
    assert headline(found) == "gkd is best under corruption: mPC 30.0 mIoU, 60.0 % of its score on clean images."


def test_runs_of_other_corruptions_are_not_compared(tmp_path) -> None:
    for name, changes in (("a", {}), ("b", {"images": 10})):
        make_run(tmp_path / name, name, name)
        corrupted(tmp_path / name, 0.5, **changes)
    with pytest.raises(UserError, match="were scored on other corruptions"):
        collect([tmp_path / "a", tmp_path / "b"])


def test_a_run_whose_corruptions_are_incomplete_is_refused(tmp_path) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(UserError, match="has 1 scores for 2 severities"):
        load_run(corrupted(tmp_path / "a", 0.5, scores={"fog": [0.1], "contrast": [0.1, 0.1]}))


def test_a_table_asks_for_corruptions_by_a_setting(tmp_path, call) -> None:
    """``settings: ["evaluate.corrupt={...}"]`` gives every cell the columns."""
    recipe = tiny_file(tmp_path / "recipe")
    path = tmp_path / "corrupted.yaml"
    path.write_text(f"""# Paper: none. Cost: none.
name: corrupted
title: Corrupted
settings: ["evaluate.corrupt={{names: [fog, contrast], severities: [3], images: 1}}"]
rows: [{{title: A, recipe: {recipe}, baseline: true}}]
""")
    assert load_table(path).settings
    status, _, err = call("bench", path, "--out", tmp_path / "out", "--jobs", "1")
    assert not status, err
    head = (tmp_path / "out/corrupted/table.csv").read_text().splitlines()[0].split(",")
    assert {"clean", "mpc", "rpc"} <= {name.rpartition(":")[2] for name in head}
