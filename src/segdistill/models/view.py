"""How an image is fed to a network: resized or not, whole or in sliding windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from segdistill.data.dataset import Protocol
from segdistill.models.segmenter import Window

Own = TypeVar("Own", bound="View")


@dataclass(frozen=True)
class View:
    """``resize``: box (h, w) to fit images into (None: keep their size); ``window`` (None: the whole image at once)."""

    resize: tuple[int, int] | None = None
    window: Window | None = None

    @classmethod
    def of(
        cls: type[Own], protocol: Protocol, window: Window | None = None, resize: tuple[int, int] | None = None
    ) -> Own:
        """The view of a dataset's protocol; ``window`` and ``resize`` replace the protocol's own."""
        return cls(resize or protocol.resize, sliding(protocol, window))

    def prepare(self, image: Tensor) -> Tensor:
        """See :func:`prepare`."""
        return prepare(image, self.resize)


def sliding(protocol: Protocol, window: Window | None) -> Window | None:
    """``window`` if given, else the protocol's; None: the whole image at once."""
    if window is not None or protocol.window is None:
        return window
    return Window(size=protocol.window, stride=protocol.stride or protocol.window)


def prepare(image: Tensor, resize: tuple[int, int] | None = None) -> Tensor:
    """Images (B, 3, H, W), 8-bit or float, as float in [0, 1], fitted into ``resize`` (h, w) if given."""
    image = image.float().div_(255) if image.dtype == torch.uint8 else image.float()
    if resize is None:
        return image
    height, width = image.shape[-2:]
    size = fit((height, width), resize)
    if size == (height, width):
        return image
    return F.interpolate(
        image, size=size, mode="bilinear", align_corners=False
    )  # no antialias, as in the authors' code


def fit(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The largest size (h, w) of the same aspect ratio that fits into ``box``, turned to the same orientation."""
    factor = min(max(box) / max(size), min(box) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width
