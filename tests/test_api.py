"""A finished model in Python: loaded from a run, a stage and a packed file, it predicts what the evaluation scored."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import segdistill
from segdistill.config import UserError
from segdistill.data.dataset import DataSelection
from segdistill.inference.model import View, window_of
from segdistill.metrics.confusion import ConfusionMatrix
from segdistill.pictures import load_label
from segdistill.recipe import load as load_recipe
from segdistill.sharing.pack import pack


@pytest.fixture(scope="module")
def model(finished):
    return segdistill.load(finished)


@pytest.fixture(scope="module")
def fog(finished):
    """The images of the domain fog that the run was scored on."""
    return load_recipe(finished / "recipe.yaml").data.open(DataSelection(domains=("fog",), split="test", images=2))


def picture(height=40, width=72, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_importing_loads_pydantic_and_yaml_and_no_other_package():
    """`import segdistill` stays as cheap as these two: torch alone would add seconds."""

    def packages(imports):
        command = [sys.executable, "-c", f"import sys; {imports}; print(*sys.modules)"]
        loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names

    ours = packages("import segdistill; from segdistill import run, evaluate, export, estimate, report, load, predict")
    theirs = packages("import pydantic, yaml; from pydantic import BaseModel, Field, TypeAdapter")
    assert ours - theirs == {"segdistill"}


def test_functions_stay_functions_after_their_modules_are_imported(finished):
    from segdistill.export import export as export_model

    assert callable(segdistill.run)
    assert segdistill.export.export is export_model  # the module of the same name is there, too
    with pytest.raises(UserError, match="no recipe at"):
        segdistill.run("none.yaml")
    with pytest.raises(UserError, match="no recipe at"):
        segdistill.evaluate(finished / "nowhere")
    with pytest.raises(AttributeError, match="no attribute 'fly'"):
        segdistill.fly  # noqa: B018
    assert {"load", "predict", "Model", "Result", "run"} <= set(dir(segdistill))


def test_every_name_that_is_offered_is_there():
    for module in (segdistill, importlib.import_module("segdistill.api")):
        assert all(getattr(module, name) for name in module.__all__)
    assert {"ObjectModel", "ObjectResult"} <= set(segdistill.__all__)


def test_functions_have_the_commands_names_and_are_documented():
    from segdistill import api
    from segdistill.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    for name in ("run", "evaluate", "predict", "report"):
        assert name in commands
    for name in segdistill.FUNCTIONS:
        function = getattr(api, name)
        assert inspect.getdoc(function)
        assert all(p.annotation is not p.empty for p in inspect.signature(function).parameters.values())


def test_the_predicted_labels_are_those_that_were_scored(model, finished, fog):
    scores = json.loads((finished / "results.json").read_text())["models"]["student"]["domains"]["fog"]
    matrix = ConfusionMatrix(len(model.names))
    for sample in fog:
        result = model.predict(sample.image)
        matrix.add(torch.tensor(result.classes).long(), torch.tensor(sample.label))
    assert matrix.counts.tolist() == scores["confusion"]
    kept = load_label(finished / "pictures/student/fog-0.png")
    assert (model.predict(fog[0].image).classes == kept).all()


def test_every_kind_of_input_gives_the_same_prediction(model, tmp_path):
    image = picture()
    Image.fromarray(image).save(tmp_path / "a.png")
    tensor = torch.tensor(image).permute(2, 0, 1)
    expected = model.predict(image)
    several = [tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), tensor, tensor.float() / 255]
    for kind in several:
        result = model.predict(kind)
        assert (result.classes == expected.classes).all()
        assert np.allclose(result.confidence, expected.confidence, atol=1e-6)
        assert (result.image == image).all()
    for many in (
        several,
        tmp_path,
        f"{tmp_path}/*.png",
        image[None],
        tensor[None],
        list(model.predict_each([tmp_path])),
    ):
        results = many if isinstance(many[0] if isinstance(many, list) else None, segdistill.Result) else None
        results = model.predict(many) if results is None else results
        assert isinstance(results, list)
        assert all((each.classes == expected.classes).all() for each in results)
    assert len(model.predict(several)) == len(several)


def test_confidence_is_the_softmax_of_the_class(finished, fog):
    own = segdistill.load(finished)
    image = fog[0].image
    result = own.predict(image)
    with torch.inference_mode():
        scores = own.segmenter.scores(torch.tensor(image).permute(2, 0, 1)[None].float() / 255)[0]
    softmax = scores.double().softmax(0).numpy()
    assert (result.classes == softmax.argmax(0)).mean() > 0.999
    assert np.allclose(result.confidence, softmax.max(0), atol=1e-5)
    assert np.isclose(sum(result.shares().values()), 1)
    assert list(result.shares()) == sorted(result.shares(), key=lambda name: -result.shares()[name])


def test_a_stage_and_a_packed_file_are_the_same_model(model, finished, tmp_path):
    path, _ = pack(finished, tmp_path / "small.safetensors")
    packed, stage = segdistill.load(path), segdistill.load(finished / "stages/02-task")
    image = picture()
    for other in (packed, stage):
        assert other.digest == model.digest
        assert (other.names, other.colors, other.view) == (model.names, model.colors, model.view)
        assert (other.predict(image).classes == model.predict(image).classes).all()
    assert packed.teacher is None
    with pytest.raises(UserError, match="holds the student alone"):
        segdistill.load(path, role="teacher")


def test_the_teacher_is_the_runs_own(model, finished, fog):
    teacher = segdistill.load(finished, role="teacher")
    assert model.teacher.digest == teacher.digest != model.digest
    assert teacher.teacher is None
    kept = load_label(finished / "pictures/teacher/fog-0.png")
    assert (teacher.predict(fog[0].image).classes == kept).all()


def test_a_model_sees_images_as_it_is_asked_to(model):
    image = picture(96, 160)
    assert model.view.resize == (32, 64)
    whole = model.seen(resize=(96, 160))
    assert whole.digest != model.digest
    with torch.inference_mode():
        tensor = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        at_once = whole.segmenter.predict(tensor)[0].numpy()
        windows = whole.segmenter.predict(tensor, window_of((32, 64)))[0].numpy()
    assert (whole.predict(image).classes == at_once).all()
    assert (model.seen(window=(32, 64)).predict(image).classes == windows).all()
    assert model.seen() is model
    assert (model.predict(image).classes != at_once).any()
    for bad in ({"resize": (0, 3)}, {"window": (3, -1)}):
        with pytest.raises(UserError, match="is a height and a width"):
            model.seen(**bad)


def test_large_images_go_through_windows_of_the_training_size():
    view = View(crop=(512, 512))
    assert view.window_for(1024, 2048) is None
    assert view.window_for(1025, 2048).size == (512, 512)
    assert View(window=window_of((60, 90))).window_for(10, 10).stride == (40, 60)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), "an array must be"),
        (np.zeros((4, 4, 3), np.int64), "pixels must be uint8"),
        (np.full((8, 8, 3), 7.0), "must lie in"),
        (torch.zeros(8, 8, 3), "a tensor must be"),
        (torch.zeros(3, 0, 8), "a tensor must be"),
        (torch.full((3, 8, 8), float("nan")), "must lie in"),
        (7, "an image is a path"),
        ("none.png", "no such file, folder or pattern"),
    ],
)
def test_what_is_no_image_is_one_line(model, image, message):
    with pytest.raises(UserError, match=message) as error:
        model.predict(image)
    assert "\n" not in str(error.value)


def test_grey_and_alpha_arrays_are_images(model):
    grey = picture()[..., 0]
    expected = model.predict(np.repeat(grey[..., None], 3, axis=2))
    assert (model.predict(grey).classes == expected.classes).all()
    alpha = np.dstack([np.repeat(grey[..., None], 3, axis=2), np.zeros_like(grey)])
    assert (model.predict(alpha).classes == expected.classes).all()


def test_a_turned_photograph_is_predicted_upright(model, tmp_path):
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    stored = np.ascontiguousarray(np.rot90(upright))
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    assert (model.predict(tmp_path / "turned.png").image == upright).all()
    with Image.open(tmp_path / "turned.png") as image:
        assert (model.predict(image).image == upright).all()


def test_results_are_written_and_read_back(model, tmp_path):
    result = model.predict(picture())
    result.save(tmp_path / "a/classes.png")
    result.save_confidence(tmp_path / "confidence.png")
    with Image.open(tmp_path / "a/classes.png") as written:
        assert written.mode == "P"
        assert (np.asarray(written) == result.classes).all()
        assert (np.asarray(written.convert("RGB")) == result.colored()).all()
        assert tuple(result.colored()[0, 0]) == result.colors[result.classes[0, 0]]
    with Image.open(tmp_path / "confidence.png") as written:
        assert np.abs(np.asarray(written) / 255 - result.confidence).max() <= 0.5 / 255 + 1e-6
    half = np.asarray(result.overlay(0.5)).astype(int)
    assert np.abs(half - (result.image.astype(float) + result.colored()) / 2).max() <= 1
    assert (np.asarray(result.overlay(0.0)) == result.image).all()
    with pytest.raises(UserError, match="between 0 and 1"):
        result.overlay(2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "no model at none"),
        (("none", "role=x"), "no model at"),
        ((".", "role=x"), "unknown role 'x'"),
        ((".", "device=tpu"), "unknown device 'tpu'"),
    ],
)
def test_what_is_no_model_is_one_line(arguments, message, finished):
    what, *options = arguments
    with pytest.raises(UserError, match=message):
        segdistill.load(finished if what == "." else what, **dict(option.split("=") for option in options))


def test_a_file_that_is_no_model_is_one_line(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError):
        segdistill.load(path)


def test_run_evaluate_and_report_give_what_the_commands_write(finished, tmp_path):
    stages = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    results = segdistill.run(finished / "recipe.yaml", out=finished)  # all of it is finished
    assert results["models"].keys() == {"teacher", "student"}
    assert stages and stages == {path: path.stat().st_mtime_ns for path in stages}  # nothing is trained again
    scores = segdistill.evaluate(finished, ["evaluate.images=1"], out=tmp_path / "scores")
    assert scores["models"]["student"]["domains"]["fog"]["images"] == 1
    page = segdistill.report([finished], tmp_path / "page.html")
    assert "<html" in page.read_text()
    with pytest.raises(UserError, match="not a run folder with stages to reuse"):
        segdistill.run(finished / "recipe.yaml", reuse=[tmp_path / "none"])


@pytest.mark.parametrize("call", [lambda: segdistill.export("nowhere", "x.onnx"), lambda: segdistill.load("nowhere"),
                                  lambda: segdistill.estimate("nowhere", "photos"),
                                  lambda: segdistill.report("nowhere")])  # fmt: skip
def test_every_function_says_in_one_line_that_there_is_nothing(call):
    with pytest.raises(UserError, match="nowhere") as error:
        call()
    assert "\n" not in str(error.value)
