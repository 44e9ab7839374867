"""The recipe tree: class defaults < YAML < overrides; the resolved recipe says the same as the short one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import yaml

from segdistill.config import UserError
from segdistill.recipe import Recipe, apply, dump, last_learner, load
from segdistill.runs.check import check
from segdistill.runs.execute import fingerprints
from tiny_runs import TINY, only, tiny, tiny_file


def test_a_star_addresses_all_items_that_have_the_key():
    from segdistill.overrides import apply

    values = {"stages": [{"name": "a", "data": {"images": 1}}, {"name": "b"}, {"name": "c", "data": {"images": 3}}]}
    apply(values, "stages.*.data.fraction=1/5")
    assert [stage.get("data", {}).get("fraction") for stage in values["stages"]] == ["1/5", None, "1/5"]
    with pytest.raises(UserError, match="no item of stages has 'augment'"):
        apply(values, "stages.*.augment.flip=0")
    with pytest.raises(UserError, match=r"'\*' stands for the items of a list, but data is not one"):
        apply({"data": {}}, "data.*.x=1")


def test_two_stars_address_every_group_that_has_the_key():
    rest = {"images": 9, "fraction": "1/10", "rest": True}
    values = {"stages": [{"name": "a", "data": {"fraction": "1/10"}, "unlabelled": {"data": rest}}, {"data": {}}]}
    apply(values, "stages.**.fraction=1/5")
    assert values["stages"][0] == {
        "name": "a", "data": {"fraction": "1/5"}, "unlabelled": {"data": {**rest, "fraction": "1/5"}}}  # fmt: skip
    assert values["stages"][1] == {"data": {}}
    apply(values, "**.images=4")
    assert values["stages"][0]["unlabelled"]["data"]["images"] == 4
    with pytest.raises(UserError, match="no group below stages has 'fractions'"):
        apply(values, "stages.**.fractions=1/5")
    with pytest.raises(UserError, match=r"'\*\*' stands before the last key"):
        apply(values, "stages.**.data.fraction=1/5")


def test_defaults_are_below_the_file_and_the_file_is_below_overrides(tmp_path):
    assert tiny(tmp_path).stages[0].batch == 2
    assert tiny(tmp_path).stages[0].optimizer.lr == 1e-4
    changed = tiny(tmp_path, "stages.teacher.batch=3", "stages.0.optimizer.lr=0.5", "evaluate.images=7")
    assert changed.stages[0].batch == 3
    assert changed.stages[0].optimizer.lr == 0.5
    assert changed.stages[0].steps == 2
    assert changed.evaluate.images == 7


def test_the_resolved_recipe_loads_as_the_same_recipe(tmp_path):
    recipe = tiny(tmp_path, "evaluate.window={size: [16, 32], stride: [8, 8]}", "student.encoder.image_size=[32, 64]",
                  "stages.agnostic.method.scale=0.5", "title='\u00fc: x'")  # fmt: skip
    path = tmp_path / "resolved.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    assert load(path) == recipe
    assert dump(load(path)) == dump(recipe)


WORLD = ("game", "clear", "night", "fog", "snow", "rain", "dusk", "haze", "drizzle")


@pytest.mark.parametrize(
    ("given", "domains", "unseen", "validation"),
    [
        ({}, WORLD, WORLD[1:6], WORLD[6:]),
        ({"domains": ["dusk", "game", "fog"]}, ("dusk", "game", "fog"), ("fog",), ("dusk",)),
        ({"domains": ["game", "dusk"], "unseen": ["dusk"]}, ("game", "dusk"), ("dusk",), ()),
        ({"domains": ["fog", "dusk"], "validation": []}, ("fog", "dusk"), ("fog", "dusk"), ()),
        ({"unseen": [], "validation": ["fog"]}, WORLD, (), ("fog",)),
        ({"domains": ["game"], "split": "val"}, ("game",), (), ()),
    ],
)
def test_what_an_evaluation_leaves_out_follows_from_the_worlds_roles(tmp_path, given, domains, unseen, validation):
    config = load(tiny_file(tmp_path, only("task", evaluate=given))).evaluate
    assert (config.domains, config.unseen, config.validation) == (domains, unseen, validation)
    assert config.images == 60


OWN = {"source": "files", "sets": {"field": "no/such/dataset.yaml"}}


@pytest.mark.parametrize(
    ("trained", "domains", "more", "unseen"),
    [
        ("gtav", ["gtav", "cityscapes"], {}, ("cityscapes",)),
        ("acdc", ["acdc:night", "cityscapes"], {}, ("cityscapes",)),
        ("acdc:night", ["acdc:fog", "acdc:night"], {}, ("acdc:fog",)),
        ("endovis18", ["endovis18"], {}, ("endovis18",)),  # its splits are other operations
        ("endovis18", ["endovis18"], {"split": "train"}, ()),
        ("gtav", ["cityscapes", "bdd100k"], {"validation": ["bdd100k"]}, ("cityscapes",)),
        ("field", ["field", "cityscapes"], {}, ("cityscapes",)),
    ],
)
def test_files_that_no_stage_reads_are_unseen_and_no_file_is_opened(tmp_path, trained, domains, more, unseen):
    values = yaml.safe_load(only("task", data=OWN, evaluate={"domains": domains} | more))
    values["stages"][0]["data"] = {"domains": [trained]}
    config = Recipe.model_validate(values).evaluate
    assert (config.unseen, config.images) == (unseen, None)


def test_files_are_scored_where_a_recipe_names_domains(tmp_path):
    with pytest.raises(UserError, match="evaluate: domains: is missing"):
        load(tiny_file(tmp_path, only("task", data=OWN, evaluate={})))


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("a=1", {"a": 1}),
        ("a=1.5e-3", {"a": 0.0015}),
        ("a=null", {"a": None}),
        ("a=[1, x]", {"a": [1, "x"]}),
        ("a={b: true}", {"a": {"b": True}}),
        ("a=", {"a": None}),
        ("a=x=y", {"a": "x=y"}),
        ("new.deep.key=2", {"new": {"deep": {"key": 2}}}),
        ("list.one.x=3", {"list": [{"name": "one", "x": 3}, 5]}),
        ("list.1=6", {"list": [{"name": "one"}, 6]}),
        ("list.one=null", {"list": [5]}),
        ("list.1=null", {"list": [{"name": "one"}]}),
        ("empty.x=1", {"empty": {"x": 1}}),
    ],
)
def test_overrides_are_yaml_at_a_dotted_place(override, wanted):
    values = {"list": [{"name": "one"}, 5], "empty": None}
    apply(values, override)
    assert values == {"list": [{"name": "one"}, 5], "empty": None} | wanted


@pytest.mark.parametrize(
    "override", ["a", "=1", " =1", "a=[", "list.two.x=1", "list.2=1", "list.two=null", "number.x=1", "list.-1=0"]
)
def test_an_override_that_leads_nowhere_is_an_error(override):
    with pytest.raises(UserError, match="override"):
        apply({"list": [{"name": "one"}], "number": 1}, override)


def change(values, path, value):
    *steps, last = path
    for step in steps:
        values = values.setdefault(step, {}) if isinstance(values, dict) else values[step]
    values[last] = value


def prints(*changes):
    values = yaml.safe_load(TINY)
    for path, value in changes:
        change(values, path, value)
    return fingerprints(Recipe.model_validate(values))


@pytest.mark.parametrize(
    ("path", "value", "differs"),
    [
        (("seed",), 1, [0, 1, 2]),
        (("data", "redraw"), 1, [0, 1, 2]),
        (("precision",), "bf16-mixed", [0, 1, 2]),
        (("stages", 0, "steps"), 3, [0]),
        (("stages", 1, "steps"), 3, [1, 2]),
        (("stages", 2, "presence_weight"), 0.3, [2]),
        (("student", "encoder", "image_size"), [32, 64], [1, 2]),
        (("teacher", "encoder", "image_size"), [32, 64], [0, 1, 2]),
        (("title",), "x", []),
        (("student", "title"), "x", []),
        (("evaluate", "images"), 3, []),
        (("log_every",), 3, []),
        (("checkpoint_every",), 3, []),
        (("workers",), 1, []),
        (("tracker",), "none", []),
        (("compile",), True, []),
        (("strategy",), "fsdp", []),
    ],
)
def test_a_stage_is_another_one_where_its_outcome_may_be_another(path, value, differs):
    assert [i for i, (a, b) in enumerate(zip(prints(), prints((path, value)), strict=True)) if a != b] == differs


def test_an_override_changes_the_place_that_it_names_and_not_what_an_anchor_shares_with_it(tmp_path):
    data = "data: {domains: [game], images: 4}"
    text = TINY.replace(data, "data: *shared").replace("*shared", "&shared {domains: [game], images: 4}", 1)
    assert text.count("shared") == 2
    recipe = load(tiny_file(tmp_path, text), ["stages.task.data.images=3"])
    assert [stage.data.images for stage in recipe.stages if stage.data.domains == ("game",)] == [4, 3]


LOGITS = (("stages", 2, "method"), {"type": "logit_kd"})


def test_only_a_stage_that_reads_logits_is_another_one_when_the_teachers_head_is():
    steps = (("stages", 0, "steps"), 3)
    for method, differs in [({"type": "logit_kd"}, [0, 2]), ({"type": "cwd", "maps": "logits"}, [0, 2]),
                            ({"type": "cwd"}, [0])]:  # fmt: skip
        change = (("stages", 2, "method"), method)
        assert [i for i, (a, b) in enumerate(zip(prints(change), prints(change, steps), strict=True)) if a != b] == (
            differs
        )
    width = (("teacher", "head", "width"), 16)
    assert prints(LOGITS)[2] != prints(LOGITS, width)[2]


def test_the_last_earlier_teacher_stage_is_the_one_that_counts():
    values = yaml.safe_load(TINY)
    first, second = dict(values["stages"][0]), values["stages"][0] | {"name": "second"}
    late = values["stages"][0] | {"name": "late"}
    values["stages"] = [first, second, values["stages"][2] | {"method": {"type": "logit_kd"}}, late]
    recipe = Recipe.model_validate(values)
    assert [last_learner(recipe.stages, "teacher", before) for before in range(5)] == [None, 0, 1, 1, 3]
    assert last_learner(recipe.stages, "student", 4) == 2
    before = fingerprints(recipe)
    for number, differs in [(0, [0]), (1, [1, 2]), (3, [3])]:
        values["stages"][number] |= {"steps": 3}
        changed = fingerprints(Recipe.model_validate(values))
        values["stages"][number] |= {"steps": 2}
        assert [i for i, (a, b) in enumerate(zip(before, changed, strict=True)) if a != b] == differs


def test_logits_without_an_earlier_teacher_stage_are_one_line(tmp_path):
    method = "stages.task.method={type: logit_kd}"
    assert tiny(tmp_path, method).stages[2].method.type == "logit_kd"
    problem = "stage task: its method compares class scores, but no earlier stage trains the teacher's head"
    text = only("agnostic", "task")
    with pytest.raises(UserError, match=problem) as error:
        load(tiny_file(tmp_path, text), [method])
    assert "\n" not in str(error.value)
    load(tiny_file(tmp_path, text), ["stages.task.method={type: cwd}"])
    with pytest.raises(UserError, match="stage agnostic: logit_kd compares class scores, but a distill stage has no"):
        tiny(tmp_path, "stages.agnostic.method={type: logit_kd}")


def test_a_recipe_in_another_encoding_or_a_folder_is_one_line(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the recipe"):
        load(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="cannot read the recipe"):
        load(tmp_path)
    assert load(tiny_file(tmp_path)).name == "tiny"


def test_an_override_means_one_place_also_where_the_file_says_it_once_for_several(tmp_path):
    text = TINY.replace(
        "{domains: [game], images: 4}, batch: 2, steps: 2", "&data {domains: [game], images: 4}, batch: 2, steps: 2", 1
    )
    path = tiny_file(tmp_path, text.replace("    data: {domains: [game], images: 4}\n", "    data: *data\n", 1))
    assert [stage.data.images for stage in load(path, ["stages.task.data.images=2"]).stages] == [4, 4, 2]


OPENED = """
import io, os, sys
from pathlib import Path
from segdistill.recipe import load
from segdistill.shipped import recipes_folder
seen = []
sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event == "open" else None)
for path in sorted(recipes_folder().glob("*.yaml")):
    load(path, ["data.root=/nowhere"] if "source: files" in path.read_text() else [])
names = {Path(name).name for name in seen if not name.isdigit()}
strange = {name for name in names if not name.endswith((".yaml", ".py", ".pyc", ".so"))}
print(sorted(strange), len(names))
"""


def test_reading_every_shipped_recipe_opens_no_image_list_or_weight_file():
    done = subprocess.run([sys.executable, "-c", OPENED], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[] "), done.stdout
    assert int(done.stdout.split()[-1]) > 30  # the recipes themselves


def test_own_data_need_not_be_there_to_read_its_recipe(tmp_path):
    change = ["data={source: files, size: [32, 64], sets: {farm: nowhere/dataset.yaml}}",
              "stages.task.data.domains=[farm]", "evaluate.domains=[farm]", "evaluate.unseen=[]"]  # fmt: skip
    recipe = load(tiny_file(tmp_path), change)
    with pytest.raises(UserError, match=r"stage task: .*nowhere"):
        check(recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["student.encoder.name=world_resnet"], "stage agnostic: gkd distils the CLS token, and the student has none"),
        (["stages.agnostic.method={type: mse, taps: [40]}"], "stage agnostic: world_student has no tap 40"),
        (["student.encoder.name=world_resnet", "stages.task.method=null", "stages.task.proxy=null"],
         "stage task: presence_weight needs an encoder with a CLS token"),
        (["student.head={type: deeplabv3plus}", "stages.task.batch=1", "stages.task.method={type: mse}"],
         "stage task: deeplabv3plus cannot train on one image per pass"),
        (["task=instance", "data.classes=things8", "teacher.head={type: eomt, heads: 7}", "student=null",
          "stages=[{type: task, name: task, model: teacher, data: {domains: [game], images: 4}, steps: 2}]"],
         "teacher.head: the deepest tap has 256 channels, not a multiple of heads 7"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        check(tiny(tmp_path, *changes))


def test_a_setting_that_is_written_out_with_its_default_is_the_same_stage(tmp_path):
    plain = fingerprints(load(tiny_file(tmp_path)))
    written = ["stages.agnostic.optimizer.lr=5e-4", "stages.agnostic.method.token=cls", "stages.task.augment.flip=0.5",
               "stages.task.optimizer.algorithm.type=adamw", "student.head.weights=null"]  # fmt: skip
    assert fingerprints(load(tiny_file(tmp_path), written)) == plain
    for changed in ("stages.agnostic.optimizer.lr=6e-4", "stages.agnostic.method.type=mse", "data.seed=3"):
        assert fingerprints(load(tiny_file(tmp_path), [changed]))[1] != plain[1]


def test_loading_processes_follow_the_device_and_the_cores(monkeypatch):
    from segdistill.runs import execute

    def count(workers, device, cores, processes="1"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        monkeypatch.setattr(execute.os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        return execute.loading_processes(workers, torch.device(device))

    assert count("auto", "cpu", 16) == 0
    assert [count("auto", "cuda", cores) for cores in (1, 8, 64)] == [1, 8, 16]
    assert count("auto", "cuda", 32, "8") == 4
    assert count(5, "cpu", 2) == 5
