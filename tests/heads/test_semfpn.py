import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from fake_encoder import seeded
from segdistill.heads import SemFPN


def make(**settings):
    config = SemFPN.Config(width=8, dropout=0.0, **settings)
    return seeded(lambda: SemFPN(config, (3, 3, 3, 3), (8,) * 4, 5))


def test_it_is_the_papers_branch_on_a_top_down_sum():
    """Restated: coarse levels added to finer ones; 1, 1, 2, 3 convolutions, the coarse ones followed by x2; sum."""
    head, maps = make(), tuple(torch.randn(2, 3, 8, 8) for _ in range(4))

    def to(x, size):
        return F.interpolate(x, size=(size, size), mode="bilinear")

    p = [to(lateral(m), s) for lateral, m, s in zip(head.laterals, maps, (16, 8, 4, 2), strict=True)]
    p[2] = p[2] + to(p[3], 4)
    p[1] = p[1] + to(p[2], 8)
    p[0] = p[0] + to(p[1], 16)
    b = head.branches
    assert [len(branch) for branch in b] == [1, 1, 2, 3]
    total = b[0][0](p[0]) + to(b[1][0](p[1]), 16) + to(b[2][1](to(b[2][0](p[2]), 8)), 16)
    total = total + to(b[3][2](to(b[3][1](to(b[3][0](p[3]), 4)), 8)), 16)
    torch.testing.assert_close(head.decode(maps), head.classifier(total))
    torch.testing.assert_close(head.scores(maps, (64, 64)), to(head.classifier(total), 64))


def test_batch_order_does_not_matter_to_the_loss():
    head, order = make(), torch.tensor([2, 0, 1])
    maps, labels = tuple(torch.randn(3, 3, 4, 4) for _ in range(4)), torch.randint(0, 5, (3, 32, 32))
    labels[1] = 255
    one = head.loss(maps, labels)["cross_entropy"]
    torch.testing.assert_close(head.loss(tuple(m[order] for m in maps), labels[order])["cross_entropy"], one)


def test_all_ignored_is_zero():
    loss = make().loss(tuple(torch.randn(1, 3, 2, 2) for _ in range(4)), torch.full((1, 16, 16), 255))
    assert loss["cross_entropy"].item() == 0


def test_fewer_levels():
    config = SemFPN.Config(width=8, strides=(8, 16))
    maps = (torch.randn(1, 3, 4, 4), torch.randn(1, 4, 4, 4))
    assert SemFPN(config, (3, 4), (8, 8), 5).scores(maps, (32, 32)).shape[1] == 5


@pytest.mark.parametrize("strides", [(), (4, 8, 32), (8, 4), (0, 0)])
def test_strides_must_double(strides):
    with pytest.raises(ValidationError, match=r"each stride must be twice the one before it|equal to 1"):
        SemFPN.Config(strides=strides)
