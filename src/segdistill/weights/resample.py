"""Weights made for one patch and one grid, for another: patch kernels, positional embeddings, relative positions.

Three ways, and they give different weights (spec A.6, F):

* ``papers`` (GKD, Rein): plain bicubic, no antialias, no rescaling. A kernel that grows from 14 to 16 pixels answers
  (16/14)^2 = 1.31 times as strongly to a constant patch; that is the papers' behaviour.
* ``hub``: what DINOv2's own code does at run time (GKD's stage-1a teacher). Positions are interpolated by the factor
  (h + 0.1) / old, not to a size. It has no kernel path; a kernel of another patch is resampled as the papers'.
* ``timm``: antialiased positions and FlexiViT's pseudo-inverse kernel (arXiv 2212.08013), timm's own functions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

Resample = Literal["papers", "hub", "timm"]
OFFSET = 0.1  # DINOv2's, against rounding


def resample_positions(
    positions: Tensor, old: tuple[int, int], new: tuple[int, int], *, prefix: int = 1, how: Resample = "papers"
) -> Tensor:
    """A (1, prefix + h*w, C) positional embedding for another grid; the ``prefix`` rows (CLS) stay as they are."""
    if old == new:
        return positions
    if how == "timm":
        return resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=prefix)
    first, patches = positions[:, :prefix], positions[:, prefix:]
    maps = patches.transpose(1, 2).reshape(1, -1, *old)
    if how == "hub":
        factors = tuple((side + OFFSET) / before for side, before in zip(new, old, strict=True))
        maps = F.interpolate(maps, scale_factor=factors, mode="bicubic", align_corners=False)
        assert maps.shape[-2:] == new, (maps.shape, new)
    else:
        maps = F.interpolate(maps, size=new, mode="bicubic", align_corners=False)
    return torch.cat([first, maps.flatten(2).transpose(1, 2)], dim=1)


def resample_kernel(kernel: Tensor, new: tuple[int, int], how: Resample = "papers") -> Tensor:
    """A patch embedding's kernel (out, in, h, w) for patches of ``new`` pixels; computed in float32."""
    if kernel.shape[-2:] == new:
        return kernel
    if how == "timm":
        return resample_patch_embed(kernel, list(new))
    resized = F.interpolate(kernel.float(), size=new, mode="bicubic", align_corners=False)
    return resized.to(kernel.dtype)


def resample_relative(positions: Tensor, length: int) -> Tensor:
    """Relative positions (2 s - 1, C) along one side for another window: linear, as SAM does at run time."""
    rows = positions.T.unsqueeze(0)
    return F.interpolate(rows, size=length, mode="linear", align_corners=False)[0].T.contiguous()
