"""The early map of an encoder, and its alteration."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segdistill.config import UserError
from segdistill.encoders import EncoderConfig, build_encoder

NETWORKS = {
    "world_student": ((8, 16), 128), "timm:test_vit": ((10, 10), 64), "timm:test_resnet": ((64, 64), 32),
    "timm:test_efficientnet": ((128, 128), 24), "timm:test_convnext": ((64, 64), 24),
    "timm:mobilenetv3_small_050": ((128, 128), 16), "timm:regnetx_002": ((128, 128), 32),
}  # fmt: skip


def built(name):
    return build_encoder(EncoderConfig(name=name), seed=0).eval()


def pictures(encoder, count=2):
    return torch.rand(count, 3, *encoder.config.built_for, generator=torch.Generator().manual_seed(0))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.tokens, other.tokens, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_an_unchanged_early_map_changes_nothing_and_a_doubled_one_doubles_the_images(name):
    encoder = built(name)
    images, taps, seen = pictures(encoder), (*encoder.record.taps, -1), []
    grid, width = NETWORKS[name]
    assert encoder.stem_channels() == width
    assert encoder.stem(images).shape == (2, width, *grid)
    plain = encoder(images, taps)
    keys = list(encoder.state_dict())
    with encoder.altered(lambda early: seen.append(early) or early):
        assert same(plain, encoder(images, taps))
    assert torch.equal(seen[0], encoder.stem(images))
    with encoder.altered(lambda early: torch.cat([early, early.flip(1)])):
        doubled = encoder(images, taps)
    for own, both in zip(plain.tokens, doubled.tokens, strict=True):
        torch.testing.assert_close(both[:2], own, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(both[2:], own, rtol=1e-2, atol=1e-2)
    assert same(plain, encoder(images, taps))  # outside, nothing is altered
    assert list(encoder.state_dict()) == keys


def test_gradients_and_batch_statistics_pass_an_alteration():
    """Stem and rest learn, and batch norms follow the images of the pass, as without an alteration."""
    plain, altered = (build_encoder(EncoderConfig(name="timm:test_efficientnet"), seed=0).train() for _ in range(2))
    images = pictures(plain)
    plain(images).tokens[0].square().mean().backward()
    with altered.altered(lambda early: early * 1.0):
        altered(images).tokens[0].square().mean().backward()
    for (key, one), other in zip(plain.named_parameters(), altered.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), key
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, msg=key)
    norms = [module for module in altered.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)
    for (key, one), other in zip(plain.named_buffers(), altered.buffers(), strict=True):
        torch.testing.assert_close(other, one, msg=key)


def test_an_error_inside_ends_the_alteration_and_two_do_not_mix():
    encoder = built("world_student")
    with pytest.raises(ZeroDivisionError), encoder.altered(lambda early: 1 / 0):
        encoder(pictures(encoder))
    first, second = encoder.altered(lambda early: early), encoder.altered(lambda early: early)
    with first, pytest.raises(AssertionError, match="one alteration"), second:
        pass


@pytest.mark.parametrize("name", ["timm:test_mambaout", "timm:swin_tiny_patch4_window7_224"])
def test_a_network_without_a_known_stem_is_refused_in_one_line(name):
    encoder = built(name)
    with pytest.raises(UserError, match=f"{name} has no early map that can be altered: choose a ViT, a ResNet"):
        encoder.stem_channels()
