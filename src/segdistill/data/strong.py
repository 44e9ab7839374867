"""The strong view of an image: photometric changes alone, so that every position stays in its place."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from segdistill.config import Config


class StrongAugment(Config):
    """Defaults are the authors' research code's (spec sskd, 4.2)."""

    brightness: float = Field(0.4, ge=0, le=1)
    contrast: float = Field(0.4, ge=0, le=1)
    saturation: float = Field(0.4, ge=0, le=1)
    hue: float = Field(0.1, ge=0, le=0.5)
    grayscale: float = Field(0.2, ge=0, le=1, description="probability of a grey image")
    blur: float = Field(2.0, ge=0, le=100, description="largest sigma of the Gaussian blur, pixels; 0: none")


class Strong:
    """Images (B, 3, H, W) uint8 -> their strong views; every image draws its own change from torch's generator."""

    def __init__(self, config: StrongAugment) -> None:
        jitter = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
        steps: list[torch.nn.Module] = [jitter, v2.RandomGrayscale(config.grayscale)]
        if config.blur:
            steps.append(v2.GaussianBlur(5, (min(0.1, config.blur), config.blur)))
        self.change = v2.Compose(steps)

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
        return torch.stack([self.change(image) for image in images])
