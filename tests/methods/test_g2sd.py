"""G2SD's two phases against a NumPy restatement, the official value, and what they must and must not see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from checks import CASES, DEPTH, MethodCase, golden, wave
from segdistill.config import UserError, parse
from segdistill.methods.g2sd import G2SD, positions
from segdistill.ops import resize_tokens
from segdistill.types import Features, FeatureSpec, Needs, Views


def numpy_normalise(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def numpy_gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


class NumpyDecoder:
    """Spec B.4: one image at a time, one head at a time, from the weights alone."""

    def __init__(self, decoder, heads):
        self.weights = {key: value.numpy() for key, value in decoder.state_dict().items()}
        self.depth, self.heads = len(decoder.blocks), heads

    def linear(self, name, x, joint="."):
        return x @ self.weights[f"{name}{joint}weight"].T + self.weights[f"{name}{joint}bias"]

    def norm(self, name, x):
        return numpy_normalise(x) * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, name, x):
        heads = []
        for part in np.split(np.stack(np.split(self.linear(f"{name}.in_proj", x, "_"), 3, -1)), self.heads, -1):
            query, key, value = part
            weights = np.exp(query @ key.T / math.sqrt(query.shape[-1]))
            heads.append(weights / weights.sum(-1, keepdims=True) @ value)
        return self.linear(f"{name}.out_proj", np.concatenate(heads, -1))

    def __call__(self, cls, tokens, hidden, places):
        rows = [self.linear("embed", cls)]
        for token, is_hidden, place in zip(tokens, hidden, places, strict=True):
            rows.append((self.weights["mask_token"][0, 0] if is_hidden else self.linear("embed", token)) + place)
        x = np.stack(rows)
        for block in (f"blocks.{index}" for index in range(self.depth)):
            x = x + self.attend(f"{block}.self_attn", self.norm(f"{block}.norm1", x))
            inner = numpy_gelu(self.linear(f"{block}.linear1", self.norm(f"{block}.norm2", x)))
            x = x + self.linear(f"{block}.linear2", inner)
        return self.linear("predict.2", numpy_gelu(self.linear("predict.0", x)))


def numpy_smooth_l1(error, beta):
    size = np.abs(error)
    return np.where(size < beta, size**2 / (2 * beta), size - beta / 2).mean()


@pytest.mark.parametrize("beta", [2.0, 0.5])
def test_the_generic_term_equals_numpy(beta):
    settings = {"decoder_width": 8, "decoder_depth": 2, "decoder_heads": 2, "beta": beta}
    case = MethodCase("g2sd", batch=3, generic_weight=0.7, **settings)
    with torch.no_grad():
        for index, parameter in enumerate(case.method.parameters()):  # biases and norms that are not 0 and 1
            parameter.add_(wave(tuple(parameter.shape), 0.9, index), alpha=0.1)
    student, teacher = case.views()
    decoder = NumpyDecoder(case.method.decoder, heads=2)
    target = np.concatenate([teacher.plain.cls.numpy()[:, None], teacher.plain.tokens[0].numpy()], 1)
    places = positions(case.grid, 8).numpy()
    errors = [
        decoder(cls, tokens, hidden, places) - numpy_normalise(goal)
        for cls, tokens, hidden, goal in zip(
            student.masked.cls.numpy(),
            student.masked.tokens[0].numpy(),
            student.mask.tokens.numpy(),
            target,
            strict=True,
        )
    ]
    expected = 0.7 * numpy_smooth_l1(np.stack(errors), beta)
    assert np.abs(errors).min() < 0.5 < np.abs(errors).max()  # the smaller beta meets both branches
    assert case.method(student, teacher)["generic"].item() == pytest.approx(expected, rel=1e-10)


def test_positions_are_sines_and_cosines_of_column_then_row():
    made = positions((2, 3), 8)
    for index, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        expected = [f(at / 10_000 ** (k / 2)) for at in (column, row) for f in (math.sin, math.cos) for k in (0, 1)]
        assert made[index].tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(positions((5, 3), 8)[:6], positions((2, 3), 8))  # a longer grid goes on where the shorter ends


def test_what_the_encoder_says_at_hidden_places_is_not_read():
    case = MethodCase("g2sd")
    student, teacher = case.views()
    tokens, hidden = student.masked.tokens[0], student.mask.tokens.unsqueeze(-1)

    def term(where, cls=student.masked.cls):
        changed = Features((torch.where(where, wave(tokens.shape, 1.7), tokens),), cls, case.grid)
        return case.method(Views(plain=student.plain, masked=changed, mask=student.mask), teacher)["generic"]

    before = case.method(student, teacher)["generic"]
    assert term(hidden) == before
    assert abs(term(~hidden) - before) > 1e-5
    assert abs(term(torch.zeros_like(hidden), wave((4, 5), 1.3)) - before) > 1e-5


def test_every_sample_is_masked_and_the_plain_view_is_not_asked_for():
    case = MethodCase("g2sd", batch=5)
    student, _ = case.views()
    assert student.plain.tokens == ()
    assert student.mask.samples.tolist() == list(range(5))
    assert student.mask.tokens.sum(1).tolist() == [4] * 5
    assert case.needs == Needs(taps=(-1,), plain=False, masked=True, logits=False)


def test_the_scale_of_the_teachers_tokens_does_not_matter():
    case = MethodCase("g2sd")
    student, teacher = case.views()
    moved = Features((3 * teacher.plain.tokens[0] + 1,), 5 * teacher.plain.cls - 2, case.grid)
    torch.testing.assert_close(
        case.method(student, Views(plain=moved))["generic"], case.method(student, teacher)["generic"], rtol=1e-5, atol=0
    )


def test_zero_where_the_decoder_predicts_the_normalised_teacher():
    case = MethodCase("g2sd")
    student, teacher = case.views()
    token = teacher.plain.cls[0]
    with torch.no_grad():
        case.method.decoder.predict[2].weight.zero_()
        case.method.decoder.predict[2].bias.copy_(F.layer_norm(token, (7,), eps=1e-6))
    same = Views(plain=Features((token.expand(4, 6, 7),), token.expand(4, 7), case.grid))  # one token everywhere
    assert case.method(student, same)["generic"].item() == pytest.approx(0, abs=1e-20)
    assert case.method(student, teacher)["generic"] > 0.01


def test_gradients_reach_the_cls_token_of_the_masked_view():
    case = MethodCase("g2sd")
    student, teacher = case.views()
    cls = student.masked.cls.clone().requires_grad_()
    masked = Features(student.masked.tokens, cls, case.grid)
    case.method(Views(plain=student.plain, masked=masked, mask=student.mask), teacher)["generic"].backward()
    assert cls.grad.abs().sum(1).min() > 0


def test_predictions_are_resampled_to_the_teachers_grid():
    case = MethodCase("g2sd")
    student, _ = case.views()
    grid = (4, 6)
    goal = Features((wave((4, 24, 7), 0.3),), wave((4, 7), 0.5), grid)
    predicted = case.method.decoder(student.masked.cls, student.masked.tokens[0], student.mask.tokens, case.grid)
    patches = resize_tokens(predicted[:, 1:], case.grid, grid)
    target = F.layer_norm(torch.cat([goal.cls[:, None], goal.tokens[0]], 1), (7,), eps=1e-6)
    expected = F.smooth_l1_loss(torch.cat([predicted[:, :1], patches], 1), target, beta=2.0)
    torch.testing.assert_close(case.method(student, Views(plain=goal))["generic"], expected, rtol=1e-12, atol=0)


def test_the_decoder_of_the_paper_has_its_size():
    method = G2SD(G2SD.Config(), FeatureSpec((384,), 384, 12), FeatureSpec((512,), 512, 24))
    block = 4 * 256 * 256 + 2 * 4 * 256 * 256 + (3 + 1 + 4 + 1 + 4) * 256
    ends = 384 * 256 + 256 + 256 + (256 * 512 + 512) + (512 * 512 + 512)
    assert sum(parameter.numel() for parameter in method.parameters()) == 4 * block + ends


def test_the_specific_term_equals_the_official_value():
    case = next(case for case in golden("kl")["channel"] if case["form"] == "cross_entropy")
    spec = FeatureSpec((), 4, DEPTH)
    method = G2SD(G2SD.Config(phase="specific"), spec, spec)
    empty = Features((), None, (2, 2))
    student = Views(plain=empty, logits=wave((2, 4, 4, 4), 0.3, 0.2))
    teacher = Views(plain=empty, logits=wave((2, 4, 4, 4), 0.7, 0.5))
    assert method(student, teacher)["specific"].item() == pytest.approx(case["loss"], rel=1e-12)
    assert (method.config.tau, method.config.specific_weight) == (case["tau"], case["weight"])
    assert not list(method.parameters())
    assert method.needs == Needs(taps=(), plain=True, masked=False, logits=True)


def test_networks_without_cls_are_refused_in_the_generic_phase_alone():
    none = FeatureSpec((4,), None, DEPTH)
    with pytest.raises(UserError, match="CLS token"):
        G2SD(G2SD.Config(**CASES["g2sd"][2]), none, FeatureSpec((6,), 6, DEPTH))
    assert G2SD(G2SD.Config(phase="specific"), none, none).decoder is None


@pytest.mark.parametrize("widths", [{"decoder_width": 10, "decoder_heads": 2}, {"decoder_width": 12}])
def test_widths_that_cannot_be_split_are_errors(widths):
    with pytest.raises(UserError, match="multiple of 4"):
        parse(G2SD.Config, widths, "method")
