"""The tables on the papers' data sets: every cell resolves on files of the official form, and a whole table runs."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest

from official_files import NARROW
from segdistill.grid import cells_of, check_paper, load_table
from segdistill.grid.demo import recipes_folder, shortened
from segdistill.recipe import load
from segdistill.runs.execute import fingerprints

pytestmark = pytest.mark.usefixtures("official_files")

ALL = {path.stem: path for path in sorted((recipes_folder() / "tables").glob("*.yaml"))}
TABLES = {name: path for name, path in ALL.items() if "world" not in name and not name.startswith("real_")}
OURS = ("real_pair", "real_pair_deit", "real_pair_cnn", "real_steps", "real_methods", "real_tuning", "real_few_labels")
"""Tables on real photographs that no paper has."""
CHECKPOINTS = {  # as their owners name them
    "dinov2_s": "dinov2_vits14_pretrain.pth", "dinov2_b": "dinov2_vitb14_pretrain.pth",
    "dinov2_l": "dinov2_vitl14_pretrain.pth", "deit_s": "deit_small_distilled_patch16_224-649709d9.pth",
    "deit_b": "deit_base_distilled_patch16_224-df68dfff.pth", "dino_s": "dino_deitsmall16_pretrain.pth",
    "dino_b": "dino_vitbase16_pretrain.pth", "eva02_s": "eva02_S_pt_in21k_p14.pt",
    "eva02_b": "eva02_B_pt_in21k_p14.pt", "eva02_l": "eva02_L_pt_m38m_p14.pt", "mit_b5": "mit_b5.pth",
    "resnet101_os8": "resnet101-63fe2227.pth", "resnet101_os16": "resnet101-63fe2227.pth",
}  # fmt: skip
TARGETS = {
    "Citys": "cityscapes", "BDD": "bdd100k", "Map": "mapillary_half", "Night": "acdc:night", "Snow": "acdc:snow",
    "Fog": "acdc:fog", "Rain": "acdc:rain", "ACDC": "acdc", "P-I": "potsdam_irrg", "V-I": "vaihingen_irrg",
    "5-7": "endovis18",
}  # fmt: skip
BESIDE = {"table6_gtav": ("acdc",), "table10_voc": ("voc2007_boxes",)}  # domains that are not part of the mean
PAIRS = [  # docs/data.md, "Other pairs"
    ("table1_gtav", "DINOv2-L to ViT-B", "dinov2_l", "deit_b"),
    ("table7_cityscapes", "ViT-B", "dinov2_l", "deit_b"),
    ("table8_gtav", "DINOv2-L to ViT-B", "dinov2_l", "dino_b"),
    ("table2_cityscapes", "DINOv2-L to DINOv2-B", "dinov2_l", "dinov2_b"),
    ("table2_potsdam", "EVA02-L to EVA02-B", "eva02_l", "eva02_b"),
    ("table2_gtav", "EVA02-B to EVA02-S", "eva02_b", "eva02_s"),
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A working folder with a file of each checkpoint's name; a cell's fingerprint reads bytes, whatever they are."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "weights").mkdir()
    for name in CHECKPOINTS.values():
        (folder / "weights" / name).write_text(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@cache
def resolved(name: str, *overrides: str):
    """The table and its cells, as the command makes them."""
    config = load_table(TABLES[name], overrides)
    check_paper(config)
    return config, cells_of(config, recipes_folder(), overrides)


def paired(block: str, teacher: str, student: str) -> tuple[str, ...]:
    """The overrides of another teacher and student."""
    encoders = (("teacher", teacher), ("student", student))
    changes = [f"{role}.encoder.name={name}" for role, name in encoders]
    changes += [f"{role}.encoder.weights=weights/{CHECKPOINTS[name]}" for role, name in encoders]
    if student.startswith("eva02"):
        changes.append("table.rows.0.paper=EVA02")
    return ("table.name=other", f"table.paper.block={block}", *changes)


def check_encoders(cells) -> None:
    for cell in cells:
        for model in filter(None, (cell.recipe.teacher, cell.recipe.student)):
            assert model.encoder.weights == f"weights/{CHECKPOINTS[model.encoder.name]}"
            if not model.encoder.name.startswith(("resnet", "mit")):
                assert model.encoder.cell == 16
                assert model.encoder.built_for == cell.recipe.data.size


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("name", TABLES)
def test_every_cell_resolves_on_official_files_and_scores_the_papers_targets(name):
    config, cells = resolved(name)
    assert config.name == name
    assert {cell.row for cell in cells} == set(range(len(config.rows)))
    assert len({cell.key for cell in cells}) == len(cells)  # no two rows are the same computation
    places = {config.place(row.group) for row in config.rows}
    assert {cell.recipe.paper for cell in cells} == places
    check_encoders(cells)
    columns = [title.split("/")[1] for place in places if place is not None for title in place.block_of().columns]
    columns = list(dict.fromkeys(columns))
    for cell in cells:
        evaluate = cell.recipe.evaluate
        assert evaluate.images is None
        assert evaluate.unseen == tuple(domain for domain in evaluate.domains if domain not in BESIDE.get(name, ()))
        if TARGETS.keys() & set(columns):
            assert [TARGETS[column] for column in columns if column != "Avg."] == list(evaluate.domains)
    comment = [line for line in TABLES[name].read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Paper: arXiv 2603.02554, ") for line in comment)
    assert "not measured" in " ".join(comment)


@pytest.mark.parametrize("name", OURS)
def test_every_cell_of_our_tables_on_photographs_resolves(name, facades, monkeypatch):
    """Rows differ, share the teacher's head, and the encoder of every student has the steps that the table names."""
    monkeypatch.chdir(facades)
    (facades / "weights").mkdir(exist_ok=True)
    for file in ("dinov2_vits14_timm", "deit_tiny_patch16_224"):
        (facades / f"weights/{file}.safetensors").write_text("any bytes")
    config = load_table(ALL[name], ())
    cells = cells_of(config, recipes_folder(), ())
    assert config.name == name
    assert len({cell.key for cell in cells}) == len(cells) == len(config.rows) * len(config.seeds)
    assert len({cell.prints[0] for cell in cells}) == 1
    for cell in cells:
        assert cell.recipe.evaluate.unseen == ("mallorca", "barcelona", "night", "london_paris")
        assert cell.recipe.evaluate.validation == ("spain",)
        (trained,) = [stage for stage in cell.recipe.stages[1:] if stage.steps and "encoder" in stage.trains]
        row = config.rows[cell.row]
        steps = re.match(r"([\d,]+) steps", row.group or "")
        wanted = 1 if row.title == "The start alone" else int(steps[1].replace(",", "")) if steps else 1500
        assert trained.steps == wanted
        assert (trained.method is None) == (trained.cache is None)


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize(("name", "block", "teacher", "student"), PAIRS)
def test_the_other_pairs_are_overrides(name, block, teacher, student):
    config, cells = resolved(name, *paired(block, teacher, student))
    assert (config.name, config.paper.block) == ("other", block)
    check_encoders(cells)
    assert {(cell.recipe.teacher.encoder.name, cell.recipe.student.encoder.name) for cell in cells} == {
        (teacher, student)
    }
    assert {row.title for row in config.rows if not row.paper} <= {"No distillation (encoder trained)"}


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("name", [name for name in TABLES if name.startswith("table3")])
def test_a_label_fraction_is_of_the_students_labels_and_everything_before_is_shared(name):
    config, cells = resolved(name)
    columns = [title.split("/")[1].replace(":", "/") for title in config.paper.block_of().columns]
    assert list(config.sweep.values) == columns
    for cell in cells:
        *earlier, task = cell.recipe.stages
        assert task.data.fraction == {"1/16": 1 / 16, "1/8": 1 / 8, "1/4": 1 / 4, "full": None}[cell.value]
        assert all(stage.data.fraction is None for stage in earlier)
    for row in range(len(config.rows)):
        prints = [cell.prints for cell in cells if cell.row == row]
        assert len({stages[:-1] for stages in prints}) == 1
        assert len({stages[-1] for stages in prints}) == 4


@pytest.mark.usefixtures("weights")
def test_tables_share_the_stages_that_no_source_and_no_ablation_changes():
    def print_of(table, row, stage):
        cell = [cell for cell in resolved(table)[1] if cell.recipe.title == row][-1]
        return cell.prints[[each.name for each in cell.recipe.stages].index(stage)]

    agnostic = {print_of(table, "+ GKD", "task_agnostic") for table in TABLES if table.startswith("table1_")}
    agnostic |= {print_of("table3_gtav", "+ GKD", "task_agnostic"), print_of("table4_gtav", "QSD", "task_agnostic"),
                 print_of("table5_gtav", "+ frozen encoder", "task_agnostic"),
                 print_of("figure1_gtav_synthia", "+ GKD", "task_agnostic"),
                 print_of("table7_cityscapes", "Mask2Former", "task_agnostic")}  # fmt: skip
    assert len(agnostic) == 1
    (alone,) = (cell.prints for cell in resolved("table1_gtav")[1] if cell.recipe.title == "+ GKD")
    assert list(alone) == fingerprints(load(recipes_folder() / "gtav_gkd.yaml"))  # run by itself, with several GPUs
    assert print_of("table1_gtav", "+ GKD", "teacher") == print_of("table2_gtav", "+ GKD", "teacher")


def reduced(name: str, only: tuple[str, ...] = ()) -> list[str]:
    """Overrides that make a table run in seconds: two steps of every stage on small networks and four images."""
    rows = []
    for row in load_table(TABLES[name]).rows:
        recipe = load(recipes_folder() / f"{row.recipe}.yaml", ["teacher.encoder.weights=random"])
        own = [*row.settings, *shortened(recipe)]
        for stage in recipe.stages:
            if stage.type == "distill":
                own += [f"stages.{stage.name}.{key}=null" for key in ("size", "patch", "teacher_resample")]
            if any("afdcd" in setting for setting in row.settings) and stage.name == "task":
                own += ["stages.task.method.pool=2", "stages.task.method.patch=2"]  # 4 x 8 tokens
        if not only or row.title in only:
            rows.append(row.model_dump() | {"settings": own})
    return [*NARROW, "table.name=reduced", f"table.rows={json.dumps(rows)}"]


@pytest.fixture
def bench(tmp_path, call):
    def run(name: str, *arguments: str, only: tuple[str, ...] = ()):
        arguments = (*reduced(name, only), "--out", str(tmp_path / "out"), "--jobs", "1", *arguments)
        status, out, err = call("bench", TABLES[name], *arguments)
        assert not status, err
        return out, tmp_path / "out"

    return run


def test_a_whole_table_runs_and_shows_the_papers_numbers(bench):
    printed, out = bench("table1_cityscapes")
    markdown = (out / "reduced/table.md").read_text()
    rows = load_table(TABLES["table1_cityscapes"]).rows
    for row, score in zip(rows, ("40.7", "–", "49.1", "50.0", "50.4", "51.2", "47.6", "48.9", "57.7"), strict=True):
        (line,) = [line for line in markdown.splitlines() if line.startswith(f"| {row.title} |")]
        assert line.endswith(f"| {score} |"), line
        assert row.title in printed
    assert "Table 1, DINOv2-B to ViT-S" in (out / "reduced/report.html").read_text()


def test_a_dry_run_counts_every_stage_once_and_leaves_nothing(bench):
    printed, out = bench(
        "table1_cityscapes", "--dry-run", only=("No distillation (encoder trained)", "+ G2SD", "+ GKD")
    )
    labels = re.findall(r"\b\d\d-[a-z_]+", printed)  # long names wrap
    assert labels == ["00-teacher", "01-task", "01-domain_agnostic", "02-task", "01-task_agnostic",
                      "02-domain_agnostic", "03-task"]  # fmt: skip
    assert "GFLOP/s assumed), 12 images to score" in printed  # 3 rows, 4 conditions, one image
    assert not out.exists()
