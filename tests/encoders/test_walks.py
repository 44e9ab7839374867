"""Patch embeddings as a matrix product, and the blocks as one function."""

from __future__ import annotations

import pytest
import torch

from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.encoders.walks import linear_patches, patch_tokens


@pytest.mark.parametrize(("name", "size", "patch"), [("deit_ti", (64, 96), 16), ("dinov2_s", (56, 28), 14)])
def test_a_matrix_product_embeds_patches_as_the_convolution_does(name, size, patch):
    """Values, and gradients of the weights."""
    encoder = build_encoder(EncoderConfig(name=name, image_size=size, patch=patch), seed=0).double()
    embed = encoder.backbone.patch_embed
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    whole, found = embed(images), linear_patches(embed, images)
    assert found.shape == (2, size[0] // patch, size[1] // patch, encoder.record.width)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=1e-13)
    expected, own = (torch.autograd.grad(each.square().sum(), [*embed.parameters()]) for each in (whole, found))
    torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-11)


def test_the_convolution_is_kept_where_patches_do_not_fit_and_on_a_cpu():
    encoder = build_encoder(EncoderConfig(name="deit_ti", image_size=(64, 64)), seed=0)
    embed, images = encoder.backbone.patch_embed, torch.rand(1, 3, 64, 64)
    assert torch.equal(patch_tokens(embed, images), embed(images))
    calls = []
    embed.proj.register_forward_hook(lambda *_: calls.append(1))
    linear_patches(embed, images)
    assert calls == []
