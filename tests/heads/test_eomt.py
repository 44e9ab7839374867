import pytest
import torch

from fake_encoder import seeded
from segdistill.config import UserError
from segdistill.heads import EoMT

HIDDEN = slice(0, 2)  # columns of the 4 x 4 grid outside of every mask


def build(**settings):
    given = {"queries": 5, "heads": 2, "points": 16, "decoder_layers": 1, **settings}
    return seeded(lambda: EoMT(EoMT.Config(**given), (8,), (8,), 3))


def classes_after(head, features):
    return seeded(lambda: head.decode((features,)))[0][-1]


@pytest.mark.parametrize(("masked", "training", "blind"), [(1.0, True, True), (0.0, True, False), (1.0, False, False)])
def test_masked_attention_hides_the_patches_outside_the_mask(masked, training, blind, monkeypatch):
    head = build(masked=masked).train(training)
    right = torch.ones(2, 5, 8, 8)
    right[..., :4] = -1
    monkeypatch.setattr(head, "mask_logits", lambda _queries, _pixels: right)
    features = seeded(lambda: torch.randn(2, 8, 4, 4))
    elsewhere, inside = features.clone(), features.clone()
    elsewhere[..., HIDDEN] += 10 * torch.randn(2, 8, 4, 2)
    inside[..., 2:] += 10 * torch.randn(2, 8, 4, 2)
    before = classes_after(head, features)
    assert torch.equal(classes_after(head, elsewhere), before) is blind
    assert not torch.allclose(classes_after(head, inside), before)


def test_a_share_of_the_queries_is_masked_in_every_image_alike():
    head = build(queries=400, masked=0.25)
    visible = seeded(lambda: head.visible(-torch.ones(2, 400, 8, 8), (4, 4)))
    assert visible.shape == (2, 1, 416, 416)
    hidden = ~visible[:, 0, :400, 400:]
    assert torch.equal(hidden.any(2), hidden.all(2))
    assert torch.equal(hidden[0], hidden[1])
    assert 0.15 < hidden[0, :, 0].float().mean() < 0.35
    assert visible[..., :400].all()
    assert visible[..., 400:, :].all()


def test_training_predicts_around_every_block_and_evaluation_at_the_end():
    head, maps = build(decoder_layers=3), (torch.randn(2, 8, 4, 4),)
    assert [len(each) for each in head.decode(maps)] == [4, 4]
    assert [len(each) for each in head.eval().decode(maps)] == [1, 1]


@pytest.mark.parametrize(("stride", "cells"), [(4, 2), (8, 4), (14, 8), (16, 8), (32, 16)])
def test_masks_are_near_stride_4(stride, cells):
    head = EoMT(EoMT.Config(queries=2, heads=1), (8,), (stride,), 3).eval()
    assert head.decode((torch.randn(1, 8, 2, 2),))[1][-1].shape == (1, 2, cells, cells)


def test_attention_heads_that_do_not_divide_the_width_are_a_users_mistake():
    assert EoMT(EoMT.Config(), (384,), (14,), 3).blocks[0].attn.num_heads == 6
    with pytest.raises(UserError, match="has 8 channels, not a multiple of heads 3: choose heads"):
        build(heads=3)
