"""An encoder of the package: a network of timm that takes RGB in [0, 1] and returns features.

An :class:`Encoder` normalises images itself, with the statistics of its weights, and returns
:class:`~segdistill.types.Features`: raw outputs of the blocks or stages at the requested taps, tokens after the final
norm at the tap ``-1``, and the final-norm CLS token where there is one. Cells of the grid of the tap ``-1`` can be
replaced by a learnt mask token (see :mod:`segdistill.encoders.walks`).

Height and width may be any multiples of ``patch``, the pixels per cell of the tap ``-1``. On a grid other than the
one the network is built for, positional embeddings are resampled in every forward pass (``resample``) and timm pads
windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdistill.config import Config, Size, UserError
from segdistill.encoders.anytimm import blueprint, record_of, takes
from segdistill.encoders.rein import Rein, ReinConfig
from segdistill.encoders.walks import Alter, Through, has_stem, mask_shape, stem, walk_of, walk_vit
from segdistill.ops import evaluation_mode
from segdistill.types import Features, FeatureSpec
from segdistill.weights import LoadReport, Resample, RunTimePositions, load_encoder_weights

MOST_CELLS = 2**20
"""Cells of an image: 8192 x 8192 pixels with a patch of 8."""


class EncoderConfig(Config):
    """Which encoder, with which weights, at which native size."""

    name: str = Field(description="a name from `segdistill list encoders`, or timm:<name>")
    weights: str = Field(
        "random",
        description="random | shipped | shipped:<asset> | timm:<name> | hf:<owner>/<name> | an official checkpoint "
        "(.pth, .pt, .bin, .safetensors) | a folder with encoder.safetensors",
    )
    resample: Resample = Field(
        "papers",
        description="how patch kernels and positions are resampled to another size: papers | hub | timm "
        "(segdistill.weights.resample)",
    )
    layer_scale: bool = Field(
        False, description="build LayerScale gains of 1, as the authors' DINO students have (spec A.9, 2)"
    )
    image_size: Size | None = Field(None, description="(H, W) of the positional embedding, pixels; None: the record's")
    patch: int | None = Field(None, ge=1, le=1024, description="patch side, pixels; None: the record's")
    rein: ReinConfig | None = Field(None, description="Rein's learnt tokens after every block; None: none")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        record_of(name)
        return name

    @model_validator(mode="after")
    def _sizes(self) -> EncoderConfig:
        record, patch = record_of(self.name), self.cell
        if not record.plain and self.patch is not None:
            raise UserError(f"{self.name} is not a plain ViT, its patch of {record.patch} is fixed: leave `patch` out")
        if not record.plain and self.layer_scale:
            raise UserError(f"{self.name} is not a plain ViT: leave `layer_scale` out")
        if not record.plain and self.rein is not None:
            raise UserError(f"{self.name} is not a plain ViT, whose blocks Rein refines: leave `rein` out")
        if not record.sized and self.image_size is not None:
            raise UserError(f"{self.name} takes images of any size: leave `image_size` out")
        if record.family == "world" and patch != record.patch:
            raise UserError(f"{self.name} has a convolutional stem of patch {record.patch}: leave `patch` out")
        if self.image_size is not None:
            check_size(*self.image_size, patch)
            if not record.flexible and not takes(self.name, self.image_size):
                raise UserError(
                    f"{self.name} cannot be built for {self.image_size}: leave image_size out (its own is "
                    f"{record.image_size}) or choose another backbone"
                )
        elif any(side % patch for side in record.image_size):
            raise UserError(
                f"patch {patch} does not divide {self.name}'s native size {record.image_size}: set image_size"
            )
        return self

    @property
    def cell(self) -> int:
        """Pixels per cell of the tap -1; image sides are multiples of it."""
        return self.patch or record_of(self.name).patch

    @property
    def built_for(self) -> tuple[int, int]:
        """(H, W), pixels."""
        return self.image_size or record_of(self.name).image_size

    def check(self, height: int, width: int) -> None:
        """Raise a :class:`UserError` unless the encoder takes images of ``height`` x ``width`` pixels."""
        check_size(height, width, self.cell)
        if not record_of(self.name).flexible and (height, width) != self.built_for:
            raise UserError(
                f"{self.name} only takes images of the size it is built for, {self.built_for[0]} x "
                f"{self.built_for[1]}, not {height} x {width}: set its image_size to that of the images or the window"
            )


def check_size(height: int, width: int, patch: int) -> None:
    """Raise a :class:`UserError` unless ``patch`` divides both sides (pixels)."""
    if height < patch or width < patch or height % patch or width % patch:
        padded = tuple(max(-(-side // patch), 1) * patch for side in (height, width))
        raise UserError(
            f"image size {height} x {width} is not divisible by the patch {patch}: "
            f"pad or resize it, for example to {padded[0]} x {padded[1]}"
        )
    if (cells := (height // patch) * (width // patch)) > MOST_CELLS:
        raise UserError(
            f"image size {height} x {width} has {cells:,} cells of patch {patch}, allowed: {MOST_CELLS:,}; choose a "
            "smaller size or a larger patch"
        )


class FullPrecisionAttention(TorchFunctionMode):
    """Attention in fp32 inside bf16 autocast: the backward pass of torch's bf16 CPU kernel takes 3.5 times as long.

    Measured at 129 tokens (LOG.md, 2026-11-20): 41 ms instead of 11 ms a layer; every other operation stays in bf16.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Cast queries, keys, values and a bias up and the result back."""
        if func is not F.scaled_dot_product_attention or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            named = {name: _up(value) for name, value in (kwargs or {}).items()}
            return func(*map(_up, args), **named).to(args[0].dtype)


def _up(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _attention(images: Tensor) -> AbstractContextManager[Any]:
    """:class:`FullPrecisionAttention` where it pays: bf16 training on a CPU."""
    slow = images.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    return FullPrecisionAttention() if slow else nullcontext()


class Encoder(nn.Module):
    """A timm network that returns :class:`Features`. Its weights are random; see :func:`build_encoder`."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.name = config.name
        self.record = record_of(config.name)
        self.config = config
        self.patch = config.cell
        settings: dict[str, Any] = dict(self.record.switches)
        if self.record.sized:
            settings["img_size"] = config.built_for
        if self.record.plain:
            settings["patch_size"] = self.patch
        if config.layer_scale:
            settings["init_values"] = 1.0
        self.backbone: Any = self.record.build(**settings)
        self.rein = None if config.rein is None else Rein(config.rein, self.record.depth, self.record.width)
        self.loaded: LoadReport | None = None  # how the keys of the weight file were used
        self._alter: Alter | None = None
        self.through: Through | None = None  # runs the blocks of a plain ViT, such as a compiled function
        self.mask_token = nn.Parameter(torch.zeros(mask_shape(self.backbone)))
        for name, values in zip(("mean", "std"), self.record.statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @property
    def walk(self) -> Any:
        """The forward pass through the backbone; see :data:`segdistill.encoders.walks.Walk`."""
        if self.rein is None and self.through is None:
            return walk_of(self.backbone)
        return partial(walk_vit, refine=self.rein, through=self.through)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the tap -1 at the built size, which is the grid of the stored positional embedding."""
        return self.mask_grid(*self.config.built_for)

    def mask_grid(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the cells of the tap -1 in an image of ``height`` x ``width`` pixels; these can be masked."""
        return height // self.patch, width // self.patch

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The smallest accepted (H, W) not below ``height`` x ``width``; a :class:`UserError` if there is none."""
        size = (height + -height % self.patch, width + -width % self.patch)
        if not self.record.flexible and height <= self.config.built_for[0] and width <= self.config.built_for[1]:
            size = self.config.built_for
        self.config.check(*size)
        return size

    def spec(self, taps: tuple[int, ...] = (-1,)) -> FeatureSpec:
        """Widths of the given taps; a :class:`UserError` for a tap that the encoder does not have."""
        record = self.record
        for tap in taps:
            if not -1 <= tap < record.depth:
                unit = "block" if len({stride for _, stride in record.stages}) <= 1 else "stage"
                raise UserError(
                    f"{self.name} has no tap {tap}: allowed are {unit}s 0 to {record.depth - 1} "
                    f"and -1, the last {unit} after the final norm"
                )
        channels = tuple(record.shape(tap)[0] for tap in taps)
        return FeatureSpec(channels, record.width if record.has_cls else None, record.depth)

    def strides(self, taps: tuple[int, ...] = (-1,)) -> tuple[int, ...]:
        """Pixels per cell of the given taps."""
        return tuple(self.patch if self.record.plain else self.record.shape(tap)[1] for tap in taps)

    def forward(
        self,
        images: Float[Tensor, "b 3 H W"],
        taps: tuple[int, ...] = (-1,),
        hidden: Bool[Tensor, "b n"] | None = None,
    ) -> Features:
        """RGB in [0, 1] -> tokens of ``taps`` and the CLS token; ``hidden`` cells of the mask grid are masked."""
        self.spec(taps)
        height, width = images.shape[-2:]
        self.config.check(height, width)
        where = None if hidden is None else hidden.view(-1, *self.mask_grid(height, width))
        resized = self.record.sized and (height, width) != self.config.built_for and self.config.resample != "timm"
        with _attention(images), RunTimePositions() if resized else nullcontext():
            normalised = self.normalised(images)
            tapped, cls = self.walk(self.backbone, normalised, taps, self.mask_token, where, self._alter)
        tokens, grids = zip(*(tapped[tap] for tap in taps), strict=True)
        return Features(tokens=tokens, cls=cls, grid=grids[-1], grids=grids)

    def normalised(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """RGB in [0, 1] with the mean and the deviation that the network was trained with."""
        return (images - self.mean) / self.std

    def stem(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The early map of RGB images in [0, 1] (see :mod:`segdistill.encoders.walks`), unaltered."""
        with _attention(images):
            return stem(self.backbone, self.normalised(images))

    def stem_channels(self) -> int:
        """Channels of the early map; a :class:`UserError` if the network has none that can be altered."""
        refused = UserError(
            f"{self.name} has no early map that can be altered: choose a ViT, a ResNet, an EfficientNet, a MobileNet, "
            "a RegNet, a ConvNeXt or a MiT"
        )
        if not has_stem(self.backbone):
            raise refused
        height, width = self.config.built_for
        with torch.no_grad(), evaluation_mode(self):
            shape = self.stem(torch.zeros(1, 3, height, width, device=self.mean.device)).shape
        if len(shape) != 4 or height * shape[3] != width * shape[2] or height % shape[2]:
            raise refused
        return shape[1]

    @contextmanager
    def altered(self, alter: Alter) -> Iterator[None]:
        """Inside, ``alter`` is called on the early map of every forward pass, which goes on with what it returns."""
        assert self._alter is None, "one alteration at a time"
        self._alter = alter
        try:
            yield
        finally:
            self._alter = None


def outline(config: EncoderConfig) -> Encoder:
    """The encoder of ``config`` on torch's meta device: shapes alone, no memory, no time."""
    with blueprint():
        return Encoder(config)


def build_encoder(config: EncoderConfig, *, seed: int) -> Encoder:
    """The encoder of ``config`` with its weights; random weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = Encoder(config)
    encoder.loaded = load_encoder_weights(encoder, config.weights, resample=config.resample)
    return encoder
