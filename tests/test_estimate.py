"""`segdistill estimate`: points against NumPy, kept once, never of unseen domains; the worst images first; refusals."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segdistill.config import UserError
from segdistill.data.dataset import DataSelection
from segdistill.estimation.estimate import AS_IS, Point, Seen, choose_line, estimate, judge, measure, points_of
from segdistill.estimation.line import Line, fit
from segdistill.estimation.shifts import SHIFTS, STRENGTHS, apply
from segdistill.inference.inputs import find_inputs
from segdistill.inference.model import Model, load
from segdistill.metrics.instances import InstanceMetric
from segdistill.metrics.unlabelled import object_confidence
from segdistill.recipe import load as load_recipe
from segdistill.runlog import Quiet
from segdistill.runs.execute import run as run_recipe
from segdistill.runs.overlap import trained_on
from segdistill.runs.rescore import trained
from segdistill.sharing.pack import pack
from segdistill.world import render
from tiny_sets import write

module = sys.modules["segdistill.estimation.estimate"]  # segdistill.estimate is also the function


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate") / "run"
    return shutil.copytree(finished, folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        Image.fromarray(render("game", "val", 10 + number, size=(32, 64)).image).save(folder / f"{number}.png")
    return folder


def line_of(points):
    return choose_line(points)[1]


def linear(slope=0.5, agreement=True):
    return [
        Point(domain, shift, x, x / 2 if agreement else None, slope * x)
        for i, domain in enumerate("ab")
        for j, shift in enumerate((AS_IS, "dark", "blur"))
        for x in [0.3 + 0.2 * i + 0.1 * j]
    ]


def test_a_point_is_the_models_own_predictions_against_the_labels(run):
    model, recipe = load(run, device="cpu"), trained(run)[0].recipe
    data = recipe.data.open(DataSelection(domains=("game",), split="val", images=2))
    confidence, agreement, score = measure(model, model.teacher, data, None, 2)
    own, theirs = [[m.predict(data[i].image.copy()) for i in range(2)] for m in (model, model.teacher)]
    truth, guess = (np.stack(x) for x in ([data[i].label for i in range(2)], [r.classes for r in own]))
    counted = truth != 255
    ious = [
        (counted & (truth == k) & (guess == k)).sum() / (counted & ((truth == k) | (guess == k))).sum()
        for k in range(len(model.names))
        if (counted & ((truth == k) | (guess == k))).any()
    ]
    assert score == pytest.approx(np.mean(ious))
    assert confidence == pytest.approx(np.mean([r.confidence.mean() for r in own]))
    assert agreement == pytest.approx(
        np.mean([(a.classes == b.classes).mean() for a, b in zip(own, theirs, strict=True)])
    )


def test_points_are_of_fitted_domains_alone_and_measured_once(run, monkeypatch):
    _, _, points = points_of(run, device="cpu")
    assert {point.domain for point in points} == {"game"}  # fog and rain are unseen
    assert len({point.shift for point in points}) == len(points) == 1 + len(SHIFTS) * len(STRENGTHS)
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured again"))
    assert points_of(run, device="cpu")[2] == points
    kept = json.loads((run / "estimate.json").read_text())
    (run / "estimate.json").write_text(json.dumps(kept | {"key": "of other weights"}))
    with pytest.raises(pytest.fail.Exception):
        points_of(run, device="cpu")
    (run / "estimate.json").write_text("{")
    with pytest.raises(UserError, match=r"damaged .*estimate.json; delete the file"):
        points_of(run, device="cpu")
    (run / "estimate.json").write_text(json.dumps(kept))


def test_the_command_names_the_worst_images_and_draws_them(run, photos, tmp_path, call):
    points_of(run, device="cpu")
    status, out, _ = call("estimate", run, photos, "--out", tmp_path / "sheet.png", "--worst", 2, "--device", "cpu")
    found = estimate(run, photos, worst=2, device="cpu")
    assert status == (1 if found.score is None else 0)
    assert "3 images" in out
    assert [each.x for each in found.images] == sorted(each.x for each in found.images)
    assert found.x == pytest.approx(np.mean([each.x for each in found.images]))
    assert f"worst images: {found.images[0].name}" in out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 2 * 32
        assert sheet.width > 2 * 64


def test_a_packed_file_is_estimated_by_its_confidence_on_its_recipes_images(run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("SEGDISTILL_CACHE", str(tmp_path / "cache"))
    path, _ = pack(run, tmp_path / "small.safetensors")
    _, teacher, points = points_of(path, device="cpu")
    assert teacher is None  # it is packed alone
    whole = points_of(run, device="cpu")[2]
    assert [(p.domain, p.shift, p.score) for p in points] == [(p.domain, p.shift, p.score) for p in whole]
    assert [p.confidence for p in points] == pytest.approx([p.confidence for p in whole])
    assert {p.agreement for p in points} == {None}
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured again"))
    found = estimate(path, photos, device="cpu")
    assert found.measure == "confidence"
    assert len(found.images) == 3
    assert not (tmp_path / "estimate.json").exists()


def test_images_that_the_run_was_trained_on_are_told(tmp_path, finished, photos):
    """Also copies under other names; the images of a folder are compared while those of the run are there."""
    write("gtav", tmp_path / "sets")
    recipe = {
        "name": "real", "data": {"source": "files", "size": [32, 64], "root": str(tmp_path / "sets")},
        "student": {"encoder": {"name": "world_student", "weights": str(finished / "stages/01-agnostic")},
                    "head": {"type": "semfpn", "width": 8}},
        "stages": [{"type": "task", "name": "task", "data": {"domains": ["gtav"]}, "batch": 2, "steps": 1}],
        "evaluate": {"domains": ["gtav"], "unseen": [], "splits": {"gtav": "train"}, "pictures": 0},
        "accelerator": "cpu", "precision": "32-true",
    }  # fmt: skip
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(tmp_path / "real.yaml"), tmp_path / "run")
    (tmp_path / "new").mkdir()
    shutil.copy(next((tmp_path / "sets").rglob("images/*.png")), tmp_path / "new/x.png")
    shutil.copy(photos / "0.png", tmp_path / "new")
    told = Told()
    estimate(tmp_path / "run", tmp_path / "new", device="cpu", watcher=told)
    assert len(told.lines) == 1
    assert re.match(r"\S+new: 1 of 2 were trained on, or are copies .*; leave them out$", told.lines[0])
    told.lines.clear()
    estimate(tmp_path / "run", tmp_path / "new/x.png", device="cpu", watcher=told)
    assert re.match(r"\S+x.png: 1 of 1 were trained on", told.lines.pop())
    estimate(tmp_path / "run", photos, device="cpu", watcher=told)
    assert told.lines == []
    shutil.rmtree(tmp_path / "sets")
    files = [file for each in find_inputs([tmp_path / "new"]) for file in each.files()]
    assert (len(files), trained_on(files, trained(tmp_path / "run")[0].recipe)) == (2, 0)


class Told(Quiet):
    """Keeps the warnings."""

    def __init__(self):
        self.lines = []

    def warn(self, line):
        self.lines.append(line)


def test_the_measure_that_errs_less_is_chosen():
    noisy = [Point(p.domain, p.shift, p.confidence, 0.5 + 0.1 * (i % 3), p.score) for i, p in enumerate(linear())]
    assert choose_line(noisy)[0] == "confidence"
    assert choose_line([Point(p.domain, p.shift, a, p.confidence, p.score)
                        for p, a in zip(linear(), (0.5, 0.6, 0.7) * 2, strict=True)])[0] == "agreement"  # fmt: skip
    measure, line = choose_line(linear(agreement=False))
    assert measure == "confidence"
    assert (line.slope, line.intercept, line.margin) == pytest.approx((0.5, 0, 0))
    with pytest.raises(UserError, match="too few points"):
        choose_line([Point("a", AS_IS, 0.5, None, 0.5), Point("b", AS_IS, 0.6, None, 0.6)])


def test_far_outside_there_is_no_number():
    line = line_of(linear(agreement=False))
    inside = judge("confidence", line, [Seen("a", 0.5, 0.5, None), Seen("b", 0.3, 0.3, None)], "mIoU")
    assert inside.refused is None
    assert inside.score == pytest.approx(line.at(0.4))
    assert inside.interval == line.interval(0.4)
    for x, way in ((0.05, "below"), (0.99, "above")):
        far = judge("confidence", line, [Seen("a", x, x, None)], "mIoU")
        assert (far.score, far.interval) == (None, None)
        assert f"far {way}" in far.refused
        assert far.lines()[0].startswith("no estimate: ")
    falling = Line(-1.0, 1.0, 0.2, 0.8, 0.1, 0.1)
    assert "does not go with" in judge("confidence", falling, [Seen("a", 0.5, 0.5, None)], "mIoU").refused


def test_a_point_of_a_model_of_objects_is_its_average_precision(finished_objects):
    model, recipe = load(finished_objects, device="cpu"), trained(finished_objects)[0].recipe
    data = recipe.data.open(DataSelection(domains=("game",), split="val", images=3))
    confidence, agreement, score = measure(model, model, data, None, 3)
    metric, found = InstanceMetric(len(model.names)), [model.predict(data[i].image.copy()) for i in range(3)]
    for number, result in enumerate(found):
        metric.add(number, result.detections, data[number].objects)
    assert score == metric.samples().scores()["ap"]
    assert confidence == pytest.approx(np.mean([object_confidence(each.above(0.05).detections) for each in found]))
    assert agreement == pytest.approx(1)  # with itself


def test_a_model_of_objects_is_estimated_by_its_average_precision(finished_objects, photos, tmp_path, monkeypatch):
    run = shutil.copytree(finished_objects, tmp_path / "run")
    monkeypatch.setattr(module, "STRENGTHS", (1.0,))
    monkeypatch.setattr(module, "IMAGES", 4)
    found = estimate(run, photos, device="cpu", out=tmp_path / "sheet.png")
    assert found.metric == "AP"
    assert len(found.images) == 3
    assert all(0 <= each.x <= 1 for each in found.images)
    kept = json.loads((run / "estimate.json").read_text())["points"]
    assert {point["domain"] for point in kept} == {"game"}
    assert len(kept) == 1 + len(SHIFTS)
    assert found.sheet is not None
    assert found.sheet.is_file()


def test_a_teacher_that_cannot_be_loaded_is_left_out(finished, photos, tmp_path, monkeypatch):
    def lost(_):
        raise UserError("no weights at 'x'; or score only the student with --role student")

    run, told = shutil.copytree(finished, tmp_path / "run"), Told()
    monkeypatch.setattr(module, "STRENGTHS", (1.0,))
    monkeypatch.setattr(module, "IMAGES", 2)
    monkeypatch.setattr(Model, "teacher", property(lost))
    sheet = str(tmp_path / "sheet.png")
    assert estimate(run, photos, device="cpu", watcher=told, out=sheet).measure == "confidence"
    assert Path(sheet).is_file()
    assert told.lines == ["nothing is compared with the teacher: no weights at 'x'"]


def test_fitted_images_without_ground_truth_are_named(finished_objects, tmp_path, monkeypatch):
    run = shutil.copytree(finished_objects, tmp_path / "run")
    (run / "estimate.json").unlink(missing_ok=True)
    monkeypatch.setattr(module, "measure", lambda *_: (0.5, None, float("nan")))
    with pytest.raises(UserError, match="images of domain 'game' have no ground truth"):
        points_of(run, device="cpu")


def test_mistakes_are_one_line(run, photos, tmp_path):
    with pytest.raises(UserError, match=r"0.png' is damaged or no|no packed model|is no packed|cannot be") as error:
        estimate(photos / "0.png", photos)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no recipe at"):
        estimate(tmp_path, photos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        estimate(run, tmp_path / "empty", device="cpu")


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_keep_the_form_and_depend_on_the_images_number_alone(name):
    image = render("game", "val", 0, size=(32, 64)).image
    weak, strong = (apply(name, image, strength, 3).astype(float) for strength in STRENGTHS)
    assert weak.shape == image.shape
    assert 0 < np.abs(weak - image).mean() < np.abs(strong - image).mean()
    assert np.array_equal(apply(name, image, 1.0, 3), strong)


def test_a_line_over_equal_values_is_a_constant():
    line = fit([0.5] * 4, [0.1, 0.2, 0.3, 0.4], [list("abcd")])
    assert line.at(0.5) == pytest.approx(0.25)
