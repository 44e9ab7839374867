"""Images in memory as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from segdistill.config import UserError
from segdistill.inference.inputs import upright

_NUMBERS = "pixels must be uint8, or float in [0, 1]"


def as_tensor(image: Any) -> Tensor:
    """An image in memory, or a batch, as (3, H, W) or (B, 3, H, W)."""
    if isinstance(image, Image.Image):
        return torch.from_numpy(upright(image)).permute(2, 0, 1)
    if isinstance(image, np.ndarray):
        grey = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
        if grey.ndim not in (3, 4) or grey.shape[-1] not in (3, 4):
            raise UserError(f"an array must be (H, W, 3), (H, W) or (B, H, W, 3), got {image.shape}")
        if grey.dtype != np.uint8 and grey.dtype.kind != "f":
            raise UserError(f"{_NUMBERS}, got {grey.dtype}; divide 16-bit pixels by 65535")
        image = torch.from_numpy(np.array(grey[..., :3])).movedim(-1, -3)
    if not isinstance(image, Tensor):
        raise UserError(
            "an image is a path, a PIL image, a NumPy array or a tensor, or a list of these, got "
            f"{type(image).__name__}"
        )
    if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
        raise UserError(f"a tensor must be (3, H, W) or (B, 3, H, W), got {tuple(image.shape)}")
    return _scaled(image)


def _scaled(image: Tensor) -> Tensor:
    """uint8 as it is, float in [0, 1] as float32; a :class:`UserError` for any other numbers."""
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise UserError(f"{_NUMBERS}, got {image.dtype}; divide 16-bit pixels by 65535")
    low, high = image.amin().item(), image.amax().item()
    if not -1e-3 <= low <= high <= 1 + 1e-3:
        raise UserError(f"float pixels must lie in [0, 1], got {low:.4g} to {high:.4g}; divide 8-bit pixels by 255")
    return image.float()
