"""Divergences of score maps: against the official functions, NumPy, and the gradients that they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from checks import golden, wave
from segdistill.methods.kl import channel_cross_entropy, channel_kl, pixel_kl

GOLDEN = golden("kl")
CHANNEL = {"kl": channel_kl, "cross_entropy": channel_cross_entropy}
every = pytest.mark.parametrize("loss", [pixel_kl, channel_kl, channel_cross_entropy])


def golden_maps():
    return wave((2, 4, 4, 4), 0.3, 0.2), wave((2, 4, 4, 4), 0.7, 0.5)


def numpy_kl(student, teacher, tau, axis):
    """KL over ``axis``, times tau squared, mean over the rest."""
    ours, target = (np.exp(x / tau) / np.exp(x / tau).sum(axis, keepdims=True) for x in (student, teacher))
    return tau**2 * (target * np.log(target / ours)).sum(axis).mean()


@pytest.mark.parametrize("case", GOLDEN["channel"], ids=lambda case: f"{case['form']}-{case['tau']}")
def test_channel_losses_equal_the_golden_values(case):
    loss = case["weight"] * CHANNEL[case["form"]](*golden_maps(), case["tau"])
    assert loss.item() == pytest.approx(case["loss"], rel=1e-12)


def test_the_pixel_loss_equals_the_golden_value():
    assert pixel_kl(*golden_maps()).item() == pytest.approx(GOLDEN["pixel"], rel=1e-12)


@pytest.mark.parametrize("tau", [0.5, 3.0])
def test_both_equal_numpy_on_maps_that_are_not_square(tau):
    student, teacher = wave((3, 5, 2, 7), 1.3, 0.1), wave((3, 5, 2, 7), 0.9, 0.4)
    ours, theirs = student.numpy(), teacher.numpy()
    assert pixel_kl(student, teacher, tau).item() == pytest.approx(numpy_kl(ours, theirs, tau, 1), rel=1e-12)
    flat = (x.reshape(3, 5, 14) for x in (ours, theirs))
    assert channel_kl(student, teacher, tau).item() == pytest.approx(numpy_kl(*flat, tau, 2), rel=1e-12)


def test_cross_entropy_has_the_gradient_of_the_divergence():
    student, teacher = golden_maps()
    student.requires_grad_()
    one, two = (torch.autograd.grad(loss(student, teacher, 2.0), student)[0] for loss in CHANNEL.values())
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-16)
    assert one.abs().max() > 0


def test_divergences_are_zero_for_equal_maps_and_blind_to_what_their_softmax_removes():
    student, _ = golden_maps()
    per_pixel, per_channel = student + wave((2, 1, 4, 4), 0.9), student + wave((2, 4, 1, 1), 0.9)
    assert pixel_kl(student, per_pixel).item() == pytest.approx(0, abs=1e-15)
    assert channel_kl(student, per_channel).item() == pytest.approx(0, abs=1e-15)
    assert pixel_kl(student, per_channel) > 0.01
    assert channel_kl(student, per_pixel) > 0.01


@every
def test_the_teacher_is_a_constant(loss):
    student, teacher = (maps.requires_grad_() for maps in golden_maps())
    loss(student, teacher).backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@every
def test_half_precision_maps_are_compared_in_float32(loss):
    exact, (student, teacher) = loss(*golden_maps()), (maps.half() for maps in golden_maps())
    rough = loss(student, teacher)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=2e-3)
    assert loss(1e4 * student, 1e4 * teacher, 0.1).isfinite()  # beyond float16 once divided by tau
