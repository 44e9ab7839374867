"""Encoders: one record each, built through timm, with what distillation needs on top.

An :class:`Encoder` takes RGB in [0, 1], normalises it itself and returns :class:`~segdistill.types.Features`: raw block
outputs at the requested taps, final-norm tokens at the tap ``-1`` and the final-norm CLS token. Selected patch
embeddings can be hidden behind a learnt mask token, after the patch embedding and before the positional one (as
BEiT, iBOT, Proteus and GKD), so that a hidden token keeps its place and the sequence its length.

Sizes: any height and width that the patch divides; for another grid than the built one, timm resamples the positional
embedding (bicubic, antialiased).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, field_validator, model_validator
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm2d, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdistill.config import Config, UserError, choose
from segdistill.types import Features, FeatureSpec
from segdistill.weights import LoadReport, Resample, load_encoder_weights


class ConvStem(PatchEmbed):
    """A patch embedding of three stride-2 3x3 convolutions (LayerNorm, GELU) and a 1x1 projection; patch 8.

    From-scratch ViTs train faster and steadier with it than with one patchify convolution (Xiao et al. 2021, "Early
    convolutions help transformers see better"). Takes the arguments of timm's ``PatchEmbed`` and ``stem_width``, the
    channels of the first convolution; the next two have twice and four times as many.
    """

    def __init__(self, *, stem_width: int, in_chans: int, embed_dim: int, patch_size: int, **kwargs: Any) -> None:
        assert patch_size == 8, patch_size
        super().__init__(in_chans=in_chans, embed_dim=embed_dim, patch_size=patch_size, **kwargs)
        widths = [in_chans, stem_width, 2 * stem_width, 4 * stem_width]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Conv2d(width, following, 3, stride=2, padding=1, bias=False), LayerNorm2d(following)]
            layers += [nn.GELU()]
        # pyrefly: ignore[bad-assignment]  # timm types the one convolution that it builds itself
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))


@dataclass(frozen=True)
class EncoderRecord:
    """What is known about an encoder before it is built."""

    timm_name: str | None  # architecture in timm; None for the world's own encoders
    build: Callable[..., Any]  # (img_size, patch_size, and timm's switches) -> a timm ViT
    patch: int  # native patch, pixels
    depth: int  # blocks
    width: int  # channels of every tap
    taps: tuple[int, ...]  # 0-based blocks that feed a decoder
    image_size: tuple[int, int]  # native (H, W), pixels
    parameters: int  # with the mask token, without heads
    licence: str  # of the weights
    gated: bool = False  # the weights need an agreement at their host
    has_cls: bool = True


def _timm(name: str, patch: int, depth: int, width: int, *, size: int, parameters: int, licence: str) -> EncoderRecord:
    taps = (3, 5, 7, 11) if depth == 12 else (7, 11, 15, 23) if depth == 24 else (9, 19, 29, 39)
    build = partial(timm.create_model, name, pretrained=False)
    return EncoderRecord(name, build, patch, depth, width, taps, (size, size), parameters, licence)


def _world(width: int, stem_width: int, parameters: int) -> EncoderRecord:
    build = partial(
        VisionTransformer,
        embed_dim=width,
        depth=6,
        num_heads=4,
        mlp_ratio=4.0,
        embed_layer=partial(ConvStem, stem_width=stem_width),
    )
    return EncoderRecord(None, build, 8, 6, width, (1, 2, 3, 5), (64, 128), parameters, "Apache-2.0")


_dinov2 = partial(_timm, size=518, licence="Apache-2.0")
_vit = partial(_timm, size=224, licence="Apache-2.0")
_eva02 = partial(_timm, size=224, licence="MIT")

ENCODERS: dict[str, EncoderRecord] = {
    "world_teacher": _world(256, 32, parameters=4_899_104),
    "world_student": _world(128, 16, parameters=1_238_672),
    "dinov2_s": _dinov2("vit_small_patch14_dinov2", 14, 12, 384, parameters=22_056_576),
    "dinov2_b": _dinov2("vit_base_patch14_dinov2", 14, 12, 768, parameters=86_580_480),
    "dinov2_l": _dinov2("vit_large_patch14_dinov2", 14, 24, 1024, parameters=304_368_640),
    "dinov2_g": _dinov2("vit_giant_patch14_dinov2", 14, 40, 1536, parameters=1_136_480_768),
    "dino_s": _vit("vit_small_patch16_224", 16, 12, 384, parameters=21_666_048),
    "dino_b": _vit("vit_base_patch16_224", 16, 12, 768, parameters=85_799_424),
    # The distilled DeiT without its distillation token, as the papers use it: the plain architecture.
    "deit_s": _vit("deit_small_patch16_224", 16, 12, 384, parameters=21_666_048),
    "deit_b": _vit("deit_base_patch16_224", 16, 12, 768, parameters=85_799_424),
    "eva02_ti": _eva02("eva02_tiny_patch14_224", 14, 12, 192, parameters=5_502_336),
    "eva02_s": _eva02("eva02_small_patch14_224", 14, 12, 384, parameters=21_621_504),
    "eva02_b": _eva02("eva02_base_patch14_224", 14, 12, 768, parameters=85_759_488),
    "eva02_l": _eva02("eva02_large_patch14_224", 14, 24, 1024, parameters=303_269_824),
}


class EncoderConfig(Config):
    """Which encoder, with which weights, at which native size."""

    name: str
    weights: str = Field(
        "random",
        description="random | shipped | shipped:<asset> | timm:<name> | hf:<owner>/<name> | an official checkpoint "
        "(.pth, .pt, .bin, .safetensors) | a folder with encoder.safetensors",
    )
    resample: Resample = Field(
        "papers", description="patch kernel and positions of another size: papers | hub | timm (segdistill.weights)"
    )
    layer_scale: bool = Field(
        False, description="build LayerScale gains of 1, as the authors' DINO students have (spec A.9, 2)"
    )
    image_size: tuple[int, int] | None = Field(
        None, description="(H, W) of the positional embedding, pixels; None: the record's"
    )
    patch: int | None = Field(None, ge=1, description="patch side, pixels; None: the record's")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        choose("encoder", name, ENCODERS)
        return name

    @model_validator(mode="after")
    def _sizes(self) -> EncoderConfig:
        record = ENCODERS[self.name]
        patch = self.patch or record.patch
        if record.timm_name is None and patch != record.patch:
            raise UserError(f"{self.name} has a convolutional stem of patch {record.patch}: leave `patch` out")
        if self.image_size is not None:
            check_size(*self.image_size, patch)
        elif any(side % patch for side in record.image_size):
            raise UserError(
                f"patch {patch} does not divide {self.name}'s native size {record.image_size}: set image_size"
            )
        return self


def check_size(height: int, width: int, patch: int) -> None:
    """Raise a :class:`UserError` unless ``patch`` divides both sides (pixels)."""
    if height < patch or width < patch or height % patch or width % patch:
        padded = tuple(max(-(-side // patch), 1) * patch for side in (height, width))
        raise UserError(
            f"image size {height} x {width} is not divisible by the patch {patch}: "
            f"pad or resize it, for example to {padded[0]} x {padded[1]}"
        )


class FullPrecisionAttention(TorchFunctionMode):
    """Attention in fp32 inside bf16 autocast: torch's bf16 CPU kernel takes 3.5 times as long backwards.

    Measured at 129 tokens (LOG.md, 2026-11-20): 41 ms instead of 11 ms a layer; every other operation stays in bf16.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Cast queries, keys and values up and the result back."""
        if func is not F.scaled_dot_product_attention or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(value.float() for value in args[:3]), *args[3:], **(kwargs or {})).to(args[0].dtype)


def _attention(images: Tensor) -> AbstractContextManager[Any]:
    """:class:`FullPrecisionAttention` where it pays: bf16 training on a CPU."""
    slow = images.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()
    return FullPrecisionAttention() if slow else nullcontext()


class Encoder(nn.Module):
    """A timm ViT as the rest of the package sees it. Built with random weights; see :func:`build_encoder`."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.name = config.name
        self.record = ENCODERS[config.name]
        self.patch = config.patch or self.record.patch
        size = config.image_size or self.record.image_size
        gains = {"init_values": 1.0} if config.layer_scale else {}
        # global_pool="token" puts the final norm on all tokens; EVA02's default would move it behind the pooling.
        self.backbone: Any = self.record.build(
            img_size=size, patch_size=self.patch, num_classes=0, global_pool="token", dynamic_img_size=True, **gains
        )
        assert len(self.backbone.blocks) == self.record.depth, config.name
        assert self.backbone.num_prefix_tokens == 1, config.name
        # Three dimensions: like the authors', it is decayed (optimisers spare vectors and biases only).
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.record.width))
        self.loaded: LoadReport | None = None  # what became of the keys of the file that filled it
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1), persistent=False)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the stored positional embedding."""
        return self.backbone.patch_embed.grid_size

    def spec(self, taps: tuple[int, ...] = (-1,)) -> FeatureSpec:
        """Widths of the given taps; a :class:`UserError` for a tap that the encoder does not have."""
        for tap in taps:
            if not -1 <= tap < self.record.depth:
                raise UserError(
                    f"{self.name} has no tap {tap}: allowed are blocks 0 to {self.record.depth - 1} "
                    "and -1, the last block after the final norm"
                )
        cls_channels = self.record.width if self.record.has_cls else None
        return FeatureSpec((self.record.width,) * len(taps), cls_channels, self.record.depth)

    def forward(
        self,
        images: Float[Tensor, "b 3 H W"],
        taps: tuple[int, ...] = (-1,),
        hidden: Bool[Tensor, "b n"] | None = None,
    ) -> Features:
        """RGB in [0, 1] -> tokens of ``taps`` and the CLS token; ``hidden`` patch embeddings become the mask token."""
        self.spec(taps)
        check_size(images.shape[-2], images.shape[-1], self.patch)
        tokens = self.backbone.patch_embed((images - self.mean) / self.std)  # (B, h, w, C)
        grid = (tokens.shape[1], tokens.shape[2])
        if hidden is not None:
            where = hidden.view(-1, *grid, 1)
            tokens = torch.where(where, self.mask_token.to(tokens.dtype), tokens)
        positioned = self.backbone._pos_embed(tokens)
        tokens, rope = positioned if isinstance(positioned, tuple) else (positioned, None)  # EVA02 adds a rotation
        tokens = self.backbone.norm_pre(tokens)  # (B, 1 + N, C)
        rotation = {} if rope is None else {"rope": rope}
        tapped: dict[int, Tensor] = {}
        with _attention(images):
            for index, block in enumerate(self.backbone.blocks):
                tokens = block(tokens, **rotation)
                if index in taps:
                    tapped[index] = tokens[:, 1:]
        tokens = self.backbone.norm(tokens)
        tapped[-1] = tokens[:, 1:]
        return Features(tokens=tuple(tapped[tap] for tap in taps), cls=tokens[:, 0], grid=grid)


def build_encoder(config: EncoderConfig, *, seed: int) -> Encoder:
    """The encoder of ``config`` with its weights; random ones depend on ``seed`` and on nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        encoder = Encoder(config)
    encoder.loaded = load_encoder_weights(encoder, config.weights, resample=config.resample)
    return encoder
