"""Proteus against a NumPy restatement, GKD's masked-only form, and what its terms must not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from checks import DEPTH, MethodCase, wave
from segdistill.config import UserError
from segdistill.methods.gkd import GKD
from segdistill.methods.proteus import Proteus
from segdistill.types import Features, FeatureSpec, Mask, Views


def numpy_head(head, x):
    norm, linear = ([p.detach().numpy() for p in part.parameters()] for part in head)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm[0] + norm[1]
    return y @ linear[0].T + linear[1]


def numpy_proteus(method, student, teacher):
    """Spec B.6; the patch term gathers its tokens one by one."""
    cls, plain = student.plain.cls.numpy(), student.plain.tokens[0].numpy()
    cls_t, tokens_t = teacher.plain.cls.numpy(), teacher.plain.tokens[0].numpy()
    token = (numpy_head(method.token_head, cls) - cls_t) ** 2
    errors = [*token, *((numpy_head(method.fea_head, plain) - tokens_t) ** 2).reshape(-1, tokens_t.shape[-1])]
    patch = [
        (numpy_head(method.patch_head, student.masked.tokens[0][row, place].numpy()) - tokens_t[sample, place]) ** 2
        for row, sample in enumerate(student.mask.samples.tolist())
        for place in range(tokens_t.shape[1])
        if student.mask.tokens[row, place]
    ]
    return {"token": token.mean(), "feature": np.mean(errors), "patch": np.mean(patch)}


@pytest.mark.parametrize("first", [True, False])
def test_equals_numpy(first):
    case = MethodCase("proteus", batch=5, mask_first=first, mask_probability=0.6, mask_ratio=0.34)
    student, teacher = case.views()
    assert student.mask.tokens.sum(1).tolist() == [2, 2, 2]
    expected = numpy_proteus(case.method, student, teacher)
    terms = case.method(student, teacher)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert term.item() == pytest.approx(expected[name], rel=1e-12), name


def test_weights_scale_their_own_terms():
    plain = MethodCase("proteus").outcome()
    weighted = MethodCase("proteus", token_weight=2.0, feature_weight=3.0, patch_weight=0.0).outcome()
    assert weighted["token"] == pytest.approx(2 * plain["token"])
    assert weighted["feature"] == pytest.approx(3 * plain["feature"])
    assert weighted["patch"] == 0


def test_masks_are_those_of_gkd():
    spec = FeatureSpec((4,), 4, DEPTH)
    ours, theirs = Proteus(Proteus.Config(), spec, spec), GKD(GKD.Config(), spec, spec)
    assert ours.mask_settings() == theirs.mask_settings()


def test_visible_tokens_of_masked_samples_do_not_count():
    case = MethodCase("proteus")
    student, teacher = case.views()
    tokens, hidden = student.masked.tokens[0], student.mask.tokens.unsqueeze(-1)

    def patch(where):
        changed = Features((torch.where(where, wave(tokens.shape, 1.7), tokens),), student.masked.cls, case.grid)
        return case.method(Views(plain=student.plain, masked=changed, mask=student.mask), teacher)["patch"]

    before = case.method(student, teacher)["patch"]
    assert patch(~hidden) == before
    assert abs(patch(hidden) - before) > 1e-3


def test_zero_where_the_heads_already_give_the_teacher():
    case = MethodCase("proteus")
    student, _ = case.views()
    with torch.no_grad():
        case.method.patch_head.load_state_dict(case.method.fea_head.state_dict())
        tokens, cls = case.method.fea_head(student.plain.tokens[0]), case.method.token_head(student.plain.cls)
    seen = Features((student.plain.tokens[0][student.mask.samples],), None, case.grid)
    same = Views(plain=student.plain, masked=seen, mask=student.mask)
    assert all(term == 0 for term in case.method(same, Views(plain=Features((tokens,), cls, case.grid))).values())


def test_without_masked_samples_the_patch_term_is_zero_and_every_parameter_has_a_gradient():
    case = MethodCase("proteus", mask_probability=0.0)
    student, teacher = case.views()
    terms = case.method(Views(plain=student.plain), teacher)
    assert terms["patch"] == 0
    assert terms["feature"] > 0
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in case.method.parameters())


def test_student_tokens_are_resampled_to_the_teachers_grid():
    """A grid of equal columns says the same as the coarse one, and its hidden tokens are those of the coarse cells."""
    case = MethodCase("proteus", grid=(2, 1))
    student, teacher = case.views()

    def wider(features):
        return Features((features.tokens[0].repeat_interleave(3, dim=1),), features.cls, (2, 3))

    mask = Mask(samples=student.mask.samples, tokens=student.mask.tokens.repeat_interleave(3, dim=1))
    same_grid = Views(plain=wider(student.plain), masked=wider(student.masked), mask=mask)
    target = Views(plain=wider(teacher.plain))
    expected = case.method(same_grid, target)
    for name, term in case.method(student, target).items():
        torch.testing.assert_close(term, expected[name], rtol=1e-12, atol=0)


def test_networks_without_cls_are_refused():
    with pytest.raises(UserError, match="CLS token"):
        Proteus(Proteus.Config(), FeatureSpec((4,), 4, DEPTH), FeatureSpec((6,), None, DEPTH))
