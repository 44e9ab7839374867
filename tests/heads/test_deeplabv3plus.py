import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from fake_encoder import seeded
from segdistill.config import UserError
from segdistill.encoders import ENCODERS, Encoder, EncoderConfig
from segdistill.encoders.anytimm import blueprint
from segdistill.heads import HEADS, DeepLabV3Plus

CHANNELS, STRIDES, K = (3, 4, 5, 6), (4, 8, 16, 16), 5


def make(strides=STRIDES, **settings):
    config = DeepLabV3Plus.Config(width=8, low_width=4, **settings)
    return seeded(lambda: DeepLabV3Plus(config, CHANNELS, strides, K)).eval()


def some_maps():
    return tuple(torch.randn(2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, STRIDES, strict=True))


def normed(x, block, **settings):
    """A convolution without bias, the batch norm of fresh statistics, ReLU."""
    return F.relu(F.conv2d(x, block[0].weight, **settings) / (1 + block[1].eps) ** 0.5)


@torch.no_grad()
def test_it_is_aspp_the_low_level_branch_and_two_convolutions():
    head, (low, second, third, deep) = make(), seeded(some_maps)
    aspp = head.aspp.convs
    parts = [normed(deep, aspp[0])]
    parts += [normed(deep, aspp[i], padding=rate, dilation=rate) for i, rate in ((1, 6), (2, 12), (3, 18))]
    pooled = normed(deep.mean((2, 3), keepdim=True), (aspp[4][1], aspp[4][2]))
    context = normed(torch.cat([*parts, pooled.expand_as(parts[0])], 1), head.aspp.project)
    context = F.interpolate(context, scale_factor=4, mode="bilinear")  # stride 16 to 4
    joined = torch.cat([context, normed(low, head.low)], 1)
    for block in head.fuse:
        joined = normed(joined, block, padding=1)
    expected = F.conv2d(joined, head.classifier[1].weight, head.classifier[1].bias)
    decoded = head.decode((low, second, third, deep))
    torch.testing.assert_close(decoded.logits, expected)
    extra = F.conv2d(normed(third, head.auxiliary[0], padding=1), head.auxiliary[2].weight, head.auxiliary[2].bias)
    labels = torch.randint(0, K, (2, 64, 96))
    terms = head.loss_of(decoded, labels)
    for name, logits, weight in (("cross_entropy", expected, 1.0), ("auxiliary", extra, 0.4)):
        enlarged = F.interpolate(logits, size=(64, 96), mode="bilinear")
        assert terms[name].item() == pytest.approx(weight * F.cross_entropy(enlarged, labels).item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("stride", "rates"), [(8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))])
def test_an_impulse_shows_the_dilations_of_the_output_stride(stride, rates):
    head, side = make(strides=(4, 8, stride, stride)), 81
    impulse = torch.zeros(1, 6, side, side)
    impulse[:, :, side // 2, side // 2] = 1.0
    for branch, rate in zip(head.aspp.convs[1:4], rates, strict=True):
        response = branch[0](impulse).abs().sum(1)[0]
        expected = {(side // 2 + y * rate, side // 2 + x * rate) for y in (-1, 0, 1) for x in (-1, 0, 1)}
        assert {tuple(place) for place in response.nonzero().tolist()} == expected


def test_without_the_auxiliary_loss_there_is_no_such_classifier():
    head = make(auxiliary=0.0)
    assert head.auxiliary is None
    assert set(head.loss(seeded(some_maps), torch.zeros(2, 64, 96, dtype=torch.int64))) == {"cross_entropy"}


def test_what_it_cannot_do_is_refused():
    with pytest.raises(
        UserError, match="one image per pass, whose pooled map has no variance: raise batch, or lower acc"
    ):
        make().train().decode(tuple(each[:1] for each in seeded(some_maps)))
    for wrong in ({"dilations": ()}, {"dilations": (0,)}, {"width": 0}, {"auxiliary": -1.0}):
        with pytest.raises(ValidationError):
            DeepLabV3Plus.Config(**wrong)


@pytest.mark.parametrize(
    ("encoder", "head", "used", "trained"),
    [
        ("resnet101_os16", "deeplabv3plus", 59_343_798, 64_073_161),  # the auxiliary classifier is for training alone
        ("resnet101_os8", "deeplabv3plus", 59_343_798, 64_073_161),
        ("mit_b5", "daformer", 85_155_286, 85_155_286),
    ],
)
def test_the_parameters_that_stand_beside_the_papers_counts(encoder, head, used, trained):
    """GKD's Table 6 prints 60.2 M for DeepLabV3+ with ResNet-101 and 82.0 M for MiT-B5; see docs/papers.md."""
    with blueprint():
        network = Encoder(EncoderConfig(name=encoder))
    taps = ENCODERS[encoder].taps
    parts = HEADS[head](HEADS[head].Config(), network.spec(taps).channels, network.strides(taps), 19)
    counted = sum(each.numel() for part in (network, parts) for each in part.parameters())
    auxiliary = getattr(parts, "auxiliary", None)
    extra = 0 if auxiliary is None else sum(each.numel() for each in auxiliary.parameters())
    assert (counted - extra, counted) == (used, trained)
