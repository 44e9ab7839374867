"""What a student rests on is named, and what binds it is said before anything is trained."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from safetensors.torch import save_file

from segdistill.data.catalog import DATASETS
from segdistill.data.files import FilesSource
from segdistill.encoders import ENCODERS
from segdistill.recipe import dump
from segdistill.sharing.licences import Link, chain, read_chain, restrictions, student_licence, warnings
from tiny_runs import tiny


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", ()),
        ("MIT", ()),
        ("CC BY-SA 4.0", ()),
        ("yours", ()),
        ("CC BY-NC-SA 3.0", ("non-commercial",)),
        ("its own: non-commercial, registration", ("non-commercial", "gated")),
        ("its own: education, research and not-for-profit", ("non-commercial",)),
        ("see the model's page", ("unknown",)),
        ("terms of a company", ("own terms",)),
    ],
)
def test_what_stands_between_a_licence_and_free_use(licence, expected):
    assert restrictions(licence) == expected


def test_every_licence_of_the_tables_is_understood():
    known = {record.licence for record in (*ENCODERS.values(), *DATASETS.values())}
    assert not [licence for licence in known if "unknown" in restrictions(licence)]
    assert restrictions(ENCODERS["dinov3_l"].licence, gated=True) == ("gated",)


def test_the_chain_of_a_recipe_is_teacher_data_student(tmp_path):
    recipe = tiny(tmp_path, "teacher.encoder.weights=shipped")
    assert chain(recipe) == [
        Link("teacher", "world_teacher (shipped)", "Apache-2.0"),
        Link("data", "game", "Apache-2.0"),
        Link("data", "proxy", "Apache-2.0"),
    ]
    assert student_licence(chain(recipe)) == "apache-2.0"


def test_a_gated_teacher_and_data_for_research_bind_the_student(tmp_path):
    recipe = tiny(tmp_path)
    teacher = recipe.teacher.encoder.model_copy(update={"name": "dinov3_s", "weights": "timm:some.weights"})
    recipe = recipe.model_copy(
        update={"teacher": recipe.teacher.model_copy(update={"encoder": teacher}), "data": FilesSource()}
    )
    stage = recipe.stages[0]
    data = stage.data.model_copy(update={"domains": ("cityscapes", "urbansyn")})
    links = chain(recipe.model_copy(update={"stages": (stage.model_copy(update={"data": data}),)}))
    assert [link.name for link in links] == ["dinov3_s (timm:some.weights)", "cityscapes", "urbansyn"]
    assert student_licence(links) == "other"
    lines = warnings(links)
    assert "teacher dinov3_s (timm:some.weights) (DINOv3 License): gated" in lines[0]
    assert "data cityscapes" in lines[1]
    assert "non-commercial use only" in lines[1]
    assert len(lines) == 2
    assert read_chain([link.as_dict() for link in links]) == links


@pytest.mark.parametrize("packed", ["model", "encoder"])
def test_start_weights_of_ours_bring_their_chain_along(packed, tmp_path):
    own = [Link("teacher", "dinov3_l", "DINOv3 License", ("gated",)), Link("data", "game", "Apache-2.0")]
    said = json.dumps({"licences": [link.as_dict() for link in own]})
    save_file(
        {}, tmp_path / "m.safetensors", {"segdistill": said} if packed == "model" else {"encoder": "world_student"}
    )
    if packed == "encoder":
        (tmp_path / "m.json").write_text(said)
    links = chain(tiny(tmp_path, f"student.encoder.weights={tmp_path / 'm.safetensors'}"))
    assert links[:2] == [replace(link, part="student start") for link in own]
    assert student_licence(links) == "other"


@pytest.mark.parametrize("readable", [True, False])
def test_start_weights_from_a_stage_of_another_run_bring_its_chain_along(readable, tmp_path):
    stage = tmp_path / "other" / "stages" / "02-task"
    stage.mkdir(parents=True)
    save_file({}, stage / "encoder.safetensors", {"encoder": "world_student"})
    teacher = ("teacher.encoder={name: dinov3_s, weights: 'timm:some.weights'}", "data.size=[32, 64]")
    text = dump(tiny(tmp_path, *teacher)) if readable else "stages: ["
    (tmp_path / "other" / "recipe.yaml").write_text(text)
    links = chain(tiny(tmp_path / "own", f"student.encoder.weights={stage}"))
    starts = [link for link in links if link.part == "student start"]
    restricted = [(link.name, link.restrictions) for link in starts if link.restrictions]
    assert restricted == [("dinov3_s (timm:some.weights)", ("gated",)) if readable else ("the run other", ("unknown",))]
    assert student_licence(links) == "other"


@pytest.mark.parametrize("dry", [True, False])
def test_a_run_warns_before_it_trains(dry, call, tmp_path, monkeypatch):
    from segdistill.runs import execute as run
    from segdistill.runs import plan

    def stop(*_, **__):
        raise AssertionError("training began")

    monkeypatch.setattr(
        "segdistill.sharing.licences.chain", lambda _: [Link("data", "gta", "research", ("non-commercial",))]
    )
    monkeypatch.setattr(plan, "make_plan", stop)
    monkeypatch.setattr(run, "run", stop)
    tiny(tmp_path)
    from segdistill.sharing.licences import warnings as lines

    said = []
    monkeypatch.setattr("segdistill.sharing.licences.warnings", lambda links: said.extend(lines(links)) or said)
    with pytest.raises(AssertionError, match="training began"):
        call("run", tmp_path / "tiny.yaml", *(["--dry-run"] if dry else []))
    assert said == ["data gta (research): non-commercial use only: a student that learnt from it inherits that"]
