"""How sure the numbers of a report are."""

import json

from fake_runs import flat, rewrite
from segdistill.report import headline, main_table, remarks, to_markdown, to_terminal, write_report
from segdistill.results import collect


def test_one_seed_has_the_interval_of_its_images_and_several_their_own_spread(tmp_path):
    folders = [flat(tmp_path / name, 0.4, seed=seed) for seed, name in enumerate("ab")]
    for folder in folders:
        models = json.loads((folder / "results.json").read_text())["models"]
        models["student"]["mean_unseen_interval"] = [0.381, 0.4249]
        rewrite(folder, models=models)
    comparison = collect(folders[:1])
    place = [column.key for column in main_table(comparison).columns].index("mean_unseen")
    teacher, student = (row.cells[place] for row in main_table(comparison).lines)
    assert (teacher.text, student.text) == ("50.0", "40.0 [38.1, 42.5]")
    assert "40.0 [38.1, 42.5]" in to_markdown(comparison)
    write_report(folders[:1], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "40.0<small> [38.1,\xa042.5]</small>" in page
    assert "In brackets: 95 % interval" in page
    assert main_table(collect(folders)).lines[1].cells[place].text == "40.0 ± 0.0"
    write_report(folders, tmp_path / "page.html")
    assert "In brackets" not in (tmp_path / "page.html").read_text()


def test_a_network_that_nothing_was_trained_in_is_not_called_best(tmp_path):
    folders = [flat(tmp_path / name, score, name) for name, score in (("start", 0.45), ("a", 0.4), ("b", 0.3))]
    assert headline(collect(folders)).startswith("start is best")
    for manifest in (folders[0] / "stages").glob("*/manifest.json"):
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"steps": 0}))
    found = collect(folders)
    assert headline(found).startswith("a is best")
    assert [found.rows[row].title for row in found.ranked("")] == ["a", "b"]
    alone = collect(folders[:1])
    assert alone.ranked("") == [0]


def test_runs_that_are_too_short_claim_nothing(tmp_path):
    folders = [flat(tmp_path / name, score, name) for name, score in (("a", 0.4), ("b", 0.3))]
    long = collect(folders)
    for folder in folders:
        models = json.loads((folder / "results.json").read_text())["models"]
        models["student"]["mean_unseen_interval"] = [0.29, 0.41]
        for domain in models["student"]["domains"].values():
            domain["images"] = 2
        rewrite(folder, models=models)
    manifest = folders[1] / "stages" / "01-task" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"steps": 3}))
    short = collect(folders)
    said = (
        "Too short to compare: a stage has 3 training steps (at least 50 are needed); "
        "an unseen domain has 2 test images (at least 10 are needed)."
    )
    assert headline(short) == said
    assert (remarks(short), short.ranked("")) == ([], [])
    assert said in to_markdown(short)
    assert to_terminal(short)[1][-1] == said
    write_report(folders, tmp_path / "short.html")
    page = (tmp_path / "short.html").read_text()
    for claim in ("**", "*|", "[29.0", "<strong>", 'class="tile"', 'id="leads"', "ahead of"):
        assert claim not in to_markdown(short) + page, claim
    assert "40.0" in page  # the numbers are there
    assert headline(long).startswith("a is best")  # and with enough of both they are compared
    assert any(cell.best for line in main_table(long).lines for cell in line.cells)
