"""ViTKD against the golden values of the authors' code and a NumPy restatement."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from checks import DEPTH, MethodCase, golden, wave
from segdistill.methods.vitkd import ViTKD, hide
from segdistill.ops import resize_tokens
from segdistill.types import Features, FeatureSpec, Views

GOLDEN = golden("vitkd")
exactly = {"rel": 1e-12, "abs": 0}


def golden_method() -> ViTKD:
    method = ViTKD(ViTKD.Config(), FeatureSpec((4,) * 3, 4, DEPTH), FeatureSpec((6,) * 3, 6, DEPTH)).double()
    with torch.no_grad():
        for index, parameter in enumerate(method.parameters()):
            parameter.copy_(0.3 * wave(tuple(parameter.shape), 0.37, 0.1 * index))
    return method


def golden_views() -> tuple[Views, Views]:
    """The authors' shallow tokens are (B, 2, N, C)."""
    student = (*wave((2, 2, 9, 4), 0.3).unbind(1), wave((2, 9, 4), 0.41, 0.2))
    teacher = (*wave((2, 2, 9, 6), 0.7).unbind(1), wave((2, 9, 6), 0.53, 0.1))
    return Views(plain=Features(student, None, (3, 3))), Views(plain=Features(teacher, None, (3, 3)))


def numpy_conv(conv, x):
    """A padded 3x3 convolution of one (C, h, w) map, pixel by pixel."""
    weight, bias = (parameter.detach().numpy() for parameter in conv.parameters())
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.empty((len(weight), *x.shape[1:]))
    for i, j in np.ndindex(x.shape[1:]):
        out[:, i, j] = (weight * padded[:, i : i + 3, j : j + 3]).sum((1, 2, 3)) + bias
    return out


def numpy_linear(linear, x):
    return x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()


def numpy_vitkd(method, student, teacher, noise, grid):
    """Spec B.5, one sample at a time, with the authors' dropping and putting back instead of a mask."""
    config, batch = method.config, len(noise)
    mimic = generate = 0.0
    for b in range(batch):
        for layer, projection in enumerate(method.mimics):
            mimic += ((numpy_linear(projection, student[layer][b]) - teacher[layer][b]) ** 2).sum()
        aligned, shuffle = numpy_linear(method.align, student[2][b]), noise[b].argsort()
        kept = int(len(shuffle) * (1 - config.drop))
        filled = np.repeat(method.mask_token.detach().numpy()[0], len(shuffle), axis=0)
        filled[shuffle[:kept]] = aligned[shuffle[:kept]]
        hidden_map = np.maximum(numpy_conv(method.generator[0], filled.T.reshape(-1, *grid)), 0)
        output = numpy_conv(method.generator[2], hidden_map).reshape(filled.shape[1], -1).T
        generate += ((output - teacher[2][b])[shuffle[kept:]] ** 2).sum()
    return {
        "mimic": config.mimic_weight * mimic / batch,
        "generate": config.generate_weight / config.drop * generate / batch,
    }


def test_terms_equal_the_golden_values():
    terms = golden_method()(*golden_views(), wave((2, 9), 1.3, 0.7))
    assert terms["mimic"].item() == pytest.approx(GOLDEN["mimic"], **exactly)
    assert sum(terms.values()).item() == pytest.approx(GOLDEN["total"], **exactly)


@pytest.mark.parametrize("drop", [0.5, 0.3, 1.0])
def test_equals_numpy_on_a_grid_that_is_not_square(drop):
    case = MethodCase("vitkd", drop=drop, mimic_weight=0.7, generate_weight=0.3)
    student, teacher = case.views()
    noise = torch.rand(case.batch, 6, dtype=torch.float64)
    with torch.no_grad():
        case.method.mask_token.copy_(wave((1, 1, 7), 0.9))
    arrays = ([tokens.numpy() for tokens in views.plain.tokens] for views in (student, teacher))
    expected = numpy_vitkd(case.method, *arrays, noise.numpy(), case.grid)
    terms = case.method(student, teacher, noise)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("drop", "hidden"), [(0.5, 5), (0.3, 3), (1.0, 9)])
def test_the_tokens_with_the_largest_noise_are_hidden(drop, hidden):
    noise = torch.tensor([[3, 1, 4, 0, 5, 8, 2, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7, 8]]) / 9
    assert torch.equal(hide(noise, drop), noise >= (9 - hidden) / 9)


def test_hidden_tokens_of_the_student_do_not_matter_and_visible_ones_of_the_teacher_neither():
    case = MethodCase("vitkd")
    student, teacher = case.views(grad=True)
    deep, target = student.plain.tokens[2], teacher.plain.tokens[2]
    noise = torch.rand(case.batch, 6)
    hidden = hide(noise, 0.5)
    term = case.method(student, teacher, noise)["generate"]
    term.backward()
    assert torch.equal(deep.grad.abs().sum(-1) > 0, ~hidden)
    moved = torch.where(hidden.unsqueeze(-1), target, target + 1.0)
    other = Views(plain=Features((*teacher.plain.tokens[:2], moved), None, case.grid))
    assert torch.equal(case.method(student, other, noise)["generate"], term)


def test_hidden_tokens_are_drawn_from_torchs_generator_anew_at_each_call():
    case = MethodCase("vitkd")
    views = case.views()

    def drawn(seed: int) -> list[float]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [case.method(*views)["generate"].item() for _ in range(2)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1)[0] != drawn(1)[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        noise = torch.rand(case.batch, 6)
    assert case.method(*views, noise)["generate"].item() == drawn(1)[0]


def test_networks_of_equal_width_have_no_projections_and_mimic_nothing_where_they_agree():
    specs = FeatureSpec((6,) * 3, 6, DEPTH)
    method = ViTKD(ViTKD.Config(), specs, specs).double()
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"mask_token", "generator"}
    _, teacher = golden_views()
    terms = method(teacher, teacher)
    assert terms["mimic"].item() == 0
    assert terms["generate"].item() > 0


def test_tokens_of_another_grid_are_resampled_to_the_teachers():
    case = MethodCase("vitkd")
    student, _ = case.views()
    grid, noise = (4, 6), torch.rand(case.batch, 24)
    teacher = Views(plain=Features(tuple(wave((4, 24, 7), 0.3, tap) for tap in range(3)), None, grid))
    same = Features(tuple(resize_tokens(tokens, case.grid, grid) for tokens in student.plain.tokens), None, grid)
    expected = case.method(Views(plain=same), teacher, noise)
    for name, term in case.method(student, teacher, noise).items():
        torch.testing.assert_close(term, expected[name], rtol=1e-12, atol=0)
