"""Named encoders: those of the papers, their successors, and the built-in world's. Imports no torch."""

from __future__ import annotations

from functools import partial
from typing import Any

from segdistill.encoders.record import EncoderRecord, block_taps


def _timm(name: str, **options: Any) -> Any:
    """A network of timm with random weights."""
    import timm

    return timm.create_model(name, pretrained=False, **options)


def _world_network(**options: Any) -> Any:
    from segdistill.encoders.world import world_network

    return world_network(**options)


def _world(width: int, stem_width: int, parameters: int) -> EncoderRecord:
    """An encoder of the procedural world: six blocks, patch 8."""
    build = partial(_world_network, width=width, stem_width=stem_width)
    taps, size = block_taps(6), (64, 128)
    return EncoderRecord(None, build, 8, 6, width, taps, size, parameters, "Apache-2.0", family="world")


def _vit(weights: str, patch: int, depth: int, width: int, *, size: int, **others: Any) -> EncoderRecord:
    """A plain ViT. DeiT's distilled weights go into the plain architecture, without their distillation token."""
    name = weights.partition(".")[0].replace("_distilled", "")
    build = partial(_timm, name)
    taps = block_taps(depth)
    return EncoderRecord(name, build, patch, depth, width, taps, (size, size), timm_weights=weights, **others)


def _small_vit(**settings: Any) -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(depth=6, **settings)


def _small(width: int, heads: int, parameters: int) -> EncoderRecord:
    """A plain ViT of half the usual depth, without weights of its own: a student that inherits its teacher's."""
    build = partial(_small_vit, embed_dim=width, num_heads=heads)
    taps = block_taps(6)
    return EncoderRecord(None, build, 16, 6, width, taps, (224, 224), parameters, "Apache-2.0", family="ViT")


def _convnext(weights: str, width: int, **others: Any) -> EncoderRecord:
    """A ConvNeXt whose first stage has ``width`` channels."""
    name = weights.partition(".")[0]
    return EncoderRecord(
        timm_name=name,
        build=partial(_timm, name),
        patch=32,
        depth=4,
        width=8 * width,
        taps=(0, 1, 2, 3),
        image_size=(256, 256),
        has_cls=False,
        timm_weights=weights,
        stages=tuple((width << stage, 4 << stage) for stage in range(4)),
        sized=False,
        switches={"num_classes": 0},
        **others,
    )


def _mit_network(size: str, drop_path: float) -> Any:
    from segdistill.encoders.mit import SIZES, MiT

    return MiT(SIZES[size], drop_path)


def _mit(size: str, parameters: int, width: int = 64, drop_path: float = 0.1, **others: Any) -> EncoderRecord:
    """SegFormer's encoder, whose first stage has ``width`` channels; its maps are normalised."""
    widths = tuple(width * factor // 2 for factor in (2, 4, 10, 16))
    return EncoderRecord(
        timm_name=None,
        build=partial(_mit_network, size, drop_path),
        patch=32,
        depth=4,
        width=widths[-1],
        taps=(0, 1, 2, 3),
        image_size=(256, 256),
        parameters=parameters,
        has_cls=False,
        hub=f"nvidia/mit-{size}" if drop_path else None,
        stages=tuple((each, 4 << stage) for stage, each in enumerate(widths)),
        sized=False,
        switches={},
        **others,
    )


def _world_resnet_network(**options: Any) -> Any:
    from timm.models.resnet import BasicBlock, ResNet

    block: Any = BasicBlock
    return ResNet(block, (2, 2, 2, 2), channels=(32, 64, 128, 256), **options)


def _resnet(stride: int, widths: tuple[int, ...], **others: Any) -> EncoderRecord:
    """A ResNet with output stride 8, 16 or 32: below 32 the last stages are dilated, with the same weights.

    Tap 0 is the stem at stride 2, taps 1 to 4 are ``layer1`` to ``layer4``.
    """
    strides = (2, 4, 8, min(16, stride), stride)
    return EncoderRecord(
        patch=stride,
        depth=5,
        width=widths[-1],
        taps=(1, 2, 3, 4),
        image_size=(256, 256),
        has_cls=False,
        stages=tuple(zip((64, *widths), strides, strict=True)),
        sized=False,
        switches={"num_classes": 0, "output_stride": stride},
        **others,
    )


def _resnets() -> dict[str, EncoderRecord]:
    """``resnet101`` and others with output stride 32, ``resnet101_os8`` and ``resnet101_os16``."""
    wide, narrow = (256, 512, 1024, 2048), (64, 128, 256, 512)
    sizes = {"resnet18": (narrow, 11_176_515), "resnet50": (wide, 23_508_035), "resnet101": (wide, 42_500_163)}
    return {
        name if stride == 32 else f"{name}_os{stride}": _resnet(
            stride, widths, timm_name=name, build=partial(_timm, name), parameters=parameters, licence="BSD-3-Clause",
            family="ResNet", timm_weights=f"{name}.tv_in1k",
        )
        for name, (widths, parameters) in sizes.items()
        for stride in (32, 16, 8)
    }  # fmt: skip


def _sam(weights: str, parameters: int) -> EncoderRecord:
    """SAM's ViT-B, whose neck has 256 channels."""
    name = weights.partition(".")[0]
    return EncoderRecord(
        timm_name=name,
        build=partial(_timm, name),
        patch=16,
        depth=12,
        width=256,
        taps=block_taps(12),
        image_size=(1024, 1024),
        parameters=parameters,
        licence="Apache-2.0",
        has_cls=False,
        family="SAM",
        timm_weights=weights,
        stages=((768, 16),) * 12,
        switches={"num_classes": 0},
    )


_dinov2 = partial(_vit, patch=14, size=518, licence="Apache-2.0", family="DINOv2")
_dinov3 = {"licence": "DINOv3 License", "gated": True, "family": "DINOv3"}
_dinov3_vit = partial(_vit, patch=16, size=256, **_dinov3)
_dinov3_convnext = partial(_convnext, **_dinov3)
_dino = partial(_vit, patch=16, depth=12, size=224, licence="Apache-2.0", family="DINO")
_deit = partial(_vit, patch=16, depth=12, size=224, licence="Apache-2.0", family="DeiT")
_eva02 = partial(_vit, patch=14, size=224, licence="MIT", family="EVA02")
_WORLD = {"licence": "Apache-2.0", "family": "world"}
_mit_imagenet = partial(_mit, licence="NVIDIA Source Code License, non-commercial", family="MiT")
_REG = "_reg4_dinov2.lvd142m"

ENCODERS: dict[str, EncoderRecord] = {
    "world_teacher": _world(256, 32, parameters=4_899_104),
    "world_student": _world(128, 16, parameters=1_238_672),
    "world_resnet": _resnet(
        8, (32, 64, 128, 256), timm_name=None, build=_world_resnet_network, parameters=2_814_979, **_WORLD
    ),
    "world_mit": _mit("b0", 3_319_395, 32, drop_path=0.0, **_WORLD),
    "dinov2_s": _dinov2("vit_small_patch14_dinov2.lvd142m", depth=12, width=384, parameters=22_056_576),
    "dinov2_b": _dinov2("vit_base_patch14_dinov2.lvd142m", depth=12, width=768, parameters=86_580_480),
    "dinov2_l": _dinov2("vit_large_patch14_dinov2.lvd142m", depth=24, width=1024, parameters=304_368_640),
    "dinov2_g": _dinov2("vit_giant_patch14_dinov2.lvd142m", depth=40, width=1536, parameters=1_136_480_768),
    # With four register tokens, which are not patch tokens.
    "dinov2_s_reg": _dinov2(f"vit_small_patch14{_REG}", depth=12, width=384, parameters=22_057_728),
    "dinov2_b_reg": _dinov2(f"vit_base_patch14{_REG}", depth=12, width=768, parameters=86_582_784),
    "dinov2_l_reg": _dinov2(f"vit_large_patch14{_REG}", depth=24, width=1024, parameters=304_371_712),
    "dinov2_g_reg": _dinov2(f"vit_giant_patch14{_REG}", depth=40, width=1536, parameters=1_136_485_376),
    "dinov3_s": _dinov3_vit("vit_small_patch16_dinov3.lvd1689m", depth=12, width=384, parameters=21_587_328),
    "dinov3_s_plus": _dinov3_vit("vit_small_plus_patch16_dinov3.lvd1689m", depth=12, width=384, parameters=28_683_648),
    "dinov3_b": _dinov3_vit("vit_base_patch16_dinov3.lvd1689m", depth=12, width=768, parameters=85_641_984),
    "dinov3_l": _dinov3_vit("vit_large_patch16_dinov3.lvd1689m", depth=24, width=1024, parameters=303_080_448),
    "dinov3_h_plus": _dinov3_vit("vit_huge_plus_patch16_dinov3.lvd1689m", depth=32, width=1280, parameters=840_510_720),
    "dinov3_7b": _dinov3_vit("vit_7b_patch16_dinov3.lvd1689m", depth=40, width=4096, parameters=6_716_035_072),
    "dinov3_convnext_ti": _dinov3_convnext("convnext_tiny.dinov3_lvd1689m", 96, parameters=27_820_131),
    "dinov3_convnext_s": _dinov3_convnext("convnext_small.dinov3_lvd1689m", 96, parameters=49_454_691),
    "dinov3_convnext_b": _dinov3_convnext("convnext_base.dinov3_lvd1689m", 128, parameters=87_566_467),
    "dinov3_convnext_l": _dinov3_convnext("convnext_large.dinov3_lvd1689m", 192, parameters=196_230_339),
    "dino_s": _dino("vit_small_patch16_224.dino", width=384, parameters=21_666_048),
    "dino_b": _dino("vit_base_patch16_224.dino", width=768, parameters=85_799_424),
    # The papers use the distilled weights, without their distillation token.
    "deit_ti": _deit("deit_tiny_distilled_patch16_224.fb_in1k", width=192, parameters=5_524_608),
    "deit_s": _deit("deit_small_distilled_patch16_224.fb_in1k", width=384, parameters=21_666_048),
    "deit_b": _deit("deit_base_distilled_patch16_224.fb_in1k", width=768, parameters=85_799_424),
    "deit_ti_plain": _deit("deit_tiny_patch16_224.fb_in1k", width=192, parameters=5_524_608),
    "deit_s_plain": _deit("deit_small_patch16_224.fb_in1k", width=384, parameters=21_666_048),
    "deit_b_plain": _deit("deit_base_patch16_224.fb_in1k", width=768, parameters=85_799_424),
    "vit_nano": _small(128, heads=4, parameters=1_313_792),
    "vit_micro": _small(192, heads=6, parameters=2_855_424),
    "eva02_ti": _eva02("eva02_tiny_patch14_224.mim_in22k", depth=12, width=192, parameters=5_502_336),
    "eva02_s": _eva02("eva02_small_patch14_224.mim_in22k", depth=12, width=384, parameters=21_621_504),
    "eva02_b": _eva02("eva02_base_patch14_224.mim_in22k", depth=12, width=768, parameters=85_759_488),
    "eva02_l": _eva02("eva02_large_patch14_224.mim_m38m", depth=24, width=1024, parameters=303_269_824),
    **_resnets(),
    "mit_b0": _mit_imagenet("b0", 3_319_395, 32),
    "mit_b1": _mit_imagenet("b1", 13_151_427),
    "mit_b2": _mit_imagenet("b2", 24_196_291),
    "mit_b3": _mit_imagenet("b3", 44_072_131),
    "mit_b4": _mit_imagenet("b4", 60_842_691),
    "mit_b5": _mit_imagenet("b5", 81_443_011),
    "sam_b": _sam("samvit_base_patch16.sa1b", parameters=89_671_680),
}
