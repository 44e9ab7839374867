"""Enlarging scores by bands: the values of the whole, and memory that does not grow with it."""

import pytest
import torch
import torch.nn.functional as F

from fake_encoder import Largest
from segdistill.models import bands
from segdistill.models.bands import decide, enlarge


def scores_of(size, images=2, classes=3):
    return 3 * torch.randn(images, classes, *size, generator=torch.Generator().manual_seed(size[0]))


def whole(strips, shape):
    """The strips put together; every row must come exactly once."""
    result = torch.full(shape, torch.nan)
    for image, top, scores in strips:
        place = result[image, :, top : top + scores.shape[1]]
        assert place.isnan().all()
        place.copy_(scores)
    assert not result.isnan().any()
    return result


SIZES = [
    ((16, 32), (32, 64)), ((37, 50), (113, 91)), ((54, 96), (108, 192)), ((30, 40), (11, 25)), ((24, 32), (24, 32)),
    ((48, 64), (48, 100)), ((20, 30), (33, 30)), ((1, 1), (7, 5)), ((9, 7), (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_the_rows_are_those_of_the_whole_image_however_they_are_cut(monkeypatch, source, target):
    scores, shape = scores_of(source), (2, 3, *target)
    at_once = whole(enlarge([scores], source, target), shape)
    torch.testing.assert_close(at_once, F.interpolate(scores, size=target, mode="bilinear"), rtol=0, atol=5e-5)
    for band, cuts in ((1, (1,) * source[0]), (3 * target[1] * 5, (source[0],)), (2**22, (source[0] // 2,) * 3)):
        monkeypatch.setattr(bands, "BAND", band)
        pieces = [piece for piece in scores.split(cuts[0], dim=2) if piece.shape[2]] if cuts[0] else [scores]
        assert torch.equal(whole(enlarge(iter(pieces), source, target), shape), at_once)


def test_half_precision_scores_are_enlarged_in_float32():
    scores = scores_of((8, 8)).bfloat16()
    result = whole(enlarge([scores], (8, 8), (20, 20)), (2, 3, 20, 20))
    torch.testing.assert_close(result, F.interpolate(scores.float(), size=(20, 20), mode="bilinear"))


def test_no_array_is_larger_than_a_band(monkeypatch):
    monkeypatch.setattr(bands, "BAND", 19 * 200 * 7)
    scores = scores_of((50, 100), images=1, classes=19)
    with Largest() as largest:
        for _, _, rows in enlarge([scores], (50, 100), (100, 200)):
            decide(rows, logits=True)
    assert 19 * 200 * 6 <= largest.values <= 19 * 200 * 7


def test_the_confidence_is_the_softmax_of_logits_and_the_share_of_other_scores():
    scores = scores_of((5, 6), images=1)[0]
    classes, confidence = decide(scores, logits=True)
    assert torch.equal(classes, scores.argmax(0))
    torch.testing.assert_close(confidence, scores.softmax(0).amax(0))
    shares = scores.abs()
    classes, confidence = decide(shares, logits=False)
    assert torch.equal(classes, shares.argmax(0))
    torch.testing.assert_close(confidence, (shares / shares.sum(0)).amax(0))
    assert decide(torch.zeros(3, 1, 1), logits=False)[1].item() == 0
