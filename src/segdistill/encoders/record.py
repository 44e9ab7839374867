"""What is known about an encoder before it is built. Imports neither torch nor timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the channels that a network was trained with, pixels in [0, 1]."""

PREFIX = "timm:"
"""Before the name of any backbone of timm."""
LICENCE = "see the model's page"
"""Of their weights."""

# global_pool="token" puts the final norm on all tokens; EVA02's default would move it behind the pooling.
PLAIN: Mapping[str, Any] = {"num_classes": 0, "global_pool": "token", "dynamic_img_size": True}


@dataclass(frozen=True)
class EncoderRecord:
    """One encoder. Its taps are its blocks (plain ViT) or stages, counted from 0, and ``-1``, after the final norm."""

    timm_name: str | None  # architecture in timm; None for the world's own encoders
    build: Callable[..., Any]  # (img_size if `sized`, patch_size if plain, `switches`) -> a timm network
    patch: int  # pixels per cell of the tap -1: the patch of a plain ViT, the last stride of a hierarchical network
    depth: int  # blocks or stages
    width: int  # channels of the tap -1
    taps: tuple[int, ...]  # 0-based blocks or stages that feed a head, raw: before any final norm
    image_size: tuple[int, int]  # native (H, W), pixels
    parameters: int  # with the mask token, without heads
    licence: str  # of the weights
    gated: bool = False  # the weights need an agreement at their host
    has_cls: bool = True
    family: str = ""  # who trained it
    timm_weights: str | None = None  # timm's name of those weights: its statistics are the encoder's
    stages: tuple[tuple[int, int], ...] = ()  # (channels, pixels per cell) of every tap; none: all `width`, `patch`
    sized: bool = True  # it is built for a size (positions, windows), which `image_size` may change
    flexible: bool = True  # takes images of any multiple of `patch`, else only of the size that it is built for
    switches: Mapping[str, Any] = field(default_factory=lambda: PLAIN)  # what timm is told besides; by default a ViT

    def shape(self, tap: int) -> tuple[int, int]:
        """Channels and pixels per cell of ``tap`` (-1 to depth - 1) at the native patch."""
        return self.stages[tap] if self.stages and tap >= 0 else (self.width, self.patch)

    @property
    def plain(self) -> bool:
        """Whether it is a ViT with one grid for all taps, whose patch may be changed."""
        return not self.stages

    @property
    def statistics(self) -> Statistics:
        """What the images are normalised with: the weights' own, ImageNet's where timm knows none."""
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        from timm.models import get_pretrained_cfg

        known = get_pretrained_cfg(self.timm_weights) if self.timm_weights else None
        return (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if known is None else (known.mean, known.std)


def block_taps(depth: int) -> tuple[int, ...]:
    """The four blocks of a ViT that feed a head.

    Up to 24 blocks after a third, half, two thirds and all of them (3, 5, 7, 11 of 12: spec A.10); deeper ones after
    each quarter, as DINOv2 and DINOv3 do for their largest.
    """
    shares = (1 / 3, 1 / 2, 2 / 3, 1.0) if depth <= 24 else (1 / 4, 1 / 2, 3 / 4, 1.0)
    return tuple(max(0, round(depth * share) - 1) for share in shares)


def stage_taps(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The four stages that feed a head: the last one of each of the four coarsest strides.

    Where there are fewer strides, the finest stage stands in for the missing ones; one stride alone is a plain ViT's.
    """
    last = {stride: index for index, stride in enumerate(strides)}
    if len(last) == 1:
        return block_taps(len(strides))
    taps = tuple(sorted(last.values()))[-4:]
    return taps[:1] * (4 - len(taps)) + taps
