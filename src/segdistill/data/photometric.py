"""Photometric distortion of a task stage's images, with the values of mmsegmentation's ``PhotoMetricDistortion``.

Brightness, saturation, hue and contrast change in this order, each with probability 0.5; with probability 0.5 contrast
comes before saturation instead of last. Pixels are 8-bit after every step, hue has OpenCV's unit of 2 degrees (180 of
them) and saturation OpenCV's 0 to 255, all rounded, as there (spec A.10). Colour channels keep their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

BRIGHTNESS = 32.0
"""Largest value added to all channels."""
FACTORS = (0.5, 1.5)
"""Range of the factors of contrast and saturation."""
HUE = 18
"""Largest shift of the hue, in units of 2 degrees; shifts are integers in [-HUE, HUE)."""


@dataclass(frozen=True)
class Distortion:
    """One random draw. None: this step is skipped."""

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: int | None = None
    contrast_first: bool = False  # before saturation and hue, else after them


def draw_distortion() -> Distortion:
    """A distortion from torch's global generator, which always advances by the same amount."""
    values = torch.rand(9).tolist()
    low, high = FACTORS

    def factor(value: float) -> float:
        return low + (high - low) * value

    return Distortion(
        brightness=BRIGHTNESS * (2 * values[0] - 1) if values[1] < 0.5 else None,
        contrast=factor(values[2]) if values[3] < 0.5 else None,
        saturation=factor(values[4]) if values[5] < 0.5 else None,
        hue=int(2 * HUE * values[6]) - HUE if values[7] < 0.5 else None,
        contrast_first=values[8] < 0.5,
    )


def distort(image: UInt8[Tensor, "3 h w"], drawn: Distortion) -> UInt8[Tensor, "3 h w"]:
    """``image`` (RGB) after the steps of ``drawn``."""
    pixels = image.float()
    if drawn.brightness is not None:
        pixels = _whole(pixels + drawn.brightness)
    if drawn.contrast is not None and drawn.contrast_first:
        pixels = _whole(pixels * drawn.contrast)
    for saturation, hue in ((drawn.saturation, None), (None, drawn.hue)):  # 8-bit RGB between the two
        if saturation is not None or hue is not None:
            pixels = _recolor(pixels, saturation or 1.0, hue or 0)
    if drawn.contrast is not None and not drawn.contrast_first:
        pixels = _whole(pixels * drawn.contrast)
    return pixels.to(torch.uint8)


def _whole(pixels: Tensor) -> Tensor:
    """Clipped and truncated to integers, like a cast to 8 bits."""
    return pixels.clamp_(0, 255).floor_()


def _recolor(pixels: Float[Tensor, "3 h w"], saturation: float, hue: int) -> Float[Tensor, "3 h w"]:
    """Through HSV and back: saturation times a factor, hue shifted by ``hue`` units of 2 degrees."""
    red, green, blue = pixels
    value, lowest = pixels.amax(0), pixels.amin(0)
    chroma = value - lowest
    turn = torch.where(
        value == red, green - blue, torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    angle = (turn * 30 / chroma.clamp(min=1) + 0.5).floor() % 180
    share = (chroma * 255 / value.clamp(min=1) + 0.5).floor()
    share = (share * saturation).clamp(max=255).floor()
    chroma = value * share / 255
    angle = (angle + hue) % 180 / 30
    channels = []
    for offset in (5, 3, 1):
        k = (offset + angle) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels).round()
