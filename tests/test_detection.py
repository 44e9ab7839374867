"""Detection from a recipe to scores, pictures, files and a page; exact resume; its recipes on real data."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from export_cases import PAGE, page_programs, pixels
from segdistill.config import UserError
from segdistill.data.dataset import DataSelection
from segdistill.data.sample import write_sample
from segdistill.estimation.estimate import estimate, measure
from segdistill.export.ship import export
from segdistill.files import sha256
from segdistill.grid.demo import recipes_folder, shortened
from segdistill.inference.model import load as load_model
from segdistill.inference.serve import describe_objects
from segdistill.metrics.boxes import BoxMetric
from segdistill.models import Detector
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.runs.plan import make_plan
from segdistill.runs.score import read_samples
from segdistill.sharing.pack import load_packed, pack
from segdistill.train import loop
from tiny_runs import Child
from tiny_runs import command as command_line

HEAD = """{type: faster_rcnn, width: 8, hidden: 16, anchors: [8, 16, 32, 64, 128], proposals: 20, region_samples: 16,
          box_samples: 16, least_score: 0.0, most: 5}"""
RECIPE = f"""
name: boxes
task: detection
data: {{source: world, classes: things8, size: [32, 64], least_pixels: 4}}
teacher: {{encoder: {{name: world_teacher, weights: shipped}}, head: &head {HEAD}}}
student: {{encoder: {{name: world_student, weights: "shipped:world_student_local"}}, head: *head}}
stages:
  - {{type: task, name: teacher, model: teacher, data: &data {{domains: [game], images: 8}}, batch: 2, steps: 2}}
  - {{type: distill, name: agnostic, data: *data, batch: 4, steps: 2, method: {{type: gkd}}}}
  - {{type: task, name: task, data: *data, batch: 2, steps: 4, method: {{type: mse}}, augment: {{scale: [0.8, 1.6]}}}}
evaluate: {{domains: [game, fog], images: 2, pictures: 1}}
log_every: 1
checkpoint_every: 2
accelerator: cpu
precision: 32-true
"""


def recipe(folder, *changes):
    path = folder / "boxes.yaml"
    path.write_text(RECIPE)
    return load(path, changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detection")
    run(recipe(folder), folder / "run")
    return folder / "run"


def test_a_run_has_named_losses_scores_and_pictures(finished):
    results = json.loads((finished / "results.json").read_text())
    assert (results["task"], results["primary"]) == ("detection", "ap50")
    fog = results["models"]["student"]["domains"]["fog"]
    assert {"ap50", "ap50_11", "ap", "ap75", "ap50_interval", "ap50_by_class"} <= set(fog)
    assert fog["detections"] > 0
    kept = read_samples(finished / "scores/student.npz", "detection")["fog"]
    assert kept.size == 2
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    own = {"objectness", "region", "class", "box"}
    assert set(lines[0]["terms"]) == own
    assert set(lines[-1]["terms"]) == own | {"feature"}
    assert list(finished.rglob("prediction/*.png")) or list(finished.rglob("*/student/*.png"))


def test_an_interrupted_stage_ends_with_the_same_weights(finished, tmp_path, monkeypatch):
    saved = loop.checkpoint.save

    def stop(*args, **kwargs):
        saved(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.checkpoint, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(tmp_path), tmp_path / "run")
    monkeypatch.undo()
    run(recipe(tmp_path), tmp_path / "run")
    for part in ("encoder", "head"):
        [ours], [whole] = (
            list(each.glob(f"stages/*-task/{part}.safetensors")) for each in (tmp_path / "run", finished)
        )
        assert sha256(ours) == sha256(whole)


def test_a_plan_counts_its_stages(tmp_path):
    assert [stage.images for stage in make_plan(recipe(tmp_path)).stages] == [8, 8, 8]


def test_predictions_are_boxes_in_json(finished, tmp_path, call):
    out, images = tmp_path / "out", tmp_path / "images"
    write_sample("voc2012_boxes", images, images=1, size=(32, 64))
    status, _, err = call(
        "predict", finished, images / "voc2012_boxes/JPEGImages", "--out", out, "--keep", "0", "--score", "0"
    )
    assert not status, err
    content = json.loads((out / "objects.json").read_text())
    [image] = content["images"]
    assert content["annotations"]
    for entry in content["annotations"]:
        left, top, width, height = entry["bbox"]
        assert left >= 0
        assert top >= 0
        assert left + width <= image["width"] + 1e-6
        assert top + height <= image["height"] + 1e-6
        assert entry["area"] == pytest.approx(width * height)
        assert "segmentation" not in entry
    assert not (out / "ids").exists()
    assert list((out / "overlay").iterdir())


def test_a_packed_detector_finds_the_same_and_is_served(finished, tmp_path, call):
    status, _, err = call("pack", finished, tmp_path / "d.safetensors")
    assert not status, err
    network, header = load_packed(tmp_path / "d.safetensors")
    assert isinstance(network, Detector)
    assert header["task"] == "detection"
    assert "object-detection" in (tmp_path / "d.md").read_text()
    image = np.random.default_rng(0).integers(0, 255, (37, 61, 3), dtype=np.uint8)
    one, other = (load_model(what).predict(image) for what in (finished, tmp_path / "d.safetensors"))
    assert np.array_equal(one.boxes, other.boxes)
    assert np.array_equal(one.scores, other.scores)
    answer = describe_objects(one, None, 0.0)
    assert len(answer["objects"]) == len(one) > 0
    assert set(answer["pictures"]) == {"image", "student"}
    with pytest.raises(UserError, match="a detector finds boxes, no masks"):
        one.masks()
    with pytest.raises(UserError, match="a detector finds boxes, no masks"):
        one.ids()


def test_a_detector_is_estimated_by_its_ap50(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    write_sample("voc2012_boxes", tmp_path, images=2, size=(32, 64))
    found = estimate(tmp_path / "run", tmp_path / "voc2012_boxes/JPEGImages", device="cpu", out=tmp_path / "sheet.png")
    assert found.metric == "AP50"
    model, data = (
        load_model(finished),
        recipe(tmp_path).data.open(DataSelection(domains=("game",), split="val", images=2)),
    )
    metric = BoxMetric(len(model.names))
    for number in range(2):
        metric.add(number, model.predict(data[number].image.copy()).detections, data[number].objects)
    assert measure(model, None, data, None, 2)[2] == metric.samples().scores()["ap50"]
    assert all(each.agreement is not None and 0 <= each.agreement <= 1 for each in found.images)
    assert (tmp_path / "sheet.png").is_file()


def test_a_detector_is_exported_and_compared_by_its_boxes(finished, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"name it d\.onnx") as error:
        export(finished, tmp_path / "d.pt2")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    command = ["export", str(finished), str(tmp_path / "boxes.onnx"), "--fp16", "--int8", "--images", "2"]
    child = Child(tmp_path / "log.txt", command_line, command)
    assert child.wait(1200) == 0, child.text()
    report = json.loads((tmp_path / "boxes.onnx.json").read_text())
    assert list(report["outputs"]) == ["boxes", "scores", "labels"]
    assert set(report["files"]) == {"boxes.onnx", "boxes.fp16.onnx", "boxes.int8.onnx"}
    expected = load_packed(pack(finished, tmp_path / "packed.safetensors")[0])[1]["scores"]["student"]["domains"]
    for row in report["domains"]["fp32"]:
        assert row["equal"] >= 0.99
        assert row["difference"] < 1e-4
        assert row["torch_ap50"] == expected[row["domain"]]["ap50"]
    image = Image.fromarray(pixels((1, 48, 96))[0])
    image.save(tmp_path / "street.png")
    monkeypatch.chdir(tmp_path)
    program = next(text for text in page_programs() if "boxes.onnx" in text)
    found: dict = {}
    exec(compile(program.replace("street.jpg", "street.png"), PAGE.name, "exec"), found)
    boxes = load_model(finished).predict(image).detections
    shown = [box for box, score in zip(boxes.boxes, boxes.scores, strict=True) if score > 0]
    assert len(found["objects"]) == len(shown) > 2
    names = [report["classes"][number] for number in boxes.classes[boxes.scores > 0]]
    assert sorted(name for name, _, _ in found["objects"]) == sorted(names)


def test_padding_and_sizes_of_predictions():
    from segdistill.models.faster_rcnn import detections_of

    boxes = torch.tensor([[-3.0, 2, 10, 12], [20, 0, 40, 8], [31, 1, 35, 5]])
    found = detections_of(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 1]), (10, 30), (20, 60))
    assert found.boxes.tolist() == [[0, 4, 20, 20], [40, 0, 60, 16]]  # the third is in the padding
    assert found.classes.tolist() == [1, 0]
    assert found.size == (20, 60)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "student.head={type: semfpn}",
            "student.head: semfpn is for the task semantic; allowed for detection: faster_rcnn",
        ),
        ("task=instance", "faster_rcnn is for the task detection"),
        ("data.classes=world13", "the classes 'world13' have no objects"),
        (
            "stages.task.method={type: logit_kd}",
            "compares class scores of pixels, which the head faster_rcnn does not have",
        ),
        ("stages.task.presence_weight=0.5", "no class-presence term"),
        ("stages.task.augment.flop=1", "augment: flop: unknown key"),
        (
            "stages.agnostic={type: pseudo_label, name: agnostic, data: {domains: [game], images: 8}}",
            "has none with masks",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as error:
        run(recipe(tmp_path, change), tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["voc_detection", "voc_detection_gkd"])
def test_two_steps_of_the_recipes_on_pascal_voc(tmp_path, call, name):
    for each in ("voc2007_boxes", "voc2012_boxes", "imagenet"):
        write_sample(each, tmp_path / "sets", images=4, size=(32, 64))
    shipped = load(recipes_folder() / f"{name}.yaml")
    own = [f"stages.{stage.name}.{key}=null" for stage in shipped.stages if stage.type == "distill"
           for key in ("size", "patch", "teacher_resample")]  # fmt: skip
    changes = [
        *shortened(shipped), *own, f"data.root={tmp_path / 'sets'}", "data.size=[32,64]", "workers=0",
        "accelerator=cpu",
        "precision=32-true", "teacher.encoder={name: world_teacher}", "student.encoder={name: world_student}",
        f"teacher.head={HEAD}", f"student.head={HEAD}", "evaluate.resize=[32,64]", "evaluate.images=1",
        "evaluate.pictures=1", "log_every=1", "checkpoint_every=2",
    ]  # fmt: skip
    status, _, err = call("run", recipes_folder() / f"{name}.yaml", *changes, "--out", tmp_path / "run")
    assert not status, err
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert [stage["steps"] for stage in results["stages"]] == [2] * len(shipped.stages)
    assert "ap50" in results["models"]["student"]["domains"]["voc2007_boxes"]
