import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fake_encoder import seeded
from segdistill.heads import DAFormer

CHANNELS, K = (3, 4, 5, 6), 5


def make(**settings):
    config = DAFormer.Config(width=4, **settings)
    return seeded(lambda: DAFormer(config, CHANNELS, (4, 8, 16, 32), K)).eval().double()


def enlarged(values: np.ndarray, factor: int) -> np.ndarray:
    """Bilinear, cell centres at halves, the border repeated."""
    for axis in (-2, -1):
        side = values.shape[axis]
        places = (np.arange(factor * side) + 0.5) / factor - 0.5
        values = np.apply_along_axis(lambda row, at=places, n=side: np.interp(at, np.arange(n), row), axis, values)
    return values


def convolved(x: np.ndarray, weight: np.ndarray, dilation: int = 1, *, depthwise: bool = False) -> np.ndarray:
    """A convolution with zeros outside, tap by tap."""
    kernel, (height, width) = weight.shape[-1], x.shape[-2:]
    reach = dilation * (kernel // 2)
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    total = 0.0
    for i in range(kernel):
        for j in range(kernel):
            part = padded[:, :, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
            if depthwise:
                total = total + part * weight[None, :, 0, i, j, None, None]
            else:
                total = total + np.einsum("bchw,kc->bkhw", part, weight[:, :, i, j])
    return total


def weight(module) -> np.ndarray:
    return module.weight.detach().numpy()


def normed(values: np.ndarray, norm) -> np.ndarray:
    """The batch norm of fresh statistics and ReLU."""
    return np.maximum(values / np.sqrt(1 + norm.eps), 0)


@torch.no_grad()
def test_it_is_embeddings_parallel_convolutions_and_a_bottleneck():
    head = make()
    maps = seeded(lambda: tuple(torch.randn(1, c, 16 >> i, 24 >> i).double() for i, c in enumerate(CHANNELS)))
    embedded = [
        enlarged(convolved(each.numpy(), weight(layer)) + layer.bias.numpy()[None, :, None, None], 1 << i)
        for i, (each, layer) in enumerate(zip(maps, head.embed, strict=True))
    ]
    joined = np.concatenate(embedded, 1)
    parts = [normed(convolved(joined, weight(head.context[0][0])), head.context[0][1])]
    for branch, dilation in zip(head.context[1:], (6, 12, 18), strict=True):
        deep = normed(convolved(joined, weight(branch[0]), dilation, depthwise=True), branch[1])
        parts.append(normed(convolved(deep, weight(branch[3])), branch[4]))
    fused = normed(convolved(np.concatenate(parts, 1), weight(head.fuse[0])), head.fuse[1])
    classifier = head.classifier[1]
    expected = convolved(fused, weight(classifier)) + classifier.bias.numpy()[None, :, None, None]
    np.testing.assert_allclose(head.decode(maps).numpy(), expected, rtol=0, atol=1e-12)


@torch.no_grad()
def test_an_impulse_shows_the_dilations():
    head, middle = make(), 20
    impulse = torch.zeros(1, 16, 41, 41).double()
    impulse[:, :, middle, middle] = 1.0
    for branch, dilation in zip(head.context[1:], (6, 12, 18), strict=True):
        response = branch[0](impulse).abs().sum(1)[0]
        steps = (-dilation, 0, dilation)
        expected = {(middle + y, middle + x) for y in steps for x in steps}
        assert {tuple(place) for place in response.nonzero().tolist()} == expected


@pytest.mark.parametrize(
    "wrong",
    [{"dilations": ()}, {"dilations": (0,)}, {"width": 0}, {"two_scale": {"detail": (0, 8)}},
     {"two_scale": {"detail_weight": 1.5}}, {"two_scale": {"attention_width": 0}}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValidationError):
        DAFormer.Config(**wrong)
