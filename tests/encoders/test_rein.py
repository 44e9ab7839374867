"""Rein: its equations in NumPy, the frozen network under it, and a run whose teacher it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from segdistill.config import UserError, parse
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.encoders.rein import Rein, ReinConfig
from segdistill.ops import generator
from segdistill.recipe import Recipe, load
from segdistill.runs.execute import run
from segdistill.weights import save_encoder
from tiny_runs import TINY, tiny_file

REIN = {"tokens": 5, "rank": 2}


def jittered(**settings):
    torch.manual_seed(0)
    module = Rein(ReinConfig(**(REIN | settings)), depth=3, width=6)
    with torch.no_grad():
        for each in module.parameters():
            each.add_(0.3 * torch.randn(each.shape))
    return module


def build(seed=0, weights="random", **changes):
    config = EncoderConfig(name="world_student", rein=REIN, weights=str(weights), **changes)
    return build_encoder(config, seed=seed).eval()


def picture(batch=2):
    return torch.rand(batch, 3, 64, 128, generator=generator("picture"))


@torch.no_grad()
def test_equals_the_equations():
    module, features = jittered(), torch.randn(2, 7, 6, generator=generator("features"))
    f, a, b = (each.detach().double().numpy() for each in (features, module.a, module.b))
    value, value_bias, refine, refine_bias = (
        each.detach().double().numpy()
        for each in (module.value.weight, module.value.bias, module.refine.weight, module.refine.bias)
    )
    for block in range(3):
        tokens = a[block] @ b[block]
        similarity = np.exp(f @ tokens.T / np.sqrt(6))
        similarity /= similarity.sum(-1, keepdims=True)
        delta = sum(
            similarity[..., k, None] * (tokens[k] @ value.T + value_bias) for k in range(1, 5)
        )  # the first token only takes its share
        expected = f + (f + delta) @ refine.T + refine_bias
        np.testing.assert_allclose(module(block, features).numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [{"tokens": 6}, {"rank": 3}])
def test_every_setting_matters(change):
    features = torch.randn(1, 4, 6, generator=generator("features"))
    assert not torch.equal(jittered()(0, features), jittered(**change)(0, features))


def test_the_gradient_reaches_every_parameter_after_a_step():
    torch.manual_seed(0)
    module, features = Rein(ReinConfig(**REIN), depth=1, width=6), torch.randn(1, 4, 6)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        module(0, features).square().sum().backward()
        optimiser.step()
    assert all(each.grad.abs().max() > 0 for each in module.parameters())


@torch.no_grad()
def test_it_starts_as_the_network_without_it_and_refines_every_block():
    plain, refined = build_encoder(EncoderConfig(name="world_student"), seed=0).eval(), build()
    before, start = plain(picture(), (0, 5, -1)), refined(picture(), (0, 5, -1))
    for one, other in zip((*before.tokens, before.cls), (*start.tokens, start.cls), strict=True):
        assert torch.equal(one, other)
    shift = torch.linspace(-1, 1, 128)
    refined.rein.refine.bias.copy_(shift)
    moved = refined(picture(), (0, 5, -1))
    torch.testing.assert_close(moved.tokens[0], before.tokens[0] + shift)  # the first block: its input is the same
    assert (moved.tokens[1] - before.tokens[1]).abs().max() > 0.1
    assert (moved.cls - before.cls).abs().max() > 0.01
    normed = refined.backbone.norm(moved.tokens[1])
    torch.testing.assert_close(moved.tokens[2], normed)  # the final norm reads the refined tokens


def test_start_weights_have_no_part_of_it_and_its_own_files_load_exactly(tmp_path):
    save_encoder(build_encoder(EncoderConfig(name="world_student"), seed=3), tmp_path / "start.safetensors")
    encoder = build(seed=1, weights=tmp_path / "start.safetensors")
    assert set(encoder.loaded.missing) == {key for key in encoder.state_dict() if key.startswith("rein.")}
    with torch.no_grad():
        encoder.rein.refine.weight.add_(1.0)
    save_encoder(encoder, tmp_path / "own.safetensors")
    again = build(seed=2, weights=tmp_path / "own.safetensors")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in encoder.state_dict().items())
    assert not again.loaded.missing
    with pytest.raises(UserError, match=r"does not fit world_student.*unexpected rein\.a"):
        build_encoder(EncoderConfig(name="world_student", weights=str(tmp_path / "own.safetensors")), seed=0)
    state = load_file(tmp_path / "own.safetensors")
    torch.save({key: value for key, value in state.items() if key != "rein.a"}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"missing rein\.a"):
        build(weights=tmp_path / "part.pth")


TASK = {"type": "task", "data": {"domains": ["game"], "images": 4}, "batch": 2, "steps": 3}
DISTIL = {"type": "distill", "data": {"domains": ["game"], "images": 4}, "batch": 2, "steps": 2,
          "method": {"type": "mse"}}  # fmt: skip


def recipe(**values):
    tiny = yaml.safe_load(TINY) | values
    tiny["teacher"]["encoder"] = {"name": "world_teacher", "rein": REIN}
    return tiny


def test_a_rein_teacher_is_trained_on_labels_and_then_distilled(tmp_path):
    stages = [
        TASK | {"name": "teacher", "model": "teacher", "adapter": True, "optimizer": {"encoder_lr_scale": 1.0}},
        DISTIL | {"name": "agnostic"},
        TASK | {"name": "task", "freeze_encoder": True},
    ]
    path = tiny_file(tmp_path, yaml.safe_dump(recipe(stages=stages), sort_keys=False))
    run(load(path), tmp_path / "run")
    fresh = build_encoder(EncoderConfig(name="world_teacher", rein=REIN), seed=0).state_dict()
    saved = load_file(tmp_path / "run" / "stages" / "00-teacher" / "encoder.safetensors")
    assert saved.keys() == fresh.keys()
    assert saved["rein.refine.weight"].abs().max() > 0
    manifest = json.loads((tmp_path / "run" / "stages" / "01-agnostic" / "manifest.json").read_text())
    assert "00-teacher/encoder.safetensors" in manifest["weights"]["teacher"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["models"]) == {"teacher", "student"}


def test_the_network_under_it_stays_as_it_is(tmp_path):
    save_encoder(build_encoder(EncoderConfig(name="world_student"), seed=3), tmp_path / "start.safetensors")
    values = yaml.safe_load(TINY)
    values["student"]["encoder"] = {
        "name": "world_student",
        "rein": REIN,
        "weights": str(tmp_path / "start.safetensors"),
    }
    values |= {"teacher": None, "stages": [TASK | {"name": "task", "adapter": True}]}
    run(load(tiny_file(tmp_path, yaml.safe_dump(values, sort_keys=False))), tmp_path / "run")
    before = load_file(tmp_path / "start.safetensors")
    saved = load_file(tmp_path / "run" / "stages" / "00-task" / "encoder.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in before.items())
    assert saved["rein.refine.weight"].abs().max() > 0


@pytest.mark.parametrize(
    ("encoder", "stage", "message"),
    [
        ({"name": "world_student"}, {"adapter": True}, "the student's encoder has no adapter; add encoder.rein"),
        (
            {"name": "world_student", "rein": {}},
            {"adapter": True, "freeze_encoder": True},
            "adapter trains a part of the encoder; remove freeze_encoder",
        ),
        ({"name": "timm:test_convnext", "rein": {}}, {}, "not a plain ViT, whose blocks Rein refines"),
        ({"name": "world_student", "rein": {"tokens": 1}}, {}, "tokens"),
    ],
)
def test_what_cannot_work_is_refused(encoder, stage, message):
    values = yaml.safe_load(TINY) | {"stages": [TASK | {"name": "task"} | stage]}
    values["student"]["encoder"] = encoder
    with pytest.raises(UserError, match=message) as error:
        parse(Recipe, values)
    assert "\n" not in str(error.value)
