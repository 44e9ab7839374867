"""Facts about an encoder, available before it is built. Imports neither torch nor timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Channel mean and standard deviation used in training, for pixels in [0, 1]."""

PREFIX = "timm:"
"""Prefix of the names of timm's backbones."""
LICENCE = "see the model's page"
"""Licence text for the weights of timm's other backbones."""

# global_pool="token" puts the final norm on all tokens; EVA02's default would move it behind the pooling.
PLAIN: Mapping[str, Any] = {"num_classes": 0, "global_pool": "token", "dynamic_img_size": True}


@dataclass(frozen=True)
class EncoderRecord:
    """One encoder. Its taps are its blocks (plain ViT) or stages, counted from 0, and ``-1``, after the final norm."""

    timm_name: str | None  # architecture in timm; None for the package's own networks (the world's, MiT, small ViTs)
    build: Callable[..., Any]  # (img_size if `sized`, patch_size if plain, `switches`) -> a timm network
    patch: int  # pixels per cell of the tap -1: the patch of a plain ViT, the last stride of a hierarchical network
    depth: int  # blocks or stages
    width: int  # channels of the tap -1
    taps: tuple[int, ...]  # 0-based blocks or stages that feed a head, raw: before any final norm
    image_size: tuple[int, int]  # native (H, W), pixels
    parameters: int  # with the mask token, without heads
    licence: str  # of the weights
    gated: bool = False  # downloading the weights requires accepting a licence
    has_cls: bool = True
    family: str = ""  # e.g. DINOv2
    timm_weights: str | None = None  # timm's name for the weights; gives the normalisation statistics
    hub: str | None = None  # Hugging Face repository of the weights, if timm has none
    stages: tuple[tuple[int, int], ...] = ()  # (channels, pixels per cell) of every tap; none: all `width`, `patch`
    sized: bool = True  # built for one size (positions, windows), set by `image_size`
    flexible: bool = True  # takes any multiple of `patch`; False: only the built size
    switches: Mapping[str, Any] = field(
        default_factory=lambda: PLAIN
    )  # more arguments of `build`; the default is a ViT's

    def shape(self, tap: int) -> tuple[int, int]:
        """Channels and pixels per cell of ``tap`` (-1 to depth - 1) at the native patch."""
        return self.stages[tap] if self.stages and tap >= 0 else (self.width, self.patch)

    @property
    def plain(self) -> bool:
        """Whether it is a ViT with one grid for all taps and a configurable patch."""
        return not self.stages

    @property
    def statistics(self) -> Statistics:
        """Normalisation of the images: that of the weights, or ImageNet's where timm has none."""
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        from timm.models import get_pretrained_cfg

        known = get_pretrained_cfg(self.timm_weights) if self.timm_weights else None
        return (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if known is None else (known.mean, known.std)


def block_taps(depth: int) -> tuple[int, ...]:
    """The four blocks of a ViT that feed a head.

    Up to 24 blocks: after a third, half, two thirds and all of them (3, 5, 7, 11 of 12: spec A.10). Deeper: after each
    quarter, as DINOv2 and DINOv3 do for their largest models.
    """
    shares = (1 / 3, 1 / 2, 2 / 3, 1.0) if depth <= 24 else (1 / 4, 1 / 2, 3 / 4, 1.0)
    return tuple(max(0, round(depth * share) - 1) for share in shares)


def stage_taps(strides: tuple[int, ...]) -> tuple[int, ...]:
    """The four stages that feed a head: the last one of each of the four coarsest strides.

    With fewer strides the finest stage is repeated; networks with a single stride are treated as plain ViTs.
    """
    last = {stride: index for index, stride in enumerate(strides)}
    if len(last) == 1:
        return block_taps(len(strides))
    taps = tuple(sorted(last.values()))[-4:]
    return taps[:1] * (4 - len(taps)) + taps
