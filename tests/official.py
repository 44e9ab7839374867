"""Small networks and the files that their authors would have published of them: exact key names, small widths."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from segdistill.encoders import ENCODERS, Encoder, EncoderConfig, build_encoder
from segdistill.ops import generator

WIDTH, DEPTH, HEADS = 24, 2, 2
VIT = partial(VisionTransformer, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)
EVA = partial(
    Eva, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=8 / 3, swiglu_mlp=True, use_rot_pos_emb=True,
    ref_feat_shape=(16, 16),
)  # fmt: skip

# The name of a real encoder, how its small relative is built, its patch and its native side in pixels.
TINY = {
    "tiny_dinov2": ("dinov2_s", partial(VIT, init_values=1e-5), 14, 56),
    "tiny_deit": ("deit_s", VIT, 16, 48),
    "tiny_eva_fused": ("eva02_s", EVA, 14, 56),
    "tiny_eva_split": ("eva02_b", partial(EVA, qkv_fused=False, scale_mlp=True), 14, 56),
}


def install(monkeypatch) -> None:
    """Put the small networks into the table of encoders."""
    for name, (real, build, patch, side) in TINY.items():
        record = replace(
            ENCODERS[real], build=build, patch=patch, depth=DEPTH, width=WIDTH, taps=(0, 1), image_size=(side, side)
        )
        monkeypatch.setitem(ENCODERS, name, record)


def load(name: str, path: Path, **settings) -> Encoder:
    return build_encoder(EncoderConfig(name=name, weights=str(path), **settings), seed=3).eval()


def noise(*shape: int, name: object = "") -> Tensor:
    return 0.5 * torch.randn(shape, generator=generator("official", str(name), *shape))


def fill(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Noise of the given shapes; gains near 1."""
    return {
        key: noise(*shape, name=key) * (0.2 if len(shape) == 1 else 1) + (1.0 if key.endswith("norm.weight") else 0)
        for key, shape in shapes.items()
    }


def block_shapes(index: int, hidden: int = 4 * WIDTH) -> dict[str, tuple[int, ...]]:
    """A block of DINO, DeiT and (with gains) DINOv2."""
    w, b = WIDTH, f"blocks.{index}."
    return {
        f"{b}norm1.weight": (w,), f"{b}norm1.bias": (w,), f"{b}attn.qkv.weight": (3 * w, w),
        f"{b}attn.qkv.bias": (3 * w,), f"{b}attn.proj.weight": (w, w), f"{b}attn.proj.bias": (w,),
        f"{b}norm2.weight": (w,), f"{b}norm2.bias": (w,), f"{b}mlp.fc1.weight": (hidden, w),
        f"{b}mlp.fc1.bias": (hidden,), f"{b}mlp.fc2.weight": (w, hidden), f"{b}mlp.fc2.bias": (w,),
    }  # fmt: skip


def vit_shapes(patch: int, rows: int) -> dict[str, tuple[int, ...]]:
    """DINO: flat, no head, no LayerScale, no mask token (spec E)."""
    shapes = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, rows, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, patch, patch), "patch_embed.proj.bias": (WIDTH,),
    }  # fmt: skip
    for index in range(DEPTH):
        shapes |= block_shapes(index)
    return shapes | {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}


def gain_shapes() -> dict[str, tuple[int, ...]]:
    return {f"blocks.{index}.ls{branch}.gamma": (WIDTH,) for index in range(DEPTH) for branch in (1, 2)}


def dinov2_state(rows: int = 1 + 4 * 4, patch: int = 14) -> dict[str, Tensor]:
    return fill(vit_shapes(patch, rows) | {"mask_token": (1, WIDTH)} | gain_shapes())


def deit_state(grid: int = 3) -> dict[str, Tensor]:
    """Distilled DeiT: a second token, its row of positions, two heads."""
    heads = {f"{name}.{part}": (10, WIDTH)[: 2 if part == "weight" else 1]
             for name in ("head", "head_dist") for part in ("weight", "bias")}  # fmt: skip
    return fill(vit_shapes(16, 2 + grid * grid) | {"dist_token": (1, 1, WIDTH)} | heads)


def eva_state(*, split: bool, grid: int = 4) -> dict[str, Tensor]:
    """EVA02 as its authors wrote it: S and Ti with fused projections, B and L with separate ones (spec E)."""
    w, hidden, head = WIDTH, int(WIDTH * 8 / 3), WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, w), "mask_token": (1, 1, w), "pos_embed": (1, 1 + grid * grid, w),
        "patch_embed.proj.weight": (w, 3, 14, 14), "patch_embed.proj.bias": (w,),
        "rope.freqs_cos": (grid * grid, head), "rope.freqs_sin": (grid * grid, head),
        "norm.weight": (w,), "norm.bias": (w,), "lm_head.weight": (32, w), "lm_head.bias": (32,),
    }  # fmt: skip
    for index in range(DEPTH):
        b = f"blocks.{index}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{b}{norm}.weight": (w,), f"{b}{norm}.bias": (w,)}
        shapes |= {f"{b}attn.q_bias": (w,), f"{b}attn.v_bias": (w,), f"{b}attn.proj.weight": (w, w)}
        shapes |= {f"{b}attn.proj.bias": (w,), f"{b}attn.rope.freqs_cos": (grid * grid, head)}
        shapes |= {f"{b}mlp.w3.weight": (w, hidden), f"{b}mlp.w3.bias": (w,)}
        if split:
            shapes |= {f"{b}attn.{name}_proj.weight": (w, w) for name in "qkv"}
            for name in ("w1", "w2"):
                shapes |= {f"{b}mlp.{name}.weight": (hidden, w), f"{b}mlp.{name}.bias": (hidden,)}
            shapes |= {f"{b}mlp.ffn_ln.weight": (hidden,), f"{b}mlp.ffn_ln.bias": (hidden,)}
        else:
            shapes |= {f"{b}attn.qkv.weight": (3 * w, w)}
            shapes |= {f"{b}mlp.w12.weight": (2 * hidden, w), f"{b}mlp.w12.bias": (2 * hidden,)}
    return fill(shapes)


def gkd_file(student: dict[str, Tensor]) -> dict[str, object]:
    """What the authors' stage 1 writes, without the optimiser's tensors (spec E)."""
    model = {f"student.backbone.{key}": value for key, value in student.items()}
    model |= {f"teacher.backbone.{key}": value + 1 for key, value in dinov2_state().items()}
    for head in ("patch_head", "fea_head", "token_head"):
        for projection in ("proj_q", "proj_v"):
            for layer, shape in ((0, (WIDTH,)), (1, (2 * WIDTH, WIDTH))):
                model[f"{head}.{projection}.{layer}.weight"] = noise(*shape)
                model[f"{head}.{projection}.{layer}.bias"] = noise(shape[0])
    average = {f"student.backbone.{key}": value - 1 for key, value in student.items()}
    return {"model": model, "model_ema": average, "optimizer": {"state": {}}, "lr_scheduler": {"t": 1}, "epoch": 99,
            "scaler": {"scale": 1.0}}  # fmt: skip


class Bare(nn.Module):
    """What the loader asks of an encoder, around any backbone."""

    def __init__(self, backbone: nn.Module, grid: tuple[int, int], name: str = "bare") -> None:
        super().__init__()
        self.name, self.grid, self.backbone = name, grid, backbone
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
