"""How sure the numbers of a report are."""

import json

from fake_runs import flat, rewrite
from segdistill.report import collect, table_rows, to_markdown, write_report


def test_one_seed_has_the_interval_of_its_images_and_several_their_own_spread(tmp_path):
    folders = [flat(tmp_path / name, 0.4, seed=seed) for seed, name in enumerate("ab")]
    for folder in folders:
        models = json.loads((folder / "results.json").read_text())["models"]
        models["student"]["mean_unseen_interval"] = [0.381, 0.4249]
        rewrite(folder, models=models)
    comparison = collect(folders[:1])
    place = [column.key for column in table_rows(comparison).columns].index("mean_unseen")
    teacher, student = (row.cells[place] for row in table_rows(comparison).rows)
    assert (teacher.text, student.text) == ("50.0", "40.0 [38.1, 42.5]")
    assert "40.0 [38.1, 42.5]" in to_markdown(comparison)
    write_report(folders[:1], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "40.0<small> [38.1,&nbsp;42.5]</small>" in page
    assert "In brackets: 95 % interval" in page
    assert table_rows(collect(folders)).rows[1].cells[place].text == "40.0 ± 0.0"
    write_report(folders, tmp_path / "page.html")
    assert "In brackets" not in (tmp_path / "page.html").read_text()
