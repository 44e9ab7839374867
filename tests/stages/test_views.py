"""One pass for all of a student's views says the same as one pass per view."""

from __future__ import annotations

import pytest
import torch

from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.heads import SemFPN
from segdistill.models import Segmenter
from segdistill.ops import generator, random_mask
from segdistill.stages.views import student_views, teacher_views
from segdistill.types import Features, Mask


@pytest.fixture(scope="module")
def encoder():
    encoder = build_encoder(EncoderConfig(name="world_student"), seed=0).double()
    with torch.no_grad():
        encoder.mask_token.add_(0.5)  # a fresh one is zero
    return encoder


@pytest.fixture(scope="module")
def images():
    return torch.rand(4, 3, 32, 64, generator=generator("views"), dtype=torch.float64)


@pytest.mark.parametrize("first", [True, False])
def test_one_pass_equals_two(encoder, images, first):
    mask = random_mask(4, 32, probability=0.5, ratio=0.5, rng=generator(3), first=first)
    views = student_views(encoder, images, (2, -1), mask)
    plain = encoder(images, (2, -1))
    everywhere = torch.zeros(4, 32, dtype=torch.bool).index_copy(0, mask.samples, mask.tokens)
    masked = encoder(images, (2, -1), everywhere)
    assert views.masked is not None
    assert views.mask is mask
    for tap in range(2):
        torch.testing.assert_close(views.plain.tokens[tap], plain.tokens[tap])
        torch.testing.assert_close(views.masked.tokens[tap], masked.tokens[tap][mask.samples])
    torch.testing.assert_close(views.plain.cls, plain.cls)
    torch.testing.assert_close(views.masked.cls, masked.cls[mask.samples])
    assert not torch.allclose(views.masked.tokens[1], plain.tokens[1][mask.samples])  # hiding hides something


def test_gradients_of_one_pass_equal_those_of_two(encoder, images):
    mask = random_mask(4, 32, probability=0.5, ratio=0.5, rng=generator(3))

    def gradients(plain, masked):
        encoder.zero_grad()
        (plain.square().mean() + masked.square().sum()).backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}

    views = student_views(encoder, images, (-1,), mask)
    assert views.masked is not None
    one = gradients(views.plain.tokens[0], views.masked.tokens[0])
    hidden = torch.zeros(4, 32, dtype=torch.bool).index_copy(0, mask.samples, mask.tokens)
    two = gradients(encoder(images, (-1,)).tokens[0], encoder(images, (-1,), hidden).tokens[0][mask.samples])
    assert one.keys() == two.keys()
    assert "mask_token" in one
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], msg=name)


@pytest.mark.parametrize("first", [True, False])
def test_without_the_plain_view_the_student_runs_on_the_masked_samples_alone(encoder, images, first):
    mask = random_mask(4, 32, probability=0.75, ratio=0.5, rng=generator(3), first=first)
    batches = []
    with encoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0]))):
        both = student_views(encoder, images, (2, -1), mask)
        alone = student_views(encoder, images, (2, -1), mask, plain=False)
    assert batches == [4 + 3, 3]
    assert alone.plain == Features(tokens=(), cls=None, grid=(4, 8))
    assert alone.mask is mask
    for mine, theirs in zip(alone.masked.tokens, both.masked.tokens, strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(alone.masked.cls, both.masked.cls)


def test_without_masked_samples_there_is_no_second_view(encoder, images):
    empty = Mask(samples=torch.zeros(0, dtype=torch.long), tokens=torch.zeros(0, 32, dtype=torch.bool))
    for mask in (None, empty):
        views = student_views(encoder, images, (-1,), mask)
        assert views.masked is None
        assert views.mask is None


def test_the_teacher_runs_without_gradients(encoder, images):
    views = teacher_views(encoder, images, (0, -1))
    assert not any(tokens.requires_grad for tokens in views.plain.tokens)
    assert len(views.plain.tokens) == 2


def test_one_pass_gives_the_teachers_taps_and_its_logits(encoder, images):
    taps = encoder.record.taps
    config = SemFPN.Config(width=8, dropout=0.0)
    head = SemFPN(config, encoder.spec(taps).channels, encoder.strides(taps), 5).double()
    segmenter, calls = Segmenter(encoder, head, taps, 5).eval(), []
    expected, plain = segmenter.scores(images), encoder(images, (2, -1))
    hook = encoder.register_forward_hook(lambda *_: calls.append(1))
    views = teacher_views(encoder, images, (2, -1), head)
    hook.remove()
    assert len(calls) == 1
    for one, other in zip(views.plain.tokens, plain.tokens, strict=True):
        torch.testing.assert_close(one, other)
    assert not views.logits.requires_grad
    torch.testing.assert_close(head.scores_of(views.logits, (32, 64)), expected)
