"""The comparison, its table and its page, on run folders made as the runner leaves them."""

import base64
import csv
import hashlib
import html
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest
from PIL import Image

from fake_runs import ALL_PICTURES, CLASSES, COLORS, METRICS, SOURCE, UNSEEN, VALIDATION, flat, make_run, rewrite
from page_reader import Page
from segdistill.config import UserError
from segdistill.pictures import load_label
from segdistill.report import headline, main_table, remarks, to_csv, to_markdown, to_terminal, write_report
from segdistill.report.table import duration
from segdistill.results import collect, load_run


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Three arms; GKD and vanilla with three seeds."""
    root = tmp_path_factory.mktemp("runs")
    results = {}
    for seed in range(3):
        for name, title, strength in (
            ("plain", "No distillation", 0.15),
            ("vanilla", "Vanilla KD", 0.2),
            ("gkd", "GKD", 0.31),
        ):
            folder = root / f"{name}-{seed}"
            results[folder] = make_run(
                folder, name, title, seed, strength, pictures=ALL_PICTURES, distilled=name != "plain"
            )
    return results


def page_of(folders, tmp_path):
    write_report(list(folders), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    return Page(text), text


def keys_of(table):
    return [column.key for column in table.columns]


def miou(results, seeds, name, domain):
    return [r["models"]["student"]["domains"][domain]["miou"] for r in results.values() if r["name"] == name][:seeds]


def test_the_page_shows_the_numbers_of_the_results(tmp_path):
    results = make_run(tmp_path / "run", seed=3)
    page, _ = page_of([tmp_path / "run"], tmp_path)
    teacher, student = page.rows[2:]
    domains = (*SOURCE, *UNSEEN)
    for row, role in ((teacher, "teacher"), (student, "student")):
        model = results["models"][role]
        shown = [f"{100 * model['domains'][d]['miou']:.1f}" for d in domains] + [f"{100 * model['mean_unseen']:.1f}"]
        assert row[1:8] == shown
        assert row[9:11] == [f"{100 * model['domains'][d]['miou']:.1f}" for d in VALIDATION]
    assert teacher[0] == "Teacher"
    assert (teacher[8], student[8]) == ("–", f"{100 * results['retention']:.1f}")
    assert (teacher[11:], student[11:]) == (["5.35", "61.2"], ["1.20", "124"])
    assert "validation, not unseen" in page.rows[0]
    iou = fmean(results["models"]["student"]["domains"][d]["iou"][0] for d in UNSEEN)  # road, over the unseen domains
    assert f"{100 * iou:.1f}" in page.words


def test_several_seeds_become_mean_and_sample_deviation(demo):
    comparison = collect(list(demo))
    table = main_table(comparison)
    assert [line.title for line in table.lines] == ["Teacher", "No distillation", "Vanilla KD", "GKD"]
    fog = keys_of(table).index("fog")
    values = miou(demo, 3, "vanilla", "fog")
    cell = table.lines[2].cells[fog]
    assert cell.value == pytest.approx(sum(values) / 3)
    assert cell.sd == pytest.approx((sum((v - sum(values) / 3) ** 2 for v in values) / 2) ** 0.5)
    assert table.lines[0].cells[fog].sd is None  # one teacher for all seeds, counted once
    assert table.lines[3].seeds == (0, 1, 2)
    assert comparison.arms[2, ""].mean_unseen.values == tuple(
        r["models"]["student"]["mean_unseen"] for r in demo.values() if r["name"] == "gkd"
    )


def test_retention_is_student_by_teacher_on_unseen_domains_per_seed(tmp_path):
    a = flat(tmp_path / "a", 0.40, seed=0, teacher=0.5)
    b = flat(tmp_path / "b", 0.30, seed=1, teacher=0.4)
    comparison = collect([b, a])
    (arm,) = comparison.arms.values()
    assert arm.retention.values == pytest.approx((0.8, 0.75))
    assert comparison.teachers[""].mean_unseen.values == (0.5, 0.4)
    table = main_table(comparison)
    assert table.lines[1].cells[keys_of(table).index("retention")].text == "77.5 ± 3.5"


def test_a_teacher_measured_anew_has_a_spread_and_is_told(tmp_path):
    runs = [flat(tmp_path / "a", 0.40, "a", teacher=0.5), flat(tmp_path / "b", 0.40, "b", teacher=0.4)]
    comparison = collect(runs)
    assert main_table(comparison).lines[0].cells[6].text == "45.0 ± 7.1"
    assert [arm.retention.mean for arm in comparison.arms.values()] == pytest.approx([0.8, 1.0])
    assert any(line.startswith("Runs with the same seed scored the teacher separately") for line in remarks(comparison))


def test_a_run_without_a_teacher_is_held_against_the_others_teacher(tmp_path):
    a, b = flat(tmp_path / "a", 0.4), flat(tmp_path / "b", 0.2, "none")
    student = json.loads((b / "results.json").read_text())["models"]["student"]
    rewrite(b, models={"student": student}, retention=None)
    assert load_run(b).teacher is None
    assert [arm.retention.mean for arm in collect([b, a]).arms.values()] == pytest.approx([0.4, 0.8])
    alone = collect([b])
    assert alone.arms[0, ""].retention is None
    assert "retention" not in keys_of(main_table(alone))
    page, _ = page_of([b], tmp_path)
    assert page.rows[2][0] == "none"


def test_the_best_student_is_marked_everywhere(demo, tmp_path):
    comparison = collect(list(demo))
    table = main_table(comparison)
    keys = keys_of(table)
    teacher, none, vanilla, gkd = table.lines
    mean = keys.index("mean_unseen")
    assert [row.cells[mean].best for row in (teacher, none, vanilla, gkd)] == [False, False, False, True]
    assert not any(row.cells[keys.index(d)].best for row in (none, vanilla, gkd) for d in VALIDATION)
    assert f"**{gkd.cells[mean].text}**" in to_markdown(comparison)
    assert [row[0] for row in to_terminal(comparison)[0] if any(cell.endswith("*") for cell in row)] == ["GKD"]
    page, _ = page_of(demo, tmp_path)
    assert [page.bold[i][1 + mean] for i in range(2, 6)] == [False, False, False, True]


def test_equal_shown_scores_are_all_best_and_called_level(tmp_path):
    comparison = collect([flat(tmp_path / "a", 0.30001, "a"), flat(tmp_path / "b", 0.29999, "b")])
    rows = main_table(comparison).lines[1:]
    assert [row.cells[6].best for row in rows] == [True, True]
    assert headline(comparison) == "a and b are level on unseen domains, at 30.0 mIoU."


def test_one_student_alone_is_not_called_best(tmp_path):
    comparison = collect([flat(tmp_path / "a", 0.4, title="GKD")])
    assert not any(cell.best for line in main_table(comparison).lines for cell in line.cells)
    assert headline(comparison) == (
        "GKD reaches 40.0 mIoU on unseen domains; it keeps 80.0 % of its teacher's mIoU, "
        "with 1.20 M parameters against the teacher's 5.35 M."
    )


def test_the_headline_is_honest_when_distillation_loses(tmp_path):
    plain = flat(tmp_path / "n", 0.4, "plain", distilled=False)
    runs = [plain, flat(tmp_path / "v", 0.3, "vanilla"), flat(tmp_path / "g", 0.2, "none")]
    comparison = collect(runs)
    assert headline(comparison).startswith(
        "plain is best on unseen domains: 40.0 mIoU, 10.0 points ahead of vanilla; it keeps 80.0 %"
    )
    assert "vanilla and none end below plain." in remarks(comparison)  # what a run is, not what it is called
    comparison = collect([flat(tmp_path / "g2", 0.45, "gkd2"), *runs])
    assert "vanilla and none end below plain." in remarks(comparison)
    assert [comparison.gain(row) for row in range(4)] == pytest.approx([5.0, None, -10.0, -20.0])
    weak = collect([*runs, flat(tmp_path / "w", 0.1, "weak", distilled=False)])
    assert "Gain: points above plain in the mean over unseen domains." in main_table(weak).notes


def test_the_remarks_count_the_seeds_and_name_the_source_winner(tmp_path):
    scores = {("gkd", 0): 0.40, ("gkd", 1): 0.30, ("mse", 0): 0.30, ("mse", 1): 0.32}
    runs = [flat(tmp_path / f"{n}{s}", score, n, seed=s) for (n, s), score in scores.items()]
    for run in runs:
        models = json.loads((run / "results.json").read_text())["models"]
        models["student"]["domains"]["game"]["miou"] = 0.7 if "mse" in run.name else 0.6
        rewrite(run, models=models)
    assert remarks(collect(runs)) == [
        "gkd is ahead of mse in 1 of 2 seeds only.",
        "On the source domain (game) mse is 10.0 points ahead of gkd.",
    ]
    assert remarks(collect([runs[0], runs[2]]))[-1].startswith("One seed each")


def test_better_than_the_teacher_is_said_so(tmp_path):
    assert "10.0 % above its teacher" in headline(collect([flat(tmp_path / "a", 0.55)]))


def test_no_unseen_domains_are_legal(tmp_path):
    results = make_run(tmp_path / "run", unseen=(), retention=None)
    for model in results["models"].values():
        model["mean_unseen"] = None
    rewrite(tmp_path / "run", models=results["models"])
    comparison = collect([tmp_path / "run"])
    assert comparison.arms[0, ""].mean_unseen is None
    assert headline(comparison).startswith("No unseen domain was measured")
    page, _ = page_of([tmp_path / "run"], tmp_path)
    assert page.rows[1][:4] == ["model", "game", "retention (%)", "dusk"]


def test_not_measured_is_a_dash_not_a_number(tmp_path):
    results = make_run(tmp_path / "run", retention=float("nan"))
    student = results["models"]["student"]
    student["domains"]["fog"]["miou"] = float("nan")
    student["mean_unseen"] = float("nan")
    rewrite(tmp_path / "run", models=results["models"])
    row = main_table(collect([tmp_path / "run"])).lines[1]
    assert [row.cells[i].text for i in (3, 6)] == ["–", "–"]


def test_csv_reads_back_the_unrounded_numbers(demo):
    rows = list(csv.DictReader(io.StringIO(to_csv(collect(list(demo))))))
    assert [row["title"] for row in rows] == ["Teacher", "No distillation", "Vanilla KD", "GKD"]
    for name, row in zip(("plain", "vanilla", "gkd"), rows[1:], strict=True):
        values = miou(demo, 3, name, "night")
        assert float(row["unseen:night"]) == pytest.approx(fmean(values), abs=1e-12)
        assert float(row["unseen:night_sd"]) == pytest.approx(stdev(values), abs=1e-12)
        assert row["seeds"] == "0 1 2"
    assert rows[0]["unseen:night_sd"] == ""
    assert int(rows[3]["parameters"]) == 1_200_000
    assert "validation:dusk" in rows[0]


def test_markdown_reads_back_with_as_many_cells_as_columns(tmp_path):
    run = flat(tmp_path / "a", 0.4, title="a|b *c*")
    head, rule, teacher, student = to_markdown(collect([run])).splitlines()
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in (head, rule, teacher, student)]
    assert len({len(line) for line in split}) == 1
    assert split[3][0].strip() == r"a\|b \*c\*"
    cells = dict(zip((c.strip() for c in split[0]), (c.strip() for c in split[3]), strict=True))
    assert cells["mean unseen"] == "40.0"
    assert cells["dusk (validation)"] == "40.0"
    assert cells["retention (%)"] == "80.0"


def test_names_from_files_cannot_become_markup(tmp_path):
    evil = '<script>alert("x")</script>'
    results = make_run(tmp_path / "run", title=evil)
    results["models"]["teacher"]["title"] = evil
    rewrite(tmp_path / "run", models=results["models"], classes=[evil, *CLASSES[1:]])
    (tmp_path / "run" / "recipe.yaml").write_text(f"# {evil}")
    (tmp_path / "run" / "environment.json").write_text(json.dumps({evil: evil}))
    page, text = page_of([tmp_path / "run"], tmp_path)
    assert text.count("<script") == 1  # the page's own
    assert page.rows[3][0] == evil
    assert page.open == []


def test_the_page_needs_nothing_from_outside(demo, tmp_path):
    page, text = page_of(demo, tmp_path)
    assert page.addresses
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert not re.search(r"url\(|@import|https?://|<link|<script ", text)
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = html.unescape(re.search(r'Security-Policy" content="([^"]*)"', text).group(1))
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert page.open == []  # every element was closed


def test_the_page_holds_every_picture_and_curve(demo, tmp_path):
    page, text = page_of(demo, tmp_path)
    # 9 scenes of image and truth, and class map and errors of the teacher and three arms
    assert text.count("<img") == 9 * (2 + 2 * 4)
    assert "domain agnostic: own position share" in page.words
    assert text.count('<g class="a0">') == 3 * (1 + 1 + 1)  # GKD's three seeds: two losses, share
    truth = load_label(next(iter(demo)) / "pictures" / "truth" / "fog-1.png")
    answer = load_label(next(iter(demo)) / "pictures" / "student" / "fog-1.png")
    right = (truth == answer)[truth != 255].mean()
    assert f"{100 * right:.0f} % correct" in page.words


def test_runs_with_images_of_different_sizes_share_a_page(tmp_path):
    for name, title, strength in (("large", "Large", 0.3), ("small", "Small", 0.1)):
        make_run(tmp_path / name, name, title, 0, strength, pictures={"domains": {"fog": [1]}})
    for path in (tmp_path / "small/pictures").rglob("*.png"):  # as if its images had half the size
        with Image.open(path) as picture:
            half = picture.resize((64, 32), Image.Resampling.NEAREST)
        half.save(path)
    page, text = page_of([tmp_path / "large", tmp_path / "small"], tmp_path)
    truth, answer = (load_label(tmp_path / f"small/pictures/{kind}/fog-1.png") for kind in ("truth", "student"))
    right = (truth == answer)[truth != 255].mean()
    assert f"{100 * right:.0f} % correct, 32 x 64 pixels" in page.words
    assert text.count("<img") == 2 + 3 * 2
    (tmp_path / "small/pictures/truth/fog-1.png").write_bytes(
        (tmp_path / "large/pictures/truth/fog-1.png").read_bytes()
    )
    with pytest.raises(
        UserError, match=r"small/pictures/student/fog-1.png: its size \(32, 64\) differs from its ground"
    ):
        page_of([tmp_path / "large", tmp_path / "small"], tmp_path)


def test_commit_hardware_times_and_recipes_are_told(demo, tmp_path):
    page, _ = page_of(demo, tmp_path)
    for words in ("1a2b3c4", "2 cores", "segdistill run gkd", "1 min 16 s", "domain agnostic", "Recipe: Vanilla KD"):
        assert words in page.words, words
    assert any("student: {encoder: world_student}" in words for words in page.words)


def test_an_unfinished_log_line_is_passed_over_and_repeated_steps_count_once(tmp_path):
    run = flat(tmp_path / "run", 0.4)
    lines = [{"stage": "01-task", "step": step, "loss": loss} for step, loss in ((1, 5.0), (2, 4.0), (1, 3.0))]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"stage": "01-ta')
    assert [(step.step, step.loss) for step in load_run(run).log] == [(1, 3.0), (2, 4.0)]


@pytest.mark.parametrize("name", ["environment.json", "recipe.yaml", "metrics.jsonl", "stages"])
def test_what_may_be_missing_may_be_missing(tmp_path, name):
    make_run(tmp_path / "run")
    target = tmp_path / "run" / name
    target.rename(tmp_path / "elsewhere")
    page, _ = page_of([tmp_path / "run"], tmp_path)
    assert page.rows


def spoil(path, content):
    path.write_text(content) if content is not None else path.unlink()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results.json", None, "results.json is missing: the run is unfinished"),
        ("results.json", '{"format": 1, "na', r"is damaged \("),
        ("results.json", "[]", "expected an object"),
        ("results.json", '{"format": 2}', "format: .*got 2"),
        ("results.json", '{"format": 1, "models": {}}', "names no primary score.* segdistill evaluate"),
        ("results.json", '{"format": 1, "primary": "f1", "metrics": {}}', "primary: 'f1' is not one of its metrics"),
        ("environment.json", "[1]", "expected an object, got list"),
        ("environment.json", "{", "is damaged"),
        ("metrics.jsonl", '{"stage": "a"\n{"stage": "a", "step": 1}\n', "line 1 is damaged"),
        ("metrics.jsonl", '{"stage": "a"}\n', "line 1 is damaged"),
        ("stages/01-domain_agnostic/manifest.json", "", "is damaged"),
        ("pictures/truth/fog-1.png", None, "pictures/truth/fog-1.png is missing"),
        ("pictures/student/fog-1.png", "no picture", "the picture is damaged"),
    ],
)
def test_missing_and_damaged_files_are_one_line_that_names_them(tmp_path, name, content, message):
    make_run(tmp_path / "run")
    spoil(tmp_path / "run" / name, content)
    with pytest.raises(UserError, match=message) as caught:
        write_report([tmp_path / "run"], tmp_path / "page.html")
    assert str(tmp_path / "run") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colors": COLORS[:-1]}, "8 classes but 7 colours"),
        ({"unseen": ["moon"]}, "no scores for the domain 'moon'"),
        ({"classes": CLASSES[:-1], "colors": COLORS[:-1]}, "one IoU per class on 'game'"),
        ({"retention": 0.2}, "retention 0.2 is not student / teacher"),
        ({"unseen": UNSEEN[:2]}, "mean_unseen .* is not the mean of its domains"),
        ({"models": {}}, "models.student: is missing"),
        ({"metrics": {"miou": METRICS["miou"] | {"label": 7}}}, "metrics.miou.label"),
    ],
)
def test_results_that_contradict_themselves_are_refused(tmp_path, changes, message):
    make_run(tmp_path / "run")
    rewrite(tmp_path / "run", **changes)
    with pytest.raises(UserError, match=message):
        load_run(tmp_path / "run")


def test_runs_that_cannot_stand_in_one_table_are_refused(tmp_path):
    a = flat(tmp_path / "a", 0.4)
    with pytest.raises(UserError, match="no run folder given"):
        collect([])
    with pytest.raises(UserError, match="no such run folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="duplicate of run 'gkd' with seed 0"):
        collect([a, flat(tmp_path / "b", 0.3)])
    stranger = flat(tmp_path / "c", 0.3, "mse")
    models = json.loads((stranger / "results.json").read_text())["models"]
    models["teacher"]["parameters"]["encoder"] = 86_000_000
    rewrite(stranger, models=models)
    with pytest.raises(UserError, match=r"c: its teacher .* differs from that of"):
        collect([a, stranger])
    other = flat(tmp_path / "d", 0.3, "mse")
    rewrite(other, classes=["street", *CLASSES[1:]])
    with pytest.raises(UserError, match=r"d and .*a differ in classes: street"):
        collect([a, other])
    rewrite(other, classes=CLASSES, unseen=UNSEEN[::-1])
    with pytest.raises(UserError, match="differ in unseen"):
        collect([a, other])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.26, "4.3 s"), (42, "42 s"), (185, "3 min 05 s"), (59.7, "1 min 00 s"), (7620, "2 h 07 min")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


def test_report_and_pictures_load_no_torch():
    code = "import sys, segdistill.report, segdistill.results, segdistill.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
