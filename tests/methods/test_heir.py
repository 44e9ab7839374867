"""Heir: its two terms are those of the methods that it is made of."""

from __future__ import annotations

import pytest
import torch

from checks import DEPTH, MethodCase
from segdistill.methods.heir import Heir
from segdistill.methods.logit_kd import LogitKD
from segdistill.methods.mse import MSE
from segdistill.types import FeatureSpec, Views


def test_its_terms_are_relative_mse_and_logit_kd():
    case = MethodCase("heir", feature_weight=2.0, class_weight=3.0, tau=2.0)
    student, teacher = case.views()
    terms = case.method(student, teacher)
    mse = MSE(MSE.Config(weight=2.0, relative=True), *(FeatureSpec((width,), width, DEPTH) for width in case.widths))
    mse.to(torch.float64).load_state_dict(case.method.features.state_dict())
    bare = FeatureSpec((), None, DEPTH)
    kd = LogitKD(LogitKD.Config(weight=3.0, tau=2.0), bare, bare)
    expected = mse(student, teacher) | kd(student, teacher)
    assert terms.keys() == expected.keys() == {"feature", "pixel"}
    for name, value in terms.items():
        torch.testing.assert_close(value, expected[name])


def test_a_student_that_knows_the_mean_alone_has_a_feature_term_of_one_and_a_copy_of_the_answers_no_pixel_term():
    case = MethodCase("heir")
    student, teacher = case.views()
    with torch.no_grad():
        adapter = case.method.features.adapters[0]
        adapter[1].weight.zero_()
        adapter[1].bias.copy_(teacher.plain.tokens[0].mean(dim=(0, 1)))
    terms = case.method(student, teacher)
    assert terms["feature"].item() == pytest.approx(1.0, rel=1e-6)
    same = Views(plain=student.plain, logits=teacher.logits)
    assert case.method(same, teacher)["pixel"] == 0


def test_blocks_of_both_networks_come_in_pairs():
    for method in (Heir, MSE):
        with pytest.raises(ValueError, match="compares pairs of blocks: got 2 taps and 1 teacher_taps"):
            method.Config(taps=(2, -1), teacher_taps=(1,))
    assert Heir.needs_for(Heir.Config(taps=(-1,), teacher_taps=(3,))).of_teacher == (3,)
