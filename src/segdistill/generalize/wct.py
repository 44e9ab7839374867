"""Whitening and colouring of local pixel statistics: Li et al., Universal Style Transfer via Feature Transforms
(NeurIPS 2017, arXiv 1705.08086), on blocks of pixels instead of VGG's features.

Feature of a cell: the RGB values of its ``block`` x ``block`` pixels, 3 * block^2 numbers. With mean and covariance of
content (m, C) and style (n, D) over their cells:

    f' = D^(1/2) C^(-1/2) (f - m) + n

The features are a rearrangement of the image, so their inverse is exact and needs no decoder. The result has the style
image's colours and the covariance of its neighbouring pixels: contrast, grain, the amount of fine detail. It cannot
copy patterns larger than a block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from segdistill.ops import map_to_tokens, tokens_to_map

NOISE = (1 / 255) ** 2
"""Added to the variances: the square of one step of 8-bit pixels. Flat images are not blown up to noise."""


@torch.no_grad()
def transfer(
    content: Float[Tensor, "b 3 h w"], style: Float[Tensor, "b 3 p q"], block: int
) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1] in the style of the same row of ``style``; clamped. Borders are repeated to fill blocks."""
    height, width = content.shape[-2:]
    cells, grid = _cells(content.float(), block)
    others, _ = _cells(style.float(), block)
    mean, whiten = _moments(cells, -0.5)
    other_mean, colour = _moments(others, 0.5)
    changed = (cells - mean) @ whiten @ colour + other_mean  # rows are cells; both matrices are symmetric
    images = F.pixel_shuffle(tokens_to_map(changed, grid), block)
    return images[..., :height, :width].clamp(0, 1).to(content.dtype)


def _cells(images: Tensor, block: int) -> tuple[Float[Tensor, "b n c"], tuple[int, int]]:
    """The blocks' pixels, and the grid (h, w) of blocks."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % block, 0, -height % block), mode="replicate")
    maps = F.pixel_unshuffle(padded, block)
    return map_to_tokens(maps), (maps.shape[-2], maps.shape[-1])


def _moments(cells: Float[Tensor, "b n c"], power: float) -> tuple[Float[Tensor, "b 1 c"], Float[Tensor, "b c c"]]:
    """The mean, and the covariance to ``power``."""
    mean = cells.mean(dim=1, keepdim=True)
    centred = (cells - mean).double()
    covariance = centred.transpose(1, 2) @ centred / cells.shape[1]
    values, vectors = torch.linalg.eigh(covariance)
    scaled = vectors * (values.clamp(min=0) + NOISE).pow(power)[:, None, :]
    return mean, (scaled @ vectors.transpose(1, 2)).to(cells.dtype)
