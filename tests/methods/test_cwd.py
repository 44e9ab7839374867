"""Channel-wise distillation: a softmax over the pixels of every channel."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from checks import DEPTH, MethodCase, golden, wave
from segdistill.methods.cwd import CWD
from segdistill.ops import resize_tokens
from segdistill.types import Features, FeatureSpec, Needs, Views

SPEC = FeatureSpec((4,), None, DEPTH)


def with_logits(logits):
    return Views(plain=Features((), None, (2, 2)), logits=logits)


@pytest.mark.parametrize("case", golden("kl")["channel"], ids=lambda case: f"{case['form']}-{case['tau']}")
def test_both_forms_equal_the_golden_values_on_logits_and_on_features(case):
    settings = {key: case[key] for key in ("form", "tau", "weight")}
    maps = wave((2, 4, 4, 4), 0.3, 0.2), wave((2, 4, 4, 4), 0.7, 0.5)
    logits = CWD(CWD.Config(maps="logits", **settings), SPEC, SPEC)
    assert logits(*map(with_logits, maps))["channel"].item() == pytest.approx(case["loss"], rel=1e-12)
    features = CWD(CWD.Config(**settings), SPEC, SPEC).double()
    torch.nn.init.dirac_(features.adapter.weight)  # the identity
    views = (Views(plain=Features((m.flatten(2).transpose(1, 2),), None, (4, 4))) for m in maps)
    assert features(*views)["channel"].item() == pytest.approx(case["loss"], rel=1e-12)


def test_the_form_decides_what_is_asked_for():
    assert MethodCase("cwd").method.needs == Needs()
    assert MethodCase("cwd", maps="logits").method.needs == Needs(taps=(), logits=True)
    assert not list(MethodCase("cwd", maps="logits").method.parameters())


def test_the_feature_form_is_zero_where_the_adapter_already_gives_the_teacher():
    case = MethodCase("cwd")
    student, _ = case.views()
    tokens = student.plain.tokens[0] @ case.method.adapter.weight[:, :, 0, 0].T
    teacher = Views(plain=Features((tokens,), None, case.grid))
    assert case.method(student, teacher)["channel"].item() == pytest.approx(0, abs=1e-15)


def test_student_tokens_are_resampled_to_the_teachers_grid():
    case = MethodCase("cwd")
    student, _ = case.views()
    teacher = Views(plain=Features((wave((4, 24, 7), 0.3),), None, (4, 6)))
    resized = Features((resize_tokens(student.plain.tokens[0], case.grid, (4, 6)),), None, (4, 6))
    torch.testing.assert_close(case.method(student, teacher), case.method(replace(student, plain=resized), teacher))
