"""Families whose files timm converts: DINOv2 with registers, DINOv3, SAM, ConvNeXt. Names by timm, sizes by us."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, DINOv3ViTConfig, DINOv3ViTModel

from official import DEPTH, HEADS, VIT, WIDTH, Bare, dinov2_state, fill, noise
from segdistill.config import UserError
from segdistill.ops import generator
from segdistill.weights import load_encoder_weights, resample_kernel, resample_positions, save_encoder

REGISTERS = partial(
    VIT, patch_size=14, num_classes=0, init_values=1e-5, reg_tokens=4, no_embed_class=True, global_pool="token"
)
DINOV3 = partial(
    Eva, patch_size=16, embed_dim=WIDTH, depth=DEPTH, num_heads=1, num_reg_tokens=4, use_rot_pos_emb=True,
    use_abs_pos_emb=False, init_values=1e-5, rope_type="dinov3", rope_rotate_half=True, num_classes=0,
    global_pool="token", dynamic_img_size=True,
)  # fmt: skip
SAM = partial(
    VisionTransformerSAM, patch_size=16, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, use_rel_pos=True,
    window_size=2, global_attn_indexes=(1,), neck_chans=8, num_classes=0,
)  # fmt: skip


def with_registers() -> dict[str, torch.Tensor]:
    return dinov2_state() | {"register_tokens": noise(1, 4, WIDTH)}


@torch.no_grad()
def test_registers_equal_transformers(tmp_path):
    """Meta's file has a position for the CLS token; timm has it inside the token."""
    config = Dinov2WithRegistersConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=56, patch_size=14
    )
    model = Dinov2WithRegistersModel(config).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator("jitter", index)))
    model.save_pretrained(tmp_path)
    encoder = Bare(REGISTERS(img_size=56).eval(), (4, 4))
    report = load_encoder_weights(encoder, str(tmp_path / "model.safetensors"))
    images = torch.rand(2, 3, 56, 56, generator=generator("picture"))
    torch.testing.assert_close(
        encoder.backbone.forward_features(images), model(images).last_hidden_state, rtol=1e-5, atol=1e-5
    )
    assert report.changed == {"backbone.cls_token": "merged with its position"}


def test_registers_of_the_official_file(tmp_path):
    state = with_registers()
    torch.save(state, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    encoder = Bare(REGISTERS(img_size=56), (4, 4))
    report = load_encoder_weights(encoder, str(tmp_path / "dinov2_vits14_reg4_pretrain.pth"))
    assert torch.equal(encoder.backbone.reg_token, state["register_tokens"])
    assert torch.equal(encoder.backbone.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
    assert torch.equal(encoder.backbone.pos_embed, state["pos_embed"][:, 1:])
    assert torch.equal(encoder.mask_token[0], state["mask_token"])
    assert report.share == 1.0


@pytest.mark.parametrize("how", ["papers", "hub", "timm"])
def test_registers_at_another_grid_keep_their_prefix(tmp_path, how):
    state = with_registers()
    torch.save(state, tmp_path / "file.pth")
    encoder = Bare(REGISTERS(img_size=84), (6, 6))
    load_encoder_weights(encoder, str(tmp_path / "file.pth"), resample=how)
    expected = resample_positions(state["pos_embed"], (4, 4), (6, 6), how=how)[:, 1:]
    torch.testing.assert_close(encoder.backbone.pos_embed.data, expected)


def test_registers_in_a_network_without_them_are_an_error(tmp_path):
    torch.save(with_registers(), tmp_path / "file.pth")
    encoder = Bare(VIT(img_size=56, patch_size=14, num_classes=0, init_values=1e-5), (4, 4))
    with pytest.raises(UserError, match=r"unexpected backbone\.reg_token"):
        load_encoder_weights(encoder, str(tmp_path / "file.pth"))


def dinov3_state(*, bias: float) -> dict[str, torch.Tensor]:
    """Meta's names: storage tokens, a fused bias with a mask that takes the keys' part out."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH), "storage_tokens": (1, 4, WIDTH), "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16), "patch_embed.proj.bias": (WIDTH,),
        "rope_embed.periods": (6,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
    }  # fmt: skip
    for index in range(DEPTH):
        b = f"blocks.{index}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{b}{norm}.weight": (WIDTH,), f"{b}{norm}.bias": (WIDTH,)}
        shapes |= {f"{b}attn.qkv.weight": (3 * WIDTH, WIDTH), f"{b}attn.proj.weight": (WIDTH, WIDTH)}
        shapes |= {f"{b}attn.proj.bias": (WIDTH,), f"{b}ls1.gamma": (WIDTH,), f"{b}ls2.gamma": (WIDTH,)}
        shapes |= {f"{b}mlp.fc1.weight": (4 * WIDTH, WIDTH), f"{b}mlp.fc1.bias": (4 * WIDTH,)}
        shapes |= {f"{b}mlp.fc2.weight": (WIDTH, 4 * WIDTH), f"{b}mlp.fc2.bias": (WIDTH,)}
    state = fill(shapes)
    for index in range(DEPTH):
        state[f"blocks.{index}.attn.qkv.bias"] = bias * noise(3 * WIDTH, name=index)
        mask = torch.ones(3 * WIDTH)
        mask[WIDTH : 2 * WIDTH] = 0
        state[f"blocks.{index}.attn.qkv.bias_mask"] = mask
    return state


def test_dinov3_with_and_without_biases(tmp_path, capsys):
    for bias in (0.0, 1.0):
        state = dinov3_state(bias=bias)
        torch.save(state, tmp_path / "dinov3.pth")
        encoder = Bare(DINOV3(img_size=32, qkv_bias=bool(bias)), (2, 2))
        report = load_encoder_weights(encoder, str(tmp_path / "dinov3.pth"))
        backbone = encoder.backbone
        assert torch.equal(backbone.reg_token, state["storage_tokens"])
        assert torch.equal(backbone.blocks[1].gamma_2, state["blocks.1.ls2.gamma"])
        assert torch.equal(encoder.mask_token[0], state["mask_token"])
        if bias:
            assert torch.equal(backbone.blocks[1].attn.q_bias, state["blocks.1.attn.qkv.bias"][:WIDTH])
            assert torch.equal(backbone.blocks[1].attn.v_bias, state["blocks.1.attn.qkv.bias"][2 * WIDTH :])
        zeros = [key for key, why in report.dropped.items() if why == "unused zeros"]
        assert zeros == ([] if bias else [f"blocks.{index}.attn.qkv.bias" for index in range(DEPTH)])
        assert report.dropped["rope_embed.periods"] == "RoPE buffers (rebuilt)"
        assert report.share == 1.0
    assert capsys.readouterr().out == ""


@torch.no_grad()
@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_equals_transformers(tmp_path, gated, published):
    """The keys have no bias in these files; S+ and H+ have a gate. Published files lack what newer versions write."""
    hidden = 64
    config = DINOv3ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=hidden, image_size=32,
        num_register_tokens=4, use_gated_mlp=gated, hidden_act="silu" if gated else "gelu",
    )  # fmt: skip
    model = DINOv3ViTModel(config).eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator("filled", index)))
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    written = load_file(path)
    if published:
        save_file({key.removeprefix("model."): value for key, value in written.items()}, path)
    build = partial(DINOV3, num_heads=HEADS, rope_temperature=100, norm_layer=partial(nn.LayerNorm, eps=1e-5))
    gate = {"swiglu_mlp": True, "swiglu_align_to": 8} if gated else {}
    encoder = Bare(build(img_size=32, qkv_bias=True, mlp_ratio=hidden / WIDTH, **gate).eval(), (2, 2))
    report = load_encoder_weights(encoder, str(path))
    assert (report.layout, report.share, report.missing, report.dropped) == ("transformers", 1.0, [], {})
    assert torch.equal(encoder.mask_token, model.embeddings.mask_token)
    for size in ((32, 32), (48, 32)):
        images = torch.rand(2, 3, *size, generator=generator("picture"))
        torch.testing.assert_close(
            encoder.backbone.forward_features(images), model(images).last_hidden_state, rtol=1e-5, atol=1e-5
        )


def test_a_bias_without_a_place_is_an_error(tmp_path):
    """timm would leave it out without a word."""
    torch.save(dinov3_state(bias=1.0), tmp_path / "dinov3.pth")
    with pytest.raises(UserError, match=r"unexpected blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias"):
        load_encoder_weights(Bare(DINOV3(img_size=32, qkv_bias=False), (2, 2)), str(tmp_path / "dinov3.pth"))


def test_dinov3_kernels_follow_the_papers_unless_told_otherwise(tmp_path):
    state = dinov3_state(bias=0.0)
    torch.save(state, tmp_path / "dinov3.pth")
    for how in ("papers", "timm"):
        encoder = Bare(DINOV3(img_size=28, patch_size=14, qkv_bias=False), (2, 2))
        load_encoder_weights(encoder, str(tmp_path / "dinov3.pth"), resample=how)
        expected = resample_kernel(state["patch_embed.proj.weight"], (14, 14), how)
        assert torch.equal(encoder.backbone.patch_embed.proj.weight, expected)


def sam_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Meta's names for what ``network`` holds, and the parts of SAM that are no encoder."""
    state = {}
    for key, value in network.state_dict().items():
        name = key.replace("mlp.fc", "mlp.lin")
        state[f"image_encoder.{name}"] = noise(*value.shape, name=key)
    other = {"prompt_encoder.not_a_point_embed.weight": (1, 8), "mask_head.iou_token.weight": (1, 8)}
    return state | fill(other)


def test_sam_loads_its_image_encoder(tmp_path):
    encoder = Bare(SAM(img_size=64), (4, 4))
    state = sam_state(encoder.backbone)
    torch.save(state, tmp_path / "sam_vit_b.pth")
    report = load_encoder_weights(encoder, str(tmp_path / "sam_vit_b.pth"))
    for key, value in encoder.backbone.state_dict().items():
        assert torch.equal(value, state["image_encoder." + key.replace("mlp.fc", "mlp.lin")]), key
    assert set(report.dropped.values()) == {"SAM's other parts"}
    assert report.missing == ["mask_token"]


def test_sam_at_another_size_resamples_both_kinds_of_positions(tmp_path):
    state = sam_state(SAM(img_size=64))
    torch.save(state, tmp_path / "sam_vit_b.pth")
    encoder = Bare(SAM(img_size=96), (6, 6))
    report = load_encoder_weights(encoder, str(tmp_path / "sam_vit_b.pth"))
    positions = state["image_encoder.pos_embed"].flatten(1, 2)
    expected = resample_positions(positions, (4, 4), (6, 6), prefix=0).unflatten(1, (6, 6))
    assert torch.equal(encoder.backbone.pos_embed, expected)
    old = state["image_encoder.blocks.1.attn.rel_pos_h"]  # 7 rows for 11: the middle one stays
    new = encoder.backbone.blocks[1].attn.rel_pos_h
    assert (old.shape[0], new.shape[0]) == (7, 11)
    torch.testing.assert_close(new[5], old[3])
    assert report.changed["backbone.blocks.1.attn.rel_pos_w"] == "7 -> 11 places, linear"


def test_sam_without_its_neck_leaves_it_out(tmp_path):
    torch.save(sam_state(SAM(img_size=64)), tmp_path / "sam_vit_b.pth")
    report = load_encoder_weights(Bare(SAM(img_size=64, neck_chans=0), (4, 4)), str(tmp_path / "sam_vit_b.pth"))
    assert "image_encoder.neck.0.weight" in report.dropped


def test_convnext_of_dinov3(tmp_path):
    """Meta's names, with the doubled norm that timm's converter leaves out."""
    network = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 8, 16, 24), num_classes=0)
    encoder = Bare(network, (2, 2))
    state = {}
    for key, value in network.state_dict().items():
        name = key.replace("stem.", "downsample_layers.0.").replace("head.norm", "norm")
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace(".blocks.", ".")
        if ".downsample." in name:
            stage, part = name.removeprefix("stages.").split(".downsample.")
            name = f"downsample_layers.{stage}.{part}"
        state[name] = noise(*value.shape, name=key)
    assert {"downsample_layers.3.1.weight", "stages.2.0.pwconv2.bias", "norm.weight"} < set(state)
    state |= {"norms.3.weight": state["norm.weight"].clone(), "norms.3.bias": state["norm.bias"].clone()}
    torch.save(state, tmp_path / "convnext.pth")
    report = load_encoder_weights(encoder, str(tmp_path / "convnext.pth"))
    assert torch.equal(network.stages[2].blocks[0].mlp.fc2.bias, state["stages.2.0.pwconv2.bias"])
    assert torch.equal(network.stages[3].downsample[1].weight, state["downsample_layers.3.1.weight"])
    assert torch.equal(network.head.norm.weight, state["norm.weight"])
    assert (report.missing, set(report.dropped.values())) == (["mask_token"], {"heads of the pre-training"})


def test_counters_of_batch_norms_stay_integers(tmp_path):
    """Half precision is for weights: a counter of 100,001 would not survive it."""
    encoder, again = (Bare(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), (2, 2)) for _ in range(2))
    encoder.backbone[1].num_batches_tracked.fill_(100_001)
    save_encoder(encoder, tmp_path / "encoder.safetensors", half=True)
    load_encoder_weights(again, str(tmp_path))
    assert again.backbone[1].num_batches_tracked.item() == 100_001


def test_missing_statistics_are_no_neutral_tensors(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = {key: value for key, value in network.state_dict().items() if key != "1.running_var"}
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"missing backbone\.1\.running_var"):
        load_encoder_weights(Bare(network, (2, 2)), str(tmp_path / "file.pth"))
