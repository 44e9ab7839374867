"""Af-DCD against the golden values of the authors' code and a NumPy restatement, one query at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from checks import DEPTH, MethodCase, golden, wave
from segdistill.config import UserError
from segdistill.methods.afdcd import AfDCD, omni_contrast
from segdistill.methods.kl import pixel_kl
from segdistill.ops import resize_tokens, tokens_to_map
from segdistill.types import Features, FeatureSpec, Views

GOLDEN = golden("afdcd")


def numpy_pool(x, side):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // side, side, w // side, side).max((3, 5))


def numpy_contrast(student, teacher, groups, patch, temperature):
    """Spec B.3: for each query the positive and the list of its negatives."""
    (b, c, h, w), total = student.shape, 0.0
    parts = [slice(m * (c // groups), (m + 1) * (c // groups)) for m in range(groups)]
    for n, i, j, m in np.ndindex(b, h, w, groups):
        query = student[n, parts[m], i, j]
        top, left = i // patch * patch, j // patch * patch
        keys = [teacher[n, parts[m], i, j]] + [
            teacher[n, parts[other], y, x]
            for y in range(top, top + patch)
            for x in range(left, left + patch)
            for other in range(groups)
            if other != m
        ]
        assert len(keys) == 1 + patch**2 * (groups - 1)
        logits = np.array([-np.abs(query - key).sum() / temperature for key in keys])
        total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0]
    return total / (b * h * w)


def numpy_terms(case, student, teacher, noise):
    """The feature and the contrast term; convolutions are torch's."""
    config, method = case.config, case.method
    kept = (noise.numpy() <= 1 - config.drop)[..., None]
    align = [parameter.detach().numpy() for parameter in method.align.parameters()]
    masked = torch.from_numpy((student.plain.tokens[0].numpy() @ align[0].T + align[1]) * kept)
    first, _, last = method.projector
    hidden = F.conv2d(tokens_to_map(masked, case.grid), first.weight, first.bias, padding=1).clamp(min=0)
    rebuilt = F.conv2d(hidden, last.weight, last.bias, padding=1).detach().numpy()
    target = tokens_to_map(teacher.plain.tokens[0], case.grid).numpy()
    pooled = (numpy_pool(x, config.pool) for x in (rebuilt, target))
    contrast = numpy_contrast(*pooled, config.groups, config.patch, config.tau)
    return {
        "feature": config.feature_weight * ((rebuilt - target) ** 2).sum() / case.batch,
        "contrast": config.contrast_weight * contrast,
    }


@pytest.mark.parametrize("case", GOLDEN["contrast"], ids=lambda case: f"pool {case['pool']}")
def test_contrast_equals_the_golden_values(case):
    pooled = (F.max_pool2d(x, case["pool"]) for x in (wave((2, 8, 8, 8), 0.3, 0.2), wave((2, 8, 8, 8), 0.7, 0.5)))
    loss = omni_contrast(*pooled, groups=4, patch=2, tau=0.07)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12, abs=0)


def test_contrast_equals_numpy_on_a_map_that_is_not_square():
    student, teacher = wave((2, 6, 3, 6), 1.3, 0.1), wave((2, 6, 3, 6), 0.9, 0.4)
    loss = omni_contrast(student, teacher, groups=3, patch=3, tau=0.5)
    assert loss.item() == pytest.approx(numpy_contrast(student.numpy(), teacher.numpy(), 3, 3, 0.5), rel=1e-12)


def test_terms_equal_numpy():
    case = MethodCase("afdcd", feature_weight=0.7, contrast_weight=0.3, pixel_weight=0.9, pixel_tau=2.0)
    student, teacher = case.views()
    noise = torch.rand(case.batch, 4 * 8)
    terms = {name: term.item() for name, term in case.method(student, teacher, noise).items()}
    expected = numpy_terms(case, student, teacher, noise)
    expected["pixel"] = 0.9 * pixel_kl(student.logits, teacher.logits, 2.0).item()
    assert terms == pytest.approx(expected, rel=1e-12)


def test_the_enhanced_projector_averages_a_shallow_and_a_deep_output():
    method = MethodCase("afdcd", enhanced=True).method.projector
    x = wave((1, 8, 4, 8), 0.3)
    first = method.first[0](x).clamp(min=0)
    second = method.second[0](first).clamp(min=0)
    torch.testing.assert_close(method(x), 0.5 * method.first_out(first) + 0.5 * method.second_out(second))


def test_contrast_prefers_the_teachers_own_map_and_knows_no_order_of_patches():
    teacher = wave((2, 8, 4, 8), 0.7, 0.5)
    settings = {"groups": 4, "patch": 2, "tau": 0.07}
    own = omni_contrast(teacher, teacher, **settings)
    other = omni_contrast(wave((2, 8, 4, 8), 0.3, 0.2), teacher, **settings)
    assert 0 <= own.item() < 0.5 * other.item()
    moved = teacher.roll(2, dims=-1)
    torch.testing.assert_close(omni_contrast(moved, moved, **settings), own)
    assert omni_contrast(moved, teacher, **settings) > own


def test_hidden_pixels_of_the_student_do_not_matter():
    case = MethodCase("afdcd", drop=0.5)
    student, teacher = case.views(grad=True)
    noise = torch.rand(case.batch, 4 * 8)
    case.method(student, teacher, noise)["feature"].backward()
    assert torch.equal(student.plain.tokens[0].grad.abs().sum(-1) > 0, noise <= 0.5)


def test_hidden_pixels_are_drawn_from_torchs_generator_anew_at_each_call():
    case = MethodCase("afdcd")
    views = case.views()

    def drawn(seed: int) -> list[float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [case.method(*views)["feature"].item() for _ in range(2)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1)[0] != drawn(1)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        noise = torch.rand(case.batch, 4 * 8)
    assert case.method(*views, noise)["feature"].item() == drawn(1)[0]


def test_tokens_of_another_grid_are_resampled_to_the_teachers():
    case = MethodCase("afdcd", pixel_weight=0.0)
    student, _ = case.views()
    grid, noise = (8, 12), torch.rand(case.batch, 96)
    teacher = Views(plain=Features((wave((4, 96, 8), 0.3),), None, grid))
    same = Features((resize_tokens(student.plain.tokens[0], case.grid, grid),), None, grid)
    expected = case.method(Views(plain=same), teacher, noise)
    for name, term in case.method(student, teacher, noise).items():
        torch.testing.assert_close(term, expected[name], rtol=1e-12, atol=0)


def test_a_term_of_weight_zero_asks_for_nothing():
    case = MethodCase("afdcd", contrast_weight=0.0, pixel_weight=0.0, pool=3, groups=5)
    assert not case.method.needs.logits
    assert set(case.method(*case.views())) == {"feature"}


def test_the_published_settings_take_a_published_grid():
    """32x32 tokens of a ViT-B at 512 pixels; here 16 channels stand for its 768."""
    specs = FeatureSpec((16,), None, DEPTH)
    method = AfDCD(AfDCD.Config(pixel_weight=0.0), specs, specs)
    views = Views(plain=Features((torch.randn(1, 32 * 32, 16),), None, (32, 32)))
    assert all(term.isfinite() and term > 0 for term in method(views, views).values())


def test_widths_and_grids_that_do_not_divide_are_user_errors():
    spec = FeatureSpec((7,), None, DEPTH)
    with pytest.raises(UserError, match=r"afdcd.groups=16 does not divide the teacher's 7 channels: choose a divisor"):
        AfDCD(AfDCD.Config(), spec, spec)
    case = MethodCase("afdcd", pool=2, patch=4)
    message = r"afdcd.pool=2 x afdcd.patch=4 does not divide the grid of 4x8 tokens: .* product divides 4$"
    with pytest.raises(UserError, match=message):
        case.method(*case.views())
