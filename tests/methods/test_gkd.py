"""GKD against golden values of the authors' code, a NumPy restatement and its own naive form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from checks import DEPTH, MethodCase, fill, golden, wave
from segdistill.config import UserError
from segdistill.methods import qsd
from segdistill.methods.gkd import GKD
from segdistill.methods.qsd import QSDHead
from segdistill.ops import resize_tokens
from segdistill.types import Features, FeatureSpec, Mask, Views

GOLDEN = golden("gkd")
exactly = {"rel": 0, "abs": 1e-9}


def head(a: float = 0.37) -> QSDHead:
    module = QSDHead(4, 6).double()
    fill(module, a)
    return module


def numpy_qsd(module: QSDHead, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Spec A.3, one token at a time."""

    def project(sequence, x):
        norm, linear = ([p.detach().numpy() for p in part.parameters()] for part in sequence)
        y = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * norm[0] + norm[1]
        return linear[0] @ y + linear[1]

    out = np.empty_like(teacher)
    for b in range(len(student)):
        values = np.stack([project(module.proj_v, token) for token in student[b]])
        for i, token in enumerate(student[b]):
            logits = teacher[b] @ project(module.proj_q, token)
            weights = np.exp(logits - logits.max())
            out[b, i] = (weights / weights.sum()) @ values
    return out


def test_parameter_order_is_the_authors():
    names = [name for name, _ in QSDHead(4, 6).named_parameters()]
    assert names == [f"proj_{p}.{i}.{kind}" for p in "qv" for i in (0, 1) for kind in ("weight", "bias")]


def test_qsd_equals_the_golden_values():
    student, teacher = wave((2, 5, 4), 0.3, 0.2).requires_grad_(), wave((2, 5, 6), 0.7, 0.5)
    output, attention = head()(student, teacher), head().attention(student, teacher)[0]
    loss = F.mse_loss(output, teacher)
    loss.backward()
    expected = GOLDEN["qsd"]
    assert output[0, 0].tolist() == pytest.approx(expected["out00"], **exactly)
    assert output.sum().item() == pytest.approx(expected["sum"], **exactly)
    assert loss.item() == pytest.approx(expected["mse"], **exactly)
    assert student.grad.abs().sum().item() == pytest.approx(expected["gradient"], **exactly)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 5, dtype=torch.float64))


def test_qsd_equals_numpy():
    student, teacher = wave((3, 7, 4), 1.3, 0.1), wave((3, 7, 6), 0.9, 0.4)
    output = head(0.61)(student, teacher).detach().numpy()
    np.testing.assert_allclose(output, numpy_qsd(head(0.61), student.numpy(), teacher.numpy()), rtol=0, atol=1e-12)


def test_cls_head_is_its_value_projection():
    module, student, teacher = head(), wave((2, 1, 4), 0.3, 0.2), wave((2, 1, 6), 0.7, 0.5)
    output = module(student, teacher)
    loss = F.mse_loss(output, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(GOLDEN["cls"]["mse"], **exactly)
    assert torch.equal(output, module.proj_v(student))
    assert all(parameter.grad.abs().max() == 0 for parameter in module.proj_q.parameters())


def golden_method(**settings) -> GKD:
    method = GKD(GKD.Config(**settings), FeatureSpec((4,), 4, DEPTH), FeatureSpec((6,), 6, DEPTH)).double()
    for name, a in (("patch_head", 0.37), ("fea_head", 0.42), ("token_head", 0.47)):
        fill(getattr(method, name), a)
    return method


def golden_views() -> tuple[Views, Views]:
    plain = Features((wave((2, 5, 4), 0.3, 0.2),), wave((2, 4), 0.23, 0.4), (1, 5))
    masked = Features((wave((2, 5, 4), 0.41, 0.9),), None, (1, 5))
    mask = Mask(samples=torch.arange(2), tokens=torch.ones(2, 5, dtype=torch.bool))
    teacher = Features((wave((2, 5, 6), 0.7, 0.5),), wave((2, 6), 0.61, 0.3), (1, 5))
    return Views(plain=plain, masked=masked, mask=mask), Views(plain=teacher)


def test_full_loss_equals_the_golden_values():
    terms = golden_method()(*golden_views())
    for name, term in terms.items():
        assert term.item() == pytest.approx(GOLDEN["loss"][name], **exactly)
    assert sum(terms.values()).item() == pytest.approx(GOLDEN["loss"]["total"], **exactly)


def test_weights_scale_their_own_terms():
    plain = golden_method()(*golden_views())
    weighted = golden_method(token_weight=2.0, feature_weight=3.0, patch_weight=0.0)(*golden_views())
    assert weighted["token"].item() == pytest.approx(2 * plain["token"].item())
    assert weighted["feature"].item() == pytest.approx(3 * plain["feature"].item())
    assert weighted["patch"].item() == 0


@pytest.mark.parametrize("first", [True, False])
def test_masked_samples_alone_equal_two_full_views(first):
    """The authors run a second full view, in which the unmasked samples repeat their plain tokens."""
    case = MethodCase("gkd", batch=5, mask_first=first, mask_probability=0.6)
    student, teacher = case.views(grad=True)
    assert 0 < len(student.mask.samples) < case.batch

    def gradients(terms):
        leaves = [student.plain.tokens[0], student.plain.cls, student.masked.tokens[0], *case.method.parameters()]
        return torch.autograd.grad(sum(terms.values()), leaves)

    ours = case.method(student, teacher)
    tokens, target = student.plain.tokens[0], teacher.plain.tokens[0].detach()
    second = torch.stack([
        student.masked.tokens[0][student.mask.samples.tolist().index(i)] if i in student.mask.samples else tokens[i]
        for i in range(case.batch)
    ])  # fmt: skip
    cls_target = teacher.plain.cls.detach()[:, None]
    cls = case.method.token_head(student.plain.cls[:, None], cls_target)
    feature = torch.cat([cls, case.method.fea_head(tokens, target)], 1)
    naive = {
        "token": (cls - cls_target).square().mean(),
        "feature": (feature - torch.cat([cls_target, target], 1)).square().mean(),
        "patch": (case.method.patch_head(second, target) - target).square().mean(),
    }
    for name, term in naive.items():
        torch.testing.assert_close(ours[name], term, rtol=1e-12, atol=0)
    for mine, theirs in zip(gradients(ours), gradients(naive), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_without_masked_samples_the_patch_term_sees_the_plain_tokens():
    case = MethodCase("gkd", mask_probability=0.0)
    student, teacher = case.views()
    assert len(student.mask.samples) == 0
    bare = Views(plain=student.plain)
    assert case.method(bare, teacher)["patch"] == case.method(student, teacher)["patch"]
    none = MethodCase("gkd", masked_only=True)
    assert none.method(bare, teacher)["patch"] == 0


def test_masked_only_averages_over_hidden_tokens():
    case = MethodCase("gkd", masked_only=True)
    student, teacher = case.views()
    target = teacher.plain.tokens[0][student.mask.samples].numpy()
    output = numpy_qsd(case.method.patch_head, student.masked.tokens[0].numpy(), target)
    expected = ((output - target) ** 2)[student.mask.tokens.numpy()].mean()
    assert case.method(student, teacher)["patch"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("masked_only", [False, True])
def test_student_tokens_are_resampled_to_the_teachers_grid(masked_only):
    case = MethodCase("gkd", masked_only=masked_only)
    student, _ = case.views()
    grid = (4, 6)
    teacher = Views(plain=Features((wave((4, 24, 7), 0.3),), wave((4, 7), 0.5), grid))

    def resized(features):
        return Features((resize_tokens(features.tokens[0], features.grid, grid),), features.cls, grid)

    hidden = student.mask.tokens.reshape(-1, 2, 3).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    mask = Mask(samples=student.mask.samples, tokens=hidden)
    same_grid = Views(plain=resized(student.plain), masked=resized(student.masked), mask=mask)
    for ours, expected in zip(
        case.method(student, teacher).values(), case.method(same_grid, teacher).values(), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_own_position_bias_fades_to_the_published_loss():
    published = golden_method()(*golden_views())
    method = golden_method(own_position_bias=1e4, own_position_anneal=0.5)
    method(*golden_views())
    assert method.diagnostics["own_position_share"].item() == pytest.approx(1.0)
    method.set_progress(0.5)
    assert all(torch.equal(term, published[name]) for name, term in method(*golden_views()).items())


def test_diagnostics_describe_the_plain_head():
    method = golden_method()
    student, teacher = golden_views()
    method(student, teacher)
    attention, logits = method.fea_head.attention(student.plain.tokens[0][:1], teacher.plain.tokens[0][:1])
    share = np.mean([attention[0, i, i].item() for i in range(5)])
    assert method.diagnostics["own_position_share"].item() == pytest.approx(share)
    assert method.diagnostics["logit_std"].item() == pytest.approx(logits.detach().numpy().std())


def test_attention_keeps_fp32_where_half_precision_would_overflow():
    """Unscaled logits of 1e5 exceed float16; the softmax must still be finite and normalised."""
    module = QSDHead(4, 6)
    student, teacher = torch.randn(2, 5, 4), torch.full((2, 5, 6), 3e4)
    with torch.autocast("cpu", torch.float16):
        output, (attention, logits) = module(student, teacher), module.attention(student, teacher)
    assert logits.dtype == output.dtype == torch.float32
    assert output.isfinite().all()
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 5))


def test_networks_without_cls_are_refused():
    with pytest.raises(UserError, match="CLS token"):
        GKD(GKD.Config(), FeatureSpec((4,), None, DEPTH), FeatureSpec((6,), 6, DEPTH))


def test_attention_in_rows_equals_the_whole(monkeypatch):
    """Values and gradients, with the bias on a token's own position; no part has more logits than allowed."""
    student, teacher = wave((2, 7, 4), 0.3, 0.2).requires_grad_(), wave((2, 7, 6), 0.7, 0.5)
    module, seen = head(), []
    whole = module(student, teacher, 0.8)
    expected = torch.autograd.grad(whole.square().sum(), [student, *module.parameters()])
    monkeypatch.setattr(qsd, "WHOLE", 2 * 3 * 7)
    rows = qsd.whole
    monkeypatch.setattr(qsd, "whole", lambda query, *rest: seen.append(query.shape[1]) or rows(query, *rest))
    parts = module(student, teacher, 0.8)
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=0)
    found = torch.autograd.grad(parts.square().sum(), [student, *module.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    assert sorted(seen) == [1, 1, 3, 3, 3, 3]  # every part once more in backward


def test_fused_attention_in_bf16_stays_near_the_exact_one():
    """Unscaled logits as peaked as in training (std 8): the error is that of rounding queries, a few per cent."""
    draw = torch.Generator().manual_seed(0)
    teacher = torch.nn.functional.layer_norm(torch.randn(2, 64, 192, generator=draw), (192,))
    query = torch.randn(2, 64, 192, generator=draw) * 8 / 192**0.5
    values = torch.randn(2, 64, 192, generator=draw)
    rounded = query.bfloat16(), values.bfloat16()
    exact = qsd.whole(rounded[0].double(), teacher.double(), rounded[1].double())
    assert (query @ teacher.transpose(1, 2)).std().item() == pytest.approx(8, rel=0.1)
    output = qsd.fused(rounded[0], teacher, rounded[1])
    assert output.dtype == torch.bfloat16
    error = (output.double() - exact).norm() / exact.norm()
    half = (rounded[0] @ teacher.bfloat16().transpose(1, 2)).softmax(-1) @ rounded[1]  # logits stored in bf16
    assert error < min(0.01, (half.double() - exact).norm() / exact.norm())


def test_diagnostics_do_not_need_the_autocast_of_the_step():
    """Networks without a final norm give tokens in half precision; the log asks after the step."""
    case = MethodCase("gkd")
    student, teacher = case.views()
    method = case.method.float()
    half = Views(Features((student.plain.tokens[0].bfloat16(),), student.plain.cls.bfloat16(), student.plain.grid))
    own = Views(Features((teacher.plain.tokens[0].float(),), teacher.plain.cls.float(), teacher.plain.grid))
    with torch.autocast("cpu", torch.bfloat16):
        method(half, own)
    assert all(value.isfinite() for value in method.diagnostics.values())
