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


def test_wrong_number_of_taps_and_missing_cls_are_user_errors():
    one, two, none = FeatureSpec((5,), 5, DEPTH), FeatureSpec((5, 5), 5, DEPTH), FeatureSpec((5,), None, DEPTH)
    with pytest.raises(UserError, match="compares 1 taps: got 1 of the student and 2 of the teacher"):
        MSE(MSE.Config(), one, two)
    with pytest.raises(UserError, match="CLS token"):
        MSE(MSE.Config(cls_weight=1.0), one, none)
