"""Resampling: golden values, a restatement of bicubic interpolation in NumPy, DINOv2's offset, timm's other way."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, resample_patch_embed

from checks import golden, wave
from official import deit_state, dinov2_state, install, load
from segdistill.config import UserError, parse
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.ops import generator
from segdistill.weights import resample_kernel, resample_positions
from segdistill.weights.resample import resample_relative


def bicubic(values: np.ndarray, size: int, step: float) -> np.ndarray:
    """Along the first axis: Keys' kernel with a = -0.75, half-pixel centres, borders repeated, no antialias."""
    a = -0.75

    def weight(x: float) -> float:
        x = abs(x)
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    rows = []
    for place in range(size):
        source = (place + 0.5) * step - 0.5
        first = int(np.floor(source)) - 1
        near = range(first, first + 4)
        rows.append(sum(weight(source - i) * values[min(max(i, 0), len(values) - 1)] for i in near))
    return np.stack(rows)


def by_hand(maps: np.ndarray, new: tuple[int, int], offset: float) -> np.ndarray:
    """(h, w, C) -> (h', w', C); with ``offset`` the step is old / (new + offset)."""
    h, w = maps.shape[:2]
    rows = bicubic(maps, new[0], h / (new[0] + offset))
    return bicubic(rows.swapaxes(0, 1), new[1], w / (new[1] + offset)).swapaxes(0, 1)


@pytest.mark.parametrize(("how", "offset"), [("papers", 0.0), ("hub", 0.1)])
@pytest.mark.parametrize(("old", "new"), [((7, 7), (4, 4)), ((3, 5), (6, 4)), ((4, 4), (5, 9))])
def test_positions_equal_a_restatement(how, offset, old, new):
    positions = torch.randn(1, 1 + old[0] * old[1], 3, generator=generator("positions", *old), dtype=torch.float64)
    resampled = resample_positions(positions, old, new, how=how)
    assert torch.equal(resampled[:, 0], positions[:, 0])
    expected = by_hand(positions[0, 1:].numpy().reshape(*old, 3), new, offset)
    np.testing.assert_allclose(resampled[0, 1:].numpy(), expected.reshape(-1, 3), rtol=0, atol=1e-9)


def test_the_three_ways_differ():
    positions = torch.randn(1, 1 + 37 * 37, 2, generator=generator("positions"))
    ways = [resample_positions(positions, (37, 37), (16, 16), how=how) for how in ("papers", "hub", "timm")]
    assert torch.equal(ways[2], resample_abs_pos_embed(positions, [16, 16], [37, 37]))
    for one, other in [*pairwise(ways), (ways[0], ways[2])]:
        assert (one - other).abs().mean() > 0.05


def test_the_same_grid_is_left_as_it_is():
    positions, kernel = torch.randn(1, 13, 2), torch.randn(2, 3, 14, 14)
    for how in ("papers", "hub", "timm"):
        assert torch.equal(resample_positions(positions, (3, 4), (3, 4), how=how), positions)
        assert torch.equal(resample_kernel(kernel, (14, 14), how), kernel)


def test_kernel_equals_the_golden_values():
    resampled = resample_kernel(wave((1, 1, 4, 4), 0.9), (3, 3))
    assert resampled.flatten()[:3].tolist() == pytest.approx(golden("gkd")["kernel"]["first"], rel=0, abs=1e-7)
    expected = by_hand(wave((4, 4, 1), 0.9).numpy(), (3, 3), 0.0)
    np.testing.assert_allclose(resampled[0, 0].numpy(), expected[..., 0], rtol=0, atol=1e-6)


def test_the_papers_kernel_does_not_keep_the_response_and_timms_does():
    """(16/14)^2 = 1.306 times the answer to a constant patch (spec A.6)."""
    kernel = torch.randn(4, 3, 14, 14, generator=generator("kernel")).abs() + 1
    before = kernel.sum((1, 2, 3))
    ones = resample_kernel(torch.ones(1, 1, 14, 14), (16, 16))
    assert ones.sum().item() == pytest.approx(14 * 14 * (16 / 14) ** 2, rel=1e-6)
    for how in ("papers", "hub"):
        response = resample_kernel(kernel, (16, 16), how).sum((1, 2, 3)) / before
        assert response.mean().item() == pytest.approx(1.306, abs=0.01)
    antialiased = resample_kernel(kernel, (16, 16), "timm")
    assert torch.equal(antialiased, resample_patch_embed(kernel, [16, 16]))
    torch.testing.assert_close(antialiased.sum((1, 2, 3)) / before, torch.ones(4), rtol=0, atol=0.02)


def test_relative_positions_are_linear():
    rows = torch.arange(7.0)[:, None] * torch.tensor([1.0, -2.0])
    resampled = resample_relative(rows, 13)
    assert resampled.shape == (13, 2)
    torch.testing.assert_close(resampled[6], rows[3])
    torch.testing.assert_close(resampled[:, 1], -2 * resampled[:, 0])
    torch.testing.assert_close(resampled[1:12].diff(dim=0)[:, 0], torch.full((10,), 7 / 13))


def test_the_teacher_of_stage_1a_is_dinov2_at_run_time(tmp_path, monkeypatch):
    """Meta's own function, restated: a (1, 17, C) embedding at a 28 x 42 image of patch 14, factor (n + 0.1) / 4."""
    install(monkeypatch)
    state = dinov2_state()
    torch.save(state, tmp_path / "dinov2.pth")
    encoder = load("tiny_dinov2", tmp_path / "dinov2.pth", image_size=(28, 42), resample="hub")
    maps = state["pos_embed"][:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, scale_factor=((2 + 0.1) / 4, (3 + 0.1) / 4), mode="bicubic", antialias=False)
    expected = torch.cat([state["pos_embed"][:, :1], maps.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    torch.testing.assert_close(encoder.backbone.pos_embed.data, expected)
    assert encoder.loaded.changed == {"backbone.pos_embed": "4x4 -> 2x3, hub"}


def test_a_student_of_stage_1a_gets_another_patch_and_another_grid(tmp_path, monkeypatch):
    """DeiT 16 -> 14 pixels, 3 x 3 -> 4 x 4 places, without the distillation token; in the order of the papers."""
    install(monkeypatch)
    state = deit_state()
    torch.save({"model": state}, tmp_path / "deit.pth")
    encoder = load("tiny_deit", tmp_path / "deit.pth", patch=14, image_size=(56, 56))
    rows = state["pos_embed"][0].double().numpy()
    expected = by_hand(rows[2:].reshape(3, 3, -1), (4, 4), 0.0).reshape(16, -1)
    np.testing.assert_allclose(encoder.backbone.pos_embed[0, 1:].detach(), expected, rtol=0, atol=1e-5)
    assert torch.equal(encoder.backbone.pos_embed[0, 0], state["pos_embed"][0, 0])
    kernel = state["patch_embed.proj.weight"].permute(2, 3, 0, 1).flatten(2).double().numpy()
    ours = encoder.backbone.patch_embed.proj.weight.detach().permute(2, 3, 0, 1).flatten(2)
    np.testing.assert_allclose(ours, by_hand(kernel, (14, 14), 0.0), rtol=0, atol=1e-5)
    assert encoder.loaded.changed == {
        "backbone.pos_embed": "without the distillation token's row, 3x3 -> 4x4, papers",
        "backbone.patch_embed.proj.weight": "16x16 -> 14x14, papers",
    }


def test_a_square_file_for_an_oblong_encoder_is_resampled(tmp_path, monkeypatch):
    """As many places, 4 x 4 and 2 x 8: official files are square."""
    install(monkeypatch)
    torch.save(dinov2_state(), tmp_path / "dinov2.pth")
    encoder = load("tiny_dinov2", tmp_path / "dinov2.pth", image_size=(28, 112))
    expected = resample_positions(dinov2_state()["pos_embed"], (4, 4), (2, 8))
    torch.testing.assert_close(encoder.backbone.pos_embed.data, expected)


def test_half_precision_files_are_resampled_in_float32(tmp_path, monkeypatch):
    install(monkeypatch)
    state = {key: value.half() for key, value in dinov2_state().items()}
    torch.save(state, tmp_path / "half.pth")
    encoder = load("tiny_dinov2", tmp_path / "half.pth", image_size=(42, 42))
    expected = resample_positions(state["pos_embed"].float(), (4, 4), (3, 3))
    assert torch.equal(encoder.backbone.pos_embed, expected)


@torch.no_grad()
@pytest.mark.parametrize("how", ["papers", "hub", "timm"])
@pytest.mark.parametrize("name", ["tiny_dinov2", "tiny_eva_fused", "world_student"])
def test_images_of_another_size_get_positions_resampled_in_the_same_way(monkeypatch, name, how):
    """Against a network built for the images' size and given positions that stand here: one side grows, one shrinks."""
    install(monkeypatch)
    encoder = build_encoder(EncoderConfig(name=name, resample=how), seed=3).eval()
    (h, w), patch = encoder.grid, encoder.patch
    torch.nn.init.normal_(encoder.backbone.pos_embed, generator=generator("positions"))
    state, new = encoder.state_dict(), (h + 2, w - 1)
    fitted = build_encoder(EncoderConfig(name=name, image_size=(new[0] * patch, new[1] * patch)), seed=3).eval()
    first, rows = state["backbone.pos_embed"].split([1, h * w], dim=1)
    maps = rows.unflatten(1, (h, w)).permute(0, 3, 1, 2)
    if how == "timm":
        maps = F.interpolate(maps, size=new, mode="bicubic", antialias=True)
    else:
        maps = F.interpolate(maps, scale_factor=((new[0] + 0.1) / h, (new[1] + 0.1) / w), mode="bicubic")
    rows = maps.permute(0, 2, 3, 1).flatten(1, 2)
    fitted.load_state_dict(state | {"backbone.pos_embed": torch.cat([first, rows], dim=1)})
    images = torch.rand(2, 3, *fitted.config.built_for, generator=generator("picture"))
    ours, theirs = encoder(images), fitted(images)
    torch.testing.assert_close(ours.tokens[0], theirs.tokens[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.cls, theirs.cls, rtol=1e-5, atol=1e-5)


def test_an_unknown_way_is_a_user_error():
    with pytest.raises(UserError, match=r"resample: .*'papers', 'hub' or 'timm'"):
        parse(EncoderConfig, {"name": "deit_s", "resample": "bilinear"}, "student")
