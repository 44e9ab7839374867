"""Instances from few labels: the stages semi and pseudo_label, from a recipe to scores; exact resume in each."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from segdistill.config import UserError
from segdistill.data.dataset import DataSelection, Dataset, Sample
from segdistill.data.pseudo import PseudoLabels, read_pseudo
from segdistill.data.pseudo_labelled import PseudoLabelled
from segdistill.data.rendered import WorldSource
from segdistill.data.strong import Strong, StrongAugment
from segdistill.files import sha256
from segdistill.metrics.instances import InstanceMetric
from segdistill.objects import decode
from segdistill.pictures import CELL
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.runs.plan import make_plan
from segdistill.shipped import shipped_path
from segdistill.stages import pseudo_label as stage_of_labels
from segdistill.stages.base import StageContext
from segdistill.stages.pseudo_label import LABELS, PseudoLabelConfig
from segdistill.train import loop

RECIPE = """
name: few_labels
task: instance
data: {source: world, classes: things8, size: [32, 64], least_pixels: 4}
teacher: {encoder: {name: world_teacher, weights: shipped}, head: &head {type: masked_dpt, width: 64, heads: 2,
          queries: 6, decoder_layers: 1, decoder_feedforward: 16, neck_channels: [8, 8, 8, 8], points: 32}}
student: {encoder: {name: world_student, weights: "shipped:world_student_local"}, head: *head}
stages:
  - {type: semi, name: adapt_labels, model: teacher, data: &few {domains: [game], images: 8, fraction: 1/4}, batch: 2,
     contrast: {anchors: 8, negatives: 4}, hands_over: [], steps: 4}
  - {type: pseudo_label, name: first_labels, data: &many {domains: [game], images: 8, fraction: 1/4, rest: true},
     score: 0.01, least: 1, sheet: 2}
  - {type: semi, name: adapt, model: teacher, data: *few, batch: 2, steps: 4, contrast: {anchors: 8, negatives: 4},
     unlabelled: {data: *many, batch: 2, labels: first_labels, score: 0.01}}
  - {type: pseudo_label, name: labels, data: *many, score: 0.01, least: 1, sheet: 2}
  - {type: semi, name: transfer, data: *few, batch: 2, steps: 4, contrast: {anchors: 8, negatives: 4},
     unlabelled: {data: *many, batch: 2, labels: labels, score: 0.01}, hands_over: [encoder, head]}
  - {type: task, name: refine, data: *few, batch: 2, steps: 4}
evaluate: {domains: [game, fog], images: 2, pictures: 1}
log_every: 1
checkpoint_every: 2
accelerator: cpu
precision: 32-true
"""
STAGES = ("adapt_labels", "first_labels", "adapt", "labels", "transfer", "refine")


@pytest.fixture(autouse=True)
def _cache(image_cache):
    """All tests share the rendered images."""


def recipe(tmp_path, *changes, text=RECIPE):
    path = tmp_path / "few_labels.yaml"
    path.write_text(text)
    return load(path, changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, image_cache):
    folder = tmp_path_factory.mktemp("few_labels")
    run(recipe(folder), folder / "run")
    return folder / "run"


def stage(folder, name):
    return next((folder / "stages").glob(f"*-{name}"))


def terms(folder, name):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["stage"].endswith(f"-{name}")]


def test_three_stages_end_in_scores_of_teacher_and_student(finished):
    results = json.loads((finished / "results.json").read_text())
    assert (results["task"], results["primary"]) == ("instance", "ap")
    for role in ("teacher", "student"):
        for scores in results["models"][role]["domains"].values():
            assert {"ap", "ap50", "ap_interval", "cityscapes_ap", "images"} <= scores.keys()
    assert {path.parent.name for path in (finished / "pictures").glob("*/fog-0.png")} >= {"truth", "student", "teacher"}


def test_the_terms_are_those_of_the_stage(finished):
    learned = {"class", "mask", "dice"}
    semi = {f"semi_{name}" for name in learned}
    assert set(terms(finished, "adapt_labels")[0]["terms"]) == learned | {"pixel_contrast"}
    assert set(terms(finished, "adapt")[0]["terms"]) == learned | semi | {"pixel_contrast"}
    assert set(terms(finished, "refine")[0]["terms"]) == learned
    shown = terms(finished, "transfer")[-1]["diagnostics"]
    assert {"contrast_margin", "pseudo_objects"} <= shown.keys()


def test_the_second_adaptation_starts_from_the_start_weights_and_refinement_from_the_transfer(finished, tmp_path):
    """With a learning rate of almost 0 a stage's result is its start."""
    still = "{lr: 1.0e-20, weight_decay: 0}"
    changes = [f"stages.{name}.optimizer={still}" for name in ("adapt", "refine")]
    run(recipe(tmp_path, *changes), tmp_path / "run", reuse=[finished])
    ours = load_file(stage(tmp_path / "run", "adapt") / "encoder.safetensors")
    start = load_file(shipped_path("world_teacher"))
    key = "blocks.0.attn.qkv.weight"
    match = next(value for name, value in start.items() if name.endswith(key)).float()
    torch.testing.assert_close(next(v for n, v in ours.items() if n.endswith(key)), match, atol=1e-6, rtol=0)
    for part in ("encoder", "head"):
        before, after = (load_file(stage(tmp_path / "run", name) / f"{part}.safetensors") for name in
                         ("transfer", "refine"))  # fmt: skip
        moving = [k for k in before if "running" not in k and "num_batches" not in k]
        assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in moving)


def test_pseudo_labels_carry_their_origin_and_are_measured(finished):
    labels = read_pseudo(stage(finished, "labels") / "labels.json")
    assert len(labels) == 6
    assert labels.info["teacher"] == "world_teacher"
    assert labels.info["licence"] == "Apache-2.0"
    facts = json.loads((stage(finished, "labels") / "manifest.json").read_text())["facts"]
    assert facts["labels"] == sum(len(labels.detections(image)) for image in labels)
    assert f"{facts['labels']:,} pseudo-labels on 6 images" in facts["summary"]
    assert (stage(finished, "labels") / "sheet.png").is_file()
    for image in labels:
        found = labels.detections(image)
        assert (found.scores >= 0.01).all()
        assert found.painted().areas().sum() == sum(int(decode(m).sum()) for m in found.masks)  # no overlap


def up_to(name):
    """The recipe until the stage ``name``, without scores."""
    lines = RECIPE[: RECIPE.index("evaluate:")].splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if line.startswith("  - {type:")] + [len(lines)]
    kept = "".join(lines[: starts[STAGES.index(name) + 1]])
    return kept + RECIPE[RECIPE.index("log_every:") :]


def linked(folder, finished, name):
    """A run folder with links to the finished stages before ``name``."""
    (folder / "stages").mkdir(parents=True)
    for each in STAGES[: STAGES.index(name)]:
        (folder / "stages" / stage(finished, each).name).symlink_to(stage(finished, each))
    return folder


@pytest.mark.parametrize("name", ["adapt", "transfer"])
def test_an_interrupted_stage_ends_with_the_same_weights_and_log(finished, tmp_path, monkeypatch, name):
    folder, others, text = tmp_path / "run", linked(tmp_path / "others", finished, name), up_to(name)
    saved = loop.checkpoint.save

    def stop(*args, **kwargs):
        saved(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path, text=text), folder, reuse=[others])
    monkeypatch.undo()
    run(recipe(tmp_path, text=text), folder, reuse=[others])
    for part in ("encoder", "head"):
        ours, whole = (stage(each, name) / f"{part}.safetensors" for each in (folder, finished))
        assert sha256(ours) == sha256(whole)
    assert [e["terms"] for e in terms(folder, name)] == [e["terms"] for e in terms(finished, name)]


def test_interrupted_pseudo_labels_continue_with_the_missing_images(finished, tmp_path, monkeypatch):
    from segdistill.data.pseudo import PseudoWriter

    added, seen = PseudoWriter.add, []

    def add(self, image, *args, **kwargs):
        if len(seen) == 4:
            seen.append(image)
            raise KeyboardInterrupt
        seen.append(image)
        added(self, image, *args, **kwargs)

    monkeypatch.setattr(PseudoWriter, "add", add)
    others, text = linked(tmp_path / "others", finished, "first_labels"), up_to("first_labels")
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path, text=text), tmp_path / "run", reuse=[others])
    assert len(seen) == 5
    seen.clear()
    monkeypatch.undo()
    run(recipe(tmp_path, text=text), tmp_path / "run", reuse=[others])
    again = stage(tmp_path / "run", "first_labels") / "labels.json"
    assert json.loads(again.read_text()) == json.loads((stage(finished, "first_labels") / "labels.json").read_text())


EMA = """
stages:
  - {type: task, name: before, data: &few {domains: [game], images: 8, fraction: 1/4}, batch: 2, steps: 2,
     hands_over: []}
  - {type: semi, name: guided, data: *few, batch: 2, steps: 4, ema: {decay: 0.5, burn_in: 2, start: before, score: 0.01,
     least: 1}, unlabelled: {data: {domains: [game], images: 8, fraction: 1/4, rest: true}, batch: 2, weight: 2.0}}
"""
MEAN_TEACHER = RECIPE[: RECIPE.index("stages:")].lstrip() + EMA.lstrip() + RECIPE[RECIPE.index("evaluate:") :]


def test_a_moving_average_labels_the_unlabelled_images(tmp_path):
    text = MEAN_TEACHER.replace("evaluate: {domains: [game, fog], images: 2, pictures: 1}\n", "")
    run(recipe(tmp_path, text=text), tmp_path / "run")
    log = terms(tmp_path / "run", "guided")
    assert all("pseudo_objects" in entry["diagnostics"] for entry in log)
    assert all(entry["terms"]["semi_class"] > 0 for entry in log)
    burning = recipe(tmp_path, "stages.guided.ema.start=null", text=text)
    run(burning, tmp_path / "own")
    log = terms(tmp_path / "own", "guided")
    assert [entry["terms"]["semi_class"] > 0 for entry in log] == [False, False, True, True]


def test_a_smaller_no_object_weight_changes_the_class_term_of_pseudo_labels_alone(finished, tmp_path):
    quiet = "evaluate.images=1"
    run(recipe(tmp_path, quiet, "stages.transfer.unlabelled.no_object=0"), tmp_path / "run", reuse=[finished])
    first, other = (terms(folder, "transfer")[0]["terms"] for folder in (finished, tmp_path / "run"))
    assert {name for name in first if first[name] != other[name]} == {"semi_class"}


def test_a_moving_average_resumes_exactly(tmp_path, monkeypatch):
    quiet = MEAN_TEACHER.replace("evaluate: {domains: [game, fog], images: 2, pictures: 1}\n", "")
    run(recipe(tmp_path, text=quiet), tmp_path / "whole")
    saved = loop.checkpoint.save

    def stop(*args, **kwargs):
        saved(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path, text=quiet), tmp_path / "run")
    monkeypatch.undo()
    run(recipe(tmp_path, text=quiet), tmp_path / "run")
    assert terms(tmp_path / "run", "guided")[-1]["terms"] == terms(tmp_path / "whole", "guided")[-1]["terms"]


def test_the_average_follows_after_the_burn_in():
    from segdistill.stages.semi import EmaConfig, MovingAverage

    network, start = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    with torch.no_grad():
        network.weight.fill_(1.0)
        start.weight.fill_(0.0)
    average, seen = MovingAverage(EmaConfig(decay=0.5, burn_in=2, start="x"), start, copies=False), []
    for step in range(5):
        average.follow(network, step)
        seen.append(average.network.weight.item())
    assert seen == [0.0, 0.0, 0.5, 0.75, 0.875]
    copied = MovingAverage(EmaConfig(decay=0.5, burn_in=2), torch.nn.Linear(1, 1), copies=True)
    copied.follow(network, 2)
    assert copied.network.weight.item() == 1.0
    assert [copied.ready(step) for step in range(4)] == [False, False, True, True]


def test_the_strong_view_keeps_positions():
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[..., 10:20, 12:22] = 200
    for _ in range(5):
        strong = Strong(StrongAugment(blur=0.5))(image).float()
        inside = strong[..., 12:18, 14:20].mean()
        assert inside > strong[..., :8, :8].mean() + 20  # the square stays where it is


def test_a_dry_run_plans_every_stage(tmp_path):
    plan = make_plan(recipe(tmp_path))
    assert [each.kind for each in plan.stages] == ["semi", "pseudo_label", "semi", "pseudo_label", "semi", "task"]
    assert [each.images for each in plan.stages] == [2, 6, 8, 6, 8, 2]
    assert plan.stages[2].flops > 1.9 * plan.stages[0].flops  # four images per step instead of two
    assert plan.stages[1].seconds > 0


def test_a_recipe_without_stages_scores_the_given_weights(finished, tmp_path):
    head, encoder = (stage(finished, "adapt") / f"{part}.safetensors" for part in ("head", "encoder"))
    text = RECIPE[: RECIPE.index("student:")] + "stages: []\n" + RECIPE[RECIPE.index("evaluate:") :]
    changes = [f"teacher.head.weights={head}", f"teacher.encoder.weights={encoder}"]
    results = run(recipe(tmp_path, *changes, text=text), tmp_path / "run")
    whole = json.loads((finished / "results.json").read_text())
    assert results["models"]["student"]["domains"] == whole["models"]["teacher"]["domains"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.classes=world13", "the classes 'world13' have no objects; set data.classes to one of: things8"),
        ("stages.adapt.unlabelled.labels=labels", "stage adapt: no earlier stage is called 'labels'; allowed: adapt_l"),
        ("stages.adapt.unlabelled.labels=null", "unlabelled images need labels: name a pseudo_label stage, add ema"),
        ("stages.adapt.ema={}", "have the labels of a stage or of ema, not of both"),
        ("stages.adapt_labels.ema={}", "ema labels unlabelled images; add 'unlabelled"),
        ("stages.adapt.freeze_encoder=true", "the pixel contrast trains the encoder; unfreeze it or remove contrast"),
        ("stages.adapt.method={type: mse}", "method, proxy and presence_weight are for task stages"),
        ("stages.adapt.adapter=true", "stage adapt: adapter is for task stages; remove it"),
        ("stages.transfer.ema={start: first_labels}", "ema.start: stage first_labels does not train encoder and head"),
        ("stages.transfer.ema={start: adapt}", "ema.start: stage adapt does not train encoder and head of the student"),
        ("stages.first_labels.model=student", "no earlier stage trains the student's head"),
        ("student.head={type: semfpn}", "semfpn is for the task semantic; allowed for instance"),
        ("task=semantic", "a semi stage learns objects; the task 'semantic' has none"),
        ("stages.transfer.unlabelled.score=2", "less than or equal to 1"),
    ],
)
def test_mistakes_are_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        run(recipe(tmp_path, change), tmp_path / "run")
    assert "\n" not in str(error.value)


def test_the_sheet_shows_images_that_differ_in_size(tmp_path, monkeypatch):
    class Set(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, number):
            return Sample(np.zeros((32 + 16 * number, 64, 3), np.uint8), None, "game", str(number))

        def listing(self):
            return iter(["game/0", "game/1"])

    monkeypatch.setattr(stage_of_labels, "_drawn", lambda image, *_: image)
    monkeypatch.setattr(PseudoLabels, "objects", lambda *_: None)
    place = object.__new__(StageContext)
    object.__setattr__(place, "folder", tmp_path)
    config = PseudoLabelConfig(name="labels", data={"domains": ["game"]}, task="instance")
    stage_of_labels._draw_sheet(config, place, object.__new__(PseudoLabels), Set())
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 2 * CELL[0]


def test_labels_of_another_selection_are_refused_before_anything_is_trained(tmp_path):
    change = "stages.adapt.unlabelled.data={domains: [game], images: 9}"
    line = r"stage adapt: stage first_labels labels only 6 of its 9 unlabelled images \(missing, for example: game/0"
    with pytest.raises(UserError, match=line):
        run(recipe(tmp_path, change), tmp_path / "run")
    assert not (tmp_path / "run/stages").exists()


def test_a_file_without_labels_of_an_image_is_refused(finished):
    images = WorldSource(classes="things8", size=(32, 64)).open(DataSelection(domains=("game",), images=9))
    with pytest.raises(UserError, match=r"has no pseudo-labels for 3 of 9 images, such as game/0000"):
        PseudoLabelled(images, stage(finished, "first_labels") / LABELS)


def test_the_metric_sees_what_the_network_predicts(finished):
    """Detections scored by hand give the AP in the results."""
    from segdistill.runs.folder import Finished, fingerprints, load_finished, model_of, read_manifest, stage_folder
    from segdistill.runs.score import load_model

    settings = load_finished(finished)
    manifests = [read_manifest(stage_folder(settings, finished, number)) for number in range(len(STAGES))]
    scored = model_of(Finished(settings, finished, manifests, fingerprints(settings)), "student", finished)
    data = settings.data.open(DataSelection(domains=("fog",), split="test", images=2))
    network, metric = load_model(scored, data.names), InstanceMetric(len(data.names))
    for number, sample in enumerate(data):
        image = torch.tensor(np.asarray(sample.image)).permute(2, 0, 1)[None].float() / 255
        metric.add(number, network.predict(image)[0], sample.objects)
    results = json.loads((finished / "results.json").read_text())["models"]["student"]["domains"]["fog"]
    assert metric.result("fog")["ap"] == pytest.approx(results["ap"], abs=1e-9)
