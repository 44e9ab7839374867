"""A head that inherits its teacher's: equal predictions where the student's maps say as much, one line where not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from segdistill.config import UserError
from segdistill.heads import HEADS
from segdistill.models import Segmenter, check_heads, inherit_head
from segdistill.types import Features

CLASSES, GRID = 5, (6, 8)
SETTINGS = {
    "semfpn": {"width": 16},
    "masked_dpt": {"width": 64, "queries": 6, "decoder_layers": 1, "decoder_feedforward": 64, "points": 16,
                   "neck_channels": (8, 8, 16, 16)},
}  # fmt: skip


class Maps(nn.Module):
    """An encoder whose four maps (B, C, 6, 8) are ``weights`` times those of a shared base, plus ``offset``."""

    def __init__(self, weights, offset=0.0):
        super().__init__()
        self.weights, self.offset = weights, offset

    def forward(self, images, taps):
        generator = torch.Generator().manual_seed(int(images.sum().item()))
        base = torch.randn(4, len(images), 48, 10, generator=generator)
        tokens = tuple(each @ self.weights.T + self.offset for each in base)
        return Features(tokens=tokens, cls=None, grid=GRID, grids=(GRID,) * len(taps))


def network(kind, encoder, channels, **settings):
    torch.manual_seed(3)
    head = HEADS[kind](HEADS[kind].Config(**SETTINGS[kind] | settings), (channels,) * 4, (16,) * 4, CLASSES)
    return Segmenter(encoder, head, (0, 1, 2, 3), CLASSES).eval()


def pair(kind, *, rank=10, offset=0.0):
    """Teacher maps of 12 channels and student maps of 10, both linear in the same 10, of which the student keeps
    ``rank``.
    """
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(12, 10, generator=generator)
    narrow = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0][:, :rank] @ torch.eye(10)[:rank]
    teacher = network(kind, Maps(wide, offset), 12)
    for part in teacher.head.parameters():  # not the weights that a student of the same seed has
        part.data += 0.1 * torch.randn(part.shape, generator=generator)
    return network(kind, Maps(narrow), 10), teacher


IMAGES = [torch.full((2, 3, 96, 128), value) for value in (0.1, 0.2, 0.3)]


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_student_that_keeps_everything_predicts_what_its_teacher_does(kind):
    student, teacher = pair(kind)
    before = student.decode(student.features(IMAGES[0]))
    left = inherit_head(student, teacher, IMAGES)
    assert len(left) == 4
    assert max(left) < 1e-6
    unseen = torch.full((1, 3, 96, 128), 0.9)
    ours, theirs = (each.head.scores(maps_of(each, unseen), (96, 128)) for each in (student, teacher))
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
    assert repr(before) != repr(student.decode(student.features(IMAGES[0])))


def maps_of(model, images):
    features = model.features(images)
    return tuple(each.transpose(1, 2).unflatten(2, GRID) for each in features.tokens)


@pytest.mark.parametrize("rank", [2, 6])
def test_what_is_left_is_the_share_of_the_variance(rank):
    student, teacher = pair("masked_dpt", rank=rank, offset=1.5)
    left = inherit_head(student, teacher, IMAGES)
    maps = [(maps_of(student, batch), maps_of(teacher, batch)) for batch in IMAGES]
    for level, share in enumerate(left):
        with torch.no_grad():
            ours = torch.cat([student.head.readers()[level](one[level]) for one, _ in maps])
            theirs = torch.cat([teacher.head.readers()[level](other[level]) for _, other in maps])
        error, mean = (ours - theirs).square().sum(), theirs.mean((0, 2, 3), keepdim=True)
        assert share == pytest.approx((error / (theirs - mean).square().sum()).item(), rel=1e-3)
        assert 0.05 < share < 0.98
    assert max(inherit_head(*pair("masked_dpt", rank=rank), IMAGES)) > max(inherit_head(*pair("masked_dpt"), IMAGES))


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (("semfpn", {}), ("masked_dpt", {}), "the student's is SemFPN and the teacher's MaskedDPT"),
        (("semfpn", {"width": 8}), ("semfpn", {}), r"\d+ tensors of the student's and the teacher's differ, such as"),
    ],
)
def test_heads_that_differ_are_one_line(ours, theirs, words):
    student, teacher = (network(kind, nn.Identity(), 10, **settings).head for kind, settings in (ours, theirs))
    with pytest.raises(UserError, match=words):
        check_heads(student, teacher)
    check_heads(student, copy.deepcopy(student))


def test_a_head_without_first_layers_of_one_kind_is_refused():
    head = HEADS["deeplabv3plus"](HEADS["deeplabv3plus"].Config(), (8,) * 4, (4, 8, 16, 16), CLASSES)
    with pytest.raises(UserError, match="only semfpn and masked_dpt"):
        check_heads(head, copy.deepcopy(head))
