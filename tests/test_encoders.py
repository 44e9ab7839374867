"""Encoders: shapes, taps, hiding, sizes, equality with timm, and weights on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from checks import golden, wave
from segdistill import shipped, weights
from segdistill.config import UserError, parse
from segdistill.encoders import ENCODERS, Encoder, EncoderConfig, build_encoder
from segdistill.files import sha256
from segdistill.ops import generator
from segdistill.weights import load_encoder_weights, resample_positions, save_encoder, weights_path

SMALL = {"world_student": (16, 32), "deit_s": (32, 48), "dinov2_s": (28, 42), "eva02_ti": (28, 42)}


def build(name: str, seed: int = 0, **settings) -> Encoder:
    return build_encoder(EncoderConfig(name=name, **settings), seed=seed).eval()


def picture(size: tuple[int, int], batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=generator("picture", seed))


@pytest.fixture(scope="module", params=SMALL)
def small(request) -> Encoder:
    """A small encoder of every kind, built for a small rectangular image; biases and gains are not the initial ones."""
    encoder = build(request.param, image_size=SMALL[request.param], resample="timm")
    with torch.no_grad():
        for index, parameter in enumerate(encoder.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator("jitter", index)))
    return encoder


@pytest.fixture(scope="module")
def student() -> Encoder:
    return build("world_student")


def same(a: Encoder, b: Encoder) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_world_encoders_have_the_promised_sizes():
    assert 4.5e6 < ENCODERS["world_teacher"].parameters < 5.5e6
    assert 1.2e6 < ENCODERS["world_student"].parameters < 1.4e6


@torch.no_grad()
def test_equals_timm(small):
    """At the built size and at another one: the final tokens of ``forward_features``, the raw ones of the blocks."""
    for size in (SMALL[small.name], tuple(2 * side for side in SMALL[small.name])):
        images = picture(size)
        features = small(images, (-1, 3, 0))
        normal = (images - small.mean) / small.std
        final = torch.cat([features.cls[:, None], features.tokens[0]], 1)
        torch.testing.assert_close(final, small.backbone.forward_features(normal))
        raw = small.backbone.forward_intermediates(normal, [0, 3], output_fmt="NLC", intermediates_only=True)
        for ours, theirs in zip(features.tokens[1:], raw[::-1], strict=True):
            torch.testing.assert_close(ours, theirs)


@torch.no_grad()
def test_normalises_with_imagenet_statistics(student):
    grey = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 64, 128)
    seen = []
    handle = student.backbone.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    student(grey)
    handle.remove()
    torch.testing.assert_close(seen[0], torch.zeros(1, 3, 64, 128), atol=1e-6, rtol=0)
    assert student.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


@torch.no_grad()
@pytest.mark.parametrize("name", ["eva02_ti", "dinov2_s"])
def test_final_norm_covers_every_token(name):
    """timm's EVA02 would put it behind the pooling and leave the patch tokens raw."""
    encoder = build(name, image_size=SMALL[name])
    assert isinstance(encoder.backbone.norm, nn.LayerNorm)
    tokens = encoder(picture(SMALL[name])).tokens[0]
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(tokens.shape[:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.var(-1, correction=0), torch.ones(tokens.shape[:2]), atol=1e-2, rtol=0)


def test_architectures_keep_what_their_checkpoints_hold():
    with torch.device("meta"):
        encoders = {name: Encoder(EncoderConfig(name=name)) for name in ("dinov2_b", "deit_b", "eva02_b")}
    keys = {name: set(encoder.state_dict()) for name, encoder in encoders.items()}
    assert "backbone.blocks.0.ls1.gamma" in keys["dinov2_b"]
    assert not any("ls1" in key or "dist" in key for key in keys["deit_b"])
    assert encoders["deit_b"].backbone.pos_embed.shape[1] == 1 + 14 * 14
    assert "backbone.blocks.0.mlp.norm.weight" in keys["eva02_b"]
    assert not any("rope" in key for key in keys["eva02_b"])
    assert {block.norm1.eps for encoder in encoders.values() for block in encoder.backbone.blocks} == {1e-6}


def count(encoder: Encoder) -> int:
    return encoder.grid[0] * encoder.grid[1]


@torch.no_grad()
def test_hiding_nothing_changes_nothing(small):
    images = picture(SMALL[small.name])
    plain = small(images, (-1, 1))
    masked = small(images, (-1, 1), torch.zeros(2, count(small), dtype=torch.bool))
    for a, b in zip((*plain.tokens, plain.cls), (*masked.tokens, masked.cls), strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_hiding_acts_on_its_own_sample(small):
    images = picture(SMALL[small.name])
    hidden = torch.zeros(2, count(small), dtype=torch.bool)
    hidden[1, ::2] = True
    plain, masked = small(images), small(images, hidden=hidden)
    torch.testing.assert_close(plain.tokens[0][0], masked.tokens[0][0])
    assert (plain.tokens[0][1] - masked.tokens[0][1]).abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_hidden_everywhere_leaves_places_but_no_picture(small):
    """The mask token comes before the positional embedding: hidden tokens still know where they are."""
    hidden = torch.ones(2, count(small), dtype=torch.bool)
    tokens = small(picture(SMALL[small.name]), hidden=hidden).tokens[0]
    torch.testing.assert_close(tokens[0], tokens[1])
    assert (tokens[0, 0] - tokens[0, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_hiding_by_hand(student):
    encoder = build("world_student")
    nn.init.normal_(encoder.mask_token, generator=generator("mask token"))
    images, hidden = picture((64, 128)), torch.rand(2, 128, generator=generator("hidden")) < 0.5
    backbone = encoder.backbone
    x = backbone.patch_embed((images - encoder.mean) / encoder.std).flatten(1, 2)
    for b in range(2):
        for n in range(128):
            if hidden[b, n]:
                x[b, n] = encoder.mask_token[0, 0]
    x = torch.cat([backbone.cls_token.expand(2, -1, -1), x], 1) + backbone.pos_embed
    x = backbone.norm(backbone.blocks(x))
    features = encoder(images, hidden=hidden)
    torch.testing.assert_close(features.tokens[0], x[:, 1:])
    torch.testing.assert_close(features.cls, x[:, 0])


def test_mask_token_starts_at_zero_and_learns(student):
    assert student.mask_token.abs().max() == 0
    features = student(picture((64, 128)), hidden=torch.ones(2, 128, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(features.tokens[0].square().sum() + features.tokens[0].sum(), student.mask_token)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["world_student", "eva02_ti"])
def test_bfloat16_autocast_is_close_and_learns(name):
    encoder, images = build(name, image_size=SMALL[name]), picture(SMALL[name])
    exact = encoder(images).tokens[0]
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder(
            images, (-1, 2), torch.zeros(2, count(encoder), dtype=torch.bool).fill_diagonal_(fill_value=True)
        )
        plain = encoder(images).tokens[0]
    assert (plain - exact).abs().mean() < 0.05
    features.tokens[0].float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder.backbone.pos_embed.grad.abs().sum() > 0


def test_random_weights_depend_on_the_seed_alone(student):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = build("world_student")
    assert torch.equal(torch.get_rng_state(), before)
    assert same(again, student)
    assert not same(build("world_student", seed=1), student)


@pytest.mark.parametrize(("size", "padded"), [((60, 128), "64 x 128"), ((64, 100), "64 x 104"), ((4, 8), "8 x 8")])
def test_odd_sizes_name_the_padded_size(student, size, padded):
    with pytest.raises(UserError, match=f"patch 8: pad or resize it, for example to {padded}"):
        student(picture(size))


def test_unknown_tap_is_a_user_error(student):
    for tap in (6, -2):
        with pytest.raises(UserError, match=f"no tap {tap}: allowed are blocks 0 to 5"):
            student(picture((64, 128)), (tap,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dinov2_m"}, "unknown encoder 'dinov2_m': did you mean 'dinov2_"),
        ({"name": "world_student", "patch": 16}, "convolutional stem of patch 8"),
        ({"name": "dinov2_s", "image_size": [512, 512]}, "512 x 512 is not divisible by the patch 14.*518 x 518"),
        ({"name": "dinov2_s", "patch": 16}, "does not divide dinov2_s's native size"),
        ({"name": "dinov2_s", "patch": 0}, "greater than or equal to 1"),
        ({"name": "dinov2_s", "weight": "x"}, "did you mean 'weights'"),
    ],
)
def test_settings_that_cannot_work_are_user_errors(settings, message):
    with pytest.raises(UserError, match=message):
        parse(EncoderConfig, settings, "teacher")


def test_another_patch_is_built():
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(name="dinov2_s", patch=16, image_size=(32, 64)))
        assert encoder(torch.empty(1, 3, 32, 64)).grid == encoder.grid == (2, 4)


# ---------------------------------------------------------------------------------------------------- weights on disk


@pytest.fixture
def saved(tmp_path, small) -> tuple[Encoder, Path]:
    path = tmp_path / "stage" / "encoder.safetensors"
    save_encoder(small, path)
    return small, path


def test_weights_survive_a_round_trip(saved):
    encoder, path = saved
    settings = {"image_size": SMALL[encoder.name]}
    assert not same(build(encoder.name, seed=9, **settings), encoder)
    for source in (path, path.parent):
        assert same(build(encoder.name, seed=9, weights=str(source), **settings), encoder)
    assert [file.name for file in path.parent.iterdir()] == ["encoder.safetensors"]


def test_half_precision_files_are_half_as_big_and_cast_up(tmp_path, student):
    full, half = tmp_path / "full.safetensors", tmp_path / "half.safetensors"
    save_encoder(student, full)
    save_encoder(student, half, half=True)
    assert half.stat().st_size < 0.52 * full.stat().st_size
    loaded = build("world_student", seed=3, weights=str(half))
    for key, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, student.state_dict()[key].half().float())


def test_positions_of_another_grid_are_resampled(tmp_path, student):
    path = tmp_path / "student.safetensors"
    save_encoder(student, path)
    for h, w in ((12, 24), (16, 8)):  # the second has as many places as the stored grid
        other = build("world_student", weights=str(path), image_size=(8 * h, 8 * w))
        expected = resample_positions(student.backbone.pos_embed, (8, 16), (h, w))
        torch.testing.assert_close(other.backbone.pos_embed, expected)
        torch.testing.assert_close(other.backbone.norm.weight, student.backbone.norm.weight)


def test_resampled_positions_equal_the_golden_values():
    rows = wave((1, 11, 2), 0.5)
    resampled = resample_positions(torch.cat([rows[:, :1], rows[:, 2:]], 1), (3, 3), (4, 4))
    expected = golden("gkd")["positions"]
    assert resampled.shape == (1, 17, 2)
    assert resampled.flatten()[:8].tolist() == pytest.approx(expected["first"], rel=0, abs=1e-9)
    assert resampled.sum().item() == pytest.approx(expected["sum"], rel=0, abs=1e-9)


def damage(path: Path, change) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "is damaged or not a safetensors file"),
        (lambda path: path.write_text("no weights"), "is damaged or not a safetensors file"),
        (lambda path: path.write_bytes(b""), "is damaged or not a safetensors file"),
        (lambda path: damage(path, lambda s: s.pop("backbone.norm.bias")), "missing backbone.norm.bias; unexp"),
        (lambda path: damage(path, lambda s: s.update(extra=torch.ones(1))), "missing nothing; unexpected extra"),
        (lambda path: damage(path, lambda s: s["mask_token"].fill_(float("nan"))), "not finite: mask_token"),
        (lambda path: damage(path, lambda s: s.update(mask_token=torch.ones(3))), r"mask_token \(3,\) instead of \(1"),
        (
            lambda path: damage(path, lambda s: s.update({"backbone.pos_embed": torch.ones(1, 8, 128)})),
            "7 positions do not form the grid 2 x 2",
        ),
        (lambda path: path.with_name("manifest.json").write_text("{"), "manifest.json' is damaged"),
        (lambda path: path.with_name("manifest.json").write_text('{"sha256": "0"}'), "differs from the sha256"),
        (
            lambda path: path.with_suffix(".json").write_text('{"sha256": {"encoder.safetensors": "0"}}'),
            "differs from the sha256 in 'encoder.json'",
        ),
        (lambda path: path.unlink(), "no encoder weights at"),
    ],
)  # fmt: skip
def test_spoilt_files_are_user_errors(tmp_path, student, spoil, message):
    path = tmp_path / "encoder.safetensors"
    save_encoder(student, path)
    spoil(path)
    with pytest.raises(UserError, match=message) as error:
        build("world_student", weights=str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_matching_manifest_is_accepted(tmp_path, student):
    path = tmp_path / "encoder.safetensors"
    save_encoder(student, path)
    for content in ({"sha256": sha256(path)}, {"sha256": {path.name: sha256(path)}}, {"sha256": {"other": "0"}}, {}):
        path.with_name("manifest.json").write_text(json.dumps(content))
        assert same(build("world_student", seed=2, weights=str(path)), student)


def test_another_width_is_a_user_error(tmp_path, student):
    save_encoder(student, tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match=r"does not fit world_teacher: .*instead of .* and \d+ more"):
        build("world_teacher", weights=str(tmp_path))


def test_weights_that_overflow_half_precision_are_not_saved(tmp_path):
    encoder = build("world_student")
    with torch.no_grad():
        encoder.mask_token.fill_(1e6)
    with pytest.raises(UserError, match=r"not finite as torch.float16: mask_token; not saved"):
        save_encoder(encoder, tmp_path / "encoder.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_shipped_weights_are_found_by_encoder_or_asset(tmp_path, student, monkeypatch):
    for module in (weights, shipped):
        monkeypatch.setattr(module, "ASSETS", tmp_path)
    with pytest.raises(UserError, match="no shipped weights 'world_student': allowed: none are in this copy"):
        weights_path("shipped", "world_student")
    save_encoder(student, tmp_path / "world_student_local.safetensors", half=True)
    assert weights_path("shipped:world_student_local", "any") == tmp_path / "world_student_local.safetensors"
    with pytest.raises(UserError, match="did you mean 'world_student_local'"):
        build("world_student", weights="shipped:world_student_locl")
    save_encoder(student, tmp_path / "world_student.safetensors")
    assert same(build("world_student", seed=4, weights="shipped"), student)


def test_random_leaves_an_encoder_as_it_is(student):
    encoder = build("world_student")
    load_encoder_weights(encoder, "random")
    assert same(encoder, student)


def test_no_state_is_unpickled(tmp_path, student):
    torch.save(student.state_dict(), tmp_path / "encoder.safetensors")
    with pytest.raises(UserError, match="not a safetensors file"):
        build("world_student", weights=str(tmp_path))


class AttentionTypes(TorchFunctionMode):
    """Notes the types in which attention is computed."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.seen.append((args[0].dtype, torch.is_autocast_enabled("cpu")))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_bf16_training_on_a_cpu_keeps_attention_in_fp32(student, training):
    images = torch.rand(1, 3, 32, 64, generator=generator("images"))
    with torch.set_grad_enabled(training), AttentionTypes() as attention, torch.autocast("cpu", torch.bfloat16):
        half = student(images).tokens[0]
    assert set(attention.seen) == ({(torch.float32, False)} if training else {(torch.bfloat16, True)})
    with torch.no_grad():
        full = student(images).tokens[0]
    assert (half.float() - full).abs().max() < 0.1 * full.abs().max()
    assert not torch.equal(half.float(), full)
