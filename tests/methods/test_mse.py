"""Vanilla KD: an adapter and a mean squared error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from checks import DEPTH, MethodCase
from segdistill.config import UserError
from segdistill.methods.mse import MSE
from segdistill.types import Features, FeatureSpec, Views


def numpy_adapter(adapter, x):
    norm, linear = adapter
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    x = x * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    return x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()


def test_equals_numpy_and_averages_taps():
    case = MethodCase("mse", taps=(1, -1), weight=0.7, cls_weight=0.3)
    student, teacher = case.views()
    terms = case.method(student, teacher)
    errors = [
        ((numpy_adapter(adapter, s.numpy()) - t.numpy()) ** 2).mean()
        for adapter, s, t in zip(case.method.adapters, student.plain.tokens, teacher.plain.tokens, strict=True)
    ]
    cls_error = (
        (numpy_adapter(case.method.cls_adapter, student.plain.cls.numpy()) - teacher.plain.cls.numpy()) ** 2
    ).mean()
    assert terms["feature"].item() == pytest.approx(0.7 * np.mean(errors), rel=1e-12)
    assert terms["token"].item() == pytest.approx(0.3 * cls_error, rel=1e-12)


def test_zero_where_the_adapter_already_gives_the_teacher():
    case = MethodCase("mse")
    student, _ = case.views()
    target = case.method.adapters[0](student.plain.tokens[0])
    teacher = Views(plain=Features((target,), student.plain.cls, case.grid))
    assert case.method(student, teacher)["feature"].item() == 0


def test_tokens_of_another_grid_are_resampled_to_the_teachers():
    case = MethodCase("mse")
    student, _ = case.views()
    teacher = Views(plain=Features((torch.randn(4, 4 * 6, 7, dtype=torch.float64),), None, (4, 6)))
    loss = case.method(student, teacher)["feature"]
    assert loss.isfinite()


def test_needs_follow_the_taps():
    case = MethodCase("mse", taps=(1, 3))
    assert case.method.needs.taps == (1, 3)
    assert set(case.method(*case.views())) == {"feature"}


def test_a_missing_cls_token_is_a_user_error():
    one, none = FeatureSpec((5,), 5, DEPTH), FeatureSpec((5,), None, DEPTH)
    with pytest.raises(UserError, match="CLS token"):
        MSE(MSE.Config(cls_weight=1.0), one, none)


def test_the_relative_error_is_one_minus_the_coefficient_of_determination():
    case = MethodCase("mse", relative=True, weight=0.5)
    student, teacher = case.views()
    target = teacher.plain.tokens[0].numpy().reshape(-1, teacher.plain.tokens[0].shape[-1])
    found = numpy_adapter(case.method.adapters[0], student.plain.tokens[0].numpy()).reshape(target.shape)
    residual, total = ((found - target) ** 2).sum(0), ((target - target.mean(0)) ** 2).sum(0)
    assert case.method(student, teacher)["feature"].item() == pytest.approx(0.5 * (residual / total).mean(), rel=1e-12)


def test_the_relative_error_ignores_the_scale_of_a_channel():
    case = MethodCase("mse", relative=True)
    student, teacher = case.views()
    scale = torch.logspace(-1, 3, teacher.plain.tokens[0].shape[-1], dtype=torch.float64)
    before = case.method(student, teacher)["feature"].item()
    linear = case.method.adapters[0][1]
    with torch.no_grad():
        linear.weight.mul_(scale[:, None])
        linear.bias.mul_(scale)
    scaled = Views(plain=Features((teacher.plain.tokens[0] * scale,), teacher.plain.cls, case.grid))
    assert case.method(student, scaled)["feature"].item() == pytest.approx(before, rel=1e-9)


def test_a_constant_channel_does_no_harm():
    case = MethodCase("mse", relative=True)
    student, teacher = case.views()
    constant = Views(plain=Features((torch.ones_like(teacher.plain.tokens[0]),), teacher.plain.cls, case.grid))
    assert case.method(student, constant)["feature"].isfinite()
