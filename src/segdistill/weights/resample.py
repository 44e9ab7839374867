"""Resamples weights to another patch or grid: patch kernels, positional embeddings, relative positions.

Three modes, with different results (spec A.6, F):

* ``papers`` (GKD, Rein): plain bicubic, no antialias, no rescaling. A kernel resized from 14 to 16 pixels responds
  (16/14)^2 = 1.31 times as strongly to a constant patch, as in the papers.
* ``hub``: what DINOv2's own code does at run time (GKD's stage-1a teacher). Positions are interpolated by the factor
  (h + 0.1) / old, not to a size. It never resizes kernels; here kernels are resampled as in ``papers``.
* ``timm``: antialiased positions and FlexiViT's pseudo-inverse kernel (arXiv 2212.08013), timm's own functions.

Networks that run at another size than they are built for resample their positions in every forward pass
(:class:`RunTimePositions`). The authors' networks then interpolate by the hub's factor, however the weights were loaded
(spec A.6); ``papers`` does the same.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor
from torch.overrides import TorchFunctionMode

from segdistill.ops import map_to_tokens, tokens_to_map

Resample = Literal["papers", "hub", "timm"]
OFFSET = 0.1  # DINOv2's, against rounding


def resample_positions(
    positions: Tensor, old: tuple[int, int], new: tuple[int, int], *, prefix: int = 1, how: Resample = "papers"
) -> Tensor:
    """A (1, prefix + h*w, C) positional embedding for another grid; the ``prefix`` rows (CLS) are unchanged."""
    if old == new:
        return positions
    if how == "timm":
        return resample_abs_pos_embed(positions, list(new), list(old), num_prefix_tokens=prefix)
    first, patches = positions[:, :prefix], positions[:, prefix:]
    maps = tokens_to_map(patches, old)
    maps = _by_factor(maps, new) if how == "hub" else F.interpolate(maps, size=new, mode="bicubic", align_corners=False)
    return torch.cat([first, map_to_tokens(maps)], dim=1)


def _by_factor(maps: Tensor, new: tuple[int, int]) -> Tensor:
    """DINOv2's interpolation of positions (1, C, h, w)."""
    factors = tuple((side + OFFSET) / before for side, before in zip(new, maps.shape[-2:], strict=True))
    resized = F.interpolate(maps, scale_factor=factors, mode="bicubic", align_corners=False)
    assert resized.shape[-2:] == new, (resized.shape, new)
    return resized


class RunTimePositions(TorchFunctionMode):
    """Makes timm's networks resample positions by DINOv2's factor instead of antialiased to a size.

    The only antialiased interpolation in timm's networks is that of absolute positional embeddings.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace that interpolation only."""
        named = kwargs or {}
        if func is not F.interpolate or not named.get("antialias"):
            return func(*args, **named)
        return _by_factor(args[0], tuple(named["size"]))


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
