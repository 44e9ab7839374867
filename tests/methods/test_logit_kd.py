"""Logit KD: the golden value, and what Hinton's factor is for."""

from __future__ import annotations

import pytest
import torch

from checks import DEPTH, MethodCase, golden, wave
from segdistill.methods.logit_kd import LogitKD
from segdistill.types import Features, FeatureSpec, Views

SPEC = FeatureSpec((), None, DEPTH)


def views(logits):
    return Views(plain=Features((), None, (2, 2)), logits=logits)


def test_it_equals_the_golden_value_times_its_weight():
    method = LogitKD(LogitKD.Config(weight=3.0), SPEC, SPEC)
    loss = method(views(wave((2, 4, 4, 4), 0.3, 0.2)), views(wave((2, 4, 4, 4), 0.7, 0.5)))["pixel"]
    assert loss.item() == pytest.approx(3 * golden("kl")["pixel"], rel=1e-12)


def test_it_is_zero_for_equal_logits_and_learns_nothing_beside_the_student():
    case = MethodCase("logit_kd")
    student, _ = case.views()
    assert case.method(student, student)["pixel"] == 0
    assert not list(case.method.parameters())


def test_at_a_high_temperature_it_matches_logits():
    """Hinton et al., section 2.1: the gradient tends to the difference of the centred logits over K, per pixel."""
    student, teacher = wave((1, 4, 2, 3), 0.3, 0.2).requires_grad_(), wave((1, 4, 2, 3), 0.7, 0.5)
    method = LogitKD(LogitKD.Config(tau=1e4), SPEC, SPEC)
    method(views(student), views(teacher))["pixel"].backward()
    ours, target = (logits - logits.mean(1, keepdim=True) for logits in (student.detach(), teacher))
    torch.testing.assert_close(student.grad, (ours - target) / 4 / 6, rtol=1e-3, atol=1e-5)
