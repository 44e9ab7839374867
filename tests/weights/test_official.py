"""Official checkpoints, read as they are: equal to an independent forward pass, every key accounted for."""

from __future__ import annotations

import argparse

import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import eva, vision_transformer
from torch import nn
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from official import (
    DEPTH,
    EVA,
    HEADS,
    TINY,
    VIT,
    WIDTH,
    deit_state,
    dinov2_state,
    eva_state,
    fill,
    gain_shapes,
    gkd_file,
    install,
    load,
    vit_shapes,
)  # fmt: skip
from segdistill.config import UserError
from segdistill.ops import generator
from segdistill.weights import load_encoder_weights, save_encoder


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    install(monkeypatch)


def picture(side: int) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=generator("picture"))


def normal(encoder, images: torch.Tensor) -> torch.Tensor:
    return (images - encoder.mean) / encoder.std


def everything(features) -> torch.Tensor:
    return torch.cat([features.cls[:, None], features.tokens[0]], 1)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def dinov2_of_transformers() -> Dinov2Model:
    """transformers' DINOv2 with weights that are not the initial ones."""
    config = Dinov2Config(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=56, patch_size=14
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator("jitter", index)))
    return model


def official_dinov2(model: Dinov2Model) -> dict[str, torch.Tensor]:
    """The flat file that Meta would have published of ``model``, module by module."""
    embed = model.embeddings
    state = {
        "cls_token": embed.cls_token, "mask_token": embed.mask_token, "pos_embed": embed.position_embeddings,
        "patch_embed.proj.weight": embed.patch_embeddings.projection.weight,
        "patch_embed.proj.bias": embed.patch_embeddings.projection.bias,
        "norm.weight": model.layernorm.weight, "norm.bias": model.layernorm.bias,
    }  # fmt: skip
    for index, layer in enumerate(model.encoder.layer):
        b, attention = f"blocks.{index}.", layer.attention
        state |= {f"{b}ls1.gamma": layer.layer_scale1.lambda1, f"{b}ls2.gamma": layer.layer_scale2.lambda1}
        for part in ("weight", "bias"):
            parts = [getattr(getattr(attention, f"{name}_proj"), part) for name in "qkv"]
            state[f"{b}attn.qkv.{part}"] = torch.cat(parts)
            state[f"{b}attn.proj.{part}"] = getattr(attention.o_proj, part)
            for name in ("norm1", "norm2"):
                state[f"{b}{name}.{part}"] = getattr(getattr(layer, name), part)
            for name in ("fc1", "fc2"):
                state[f"{b}mlp.{name}.{part}"] = getattr(getattr(layer.mlp, name), part)
    return {key: value.detach().clone() for key, value in state.items()}


@torch.no_grad()
def test_dinov2_equals_transformers_with_and_without_masks(tmp_path):
    model = dinov2_of_transformers()
    torch.save(official_dinov2(model), tmp_path / "dinov2_vits14_pretrain.pth")
    encoder = load("tiny_dinov2", tmp_path / "dinov2_vits14_pretrain.pth")
    images = picture(56)
    hidden = torch.rand(2, 16, generator=generator("hidden")) < 0.5
    close(everything(encoder(images)), model(normal(encoder, images)).last_hidden_state)
    masked = model(normal(encoder, images), bool_masked_pos=hidden).last_hidden_state
    close(everything(encoder(images, hidden=hidden)), masked)
    report = encoder.loaded
    assert (report.share, report.missing, report.dropped, report.changed) == (1.0, [], {}, {})
    assert sorted(report.loaded) == sorted(encoder.state_dict())


@torch.no_grad()
def test_hub_files_of_transformers_load_too(tmp_path):
    model = dinov2_of_transformers()
    model.save_pretrained(tmp_path)
    assert "encoder.layer.0.attention.attention.query.weight" in load_file(tmp_path / "model.safetensors")
    encoder = load("tiny_dinov2", tmp_path / "model.safetensors")
    images = picture(56)
    close(everything(encoder(images)), model(normal(encoder, images)).last_hidden_state)
    assert encoder.loaded.layout == "transformers"


@torch.no_grad()
def test_vit_files_of_transformers_load_too(tmp_path):
    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        image_size=48, patch_size=16, layer_norm_eps=1e-6,
    )  # fmt: skip
    model = ViTModel(config).eval()
    model.save_pretrained(tmp_path)
    encoder = load("tiny_deit", tmp_path / "model.safetensors")
    images = picture(48)
    close(everything(encoder(images)), model(normal(encoder, images)).last_hidden_state)
    assert set(encoder.loaded.dropped.values()) == {"the pooler"}
    assert encoder.loaded.missing == ["mask_token"]


def plain_vit(state: dict[str, torch.Tensor], patch: int, side: int, **kwargs) -> nn.Module:
    """timm's own network, filled strictly."""
    model = VIT(img_size=side, patch_size=patch, num_classes=0, **kwargs).eval()
    model.load_state_dict(state)
    return model


@torch.no_grad()
def test_distilled_deit_is_used_without_its_second_token(tmp_path):
    state = deit_state()
    torch.save({"model": state}, tmp_path / "deit_small_distilled_patch16_224.pth")
    encoder = load("tiny_deit", tmp_path / "deit_small_distilled_patch16_224.pth")
    rest = {key: value for key, value in state.items() if not key.startswith(("head", "dist_token"))}
    rest["pos_embed"] = state["pos_embed"][:, [0, *range(2, 11)]]
    images = picture(48)
    close(everything(encoder(images)), plain_vit(rest, 16, 48).forward_features(normal(encoder, images)))
    report = encoder.loaded
    assert set(report.dropped) == {"dist_token", "head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    assert report.missing == ["mask_token"]
    assert encoder.mask_token.abs().max() == 0
    assert report.changed == {"backbone.pos_embed": "without the distillation token's row"}
    assert report.share > 0.99


@torch.no_grad()
def test_dino_is_flat(tmp_path):
    state = fill(vit_shapes(16, 1 + 9))
    torch.save(state, tmp_path / "dino_deitsmall16_pretrain.pth")
    encoder = load("tiny_deit", tmp_path / "dino_deitsmall16_pretrain.pth")
    images = picture(48)
    close(everything(encoder(images)), plain_vit(state, 16, 48).forward_features(normal(encoder, images)))
    assert (encoder.loaded.missing, encoder.loaded.dropped) == (["mask_token"], {})


@torch.no_grad()
@pytest.mark.parametrize("container", ["module", "model"])
@pytest.mark.parametrize("name", ["tiny_eva_fused", "tiny_eva_split"])
def test_eva02_equals_timm_with_its_own_loader_and_keeps_its_final_norm(tmp_path, name, container):
    """timm moves the final norm behind its pooling; there it is put on every token."""
    state = eva_state(split=name == "tiny_eva_split")
    torch.save({container: state}, tmp_path / "eva02_pt.pt")
    encoder = load(name, tmp_path / "eva02_pt.pt")
    theirs = TINY[name][1](img_size=56, patch_size=14, num_classes=0, global_pool="avg").eval()
    theirs.load_state_dict(eva.checkpoint_filter_fn(dict(state), theirs))
    images = picture(56)
    close(everything(encoder(images)), theirs.fc_norm(theirs.forward_features(normal(encoder, images))))
    assert torch.equal(encoder.mask_token, state["mask_token"])
    assert torch.equal(encoder.backbone.norm.weight, state["norm.weight"])
    reasons = {key: why for key, why in encoder.loaded.dropped.items() if "rope" not in key}
    assert reasons == {"lm_head.weight": "the classifier", "lm_head.bias": "the classifier"}
    assert {"rope.freqs_cos", "rope.freqs_sin", "blocks.1.attn.rope.freqs_cos"} < set(encoder.loaded.dropped)
    assert (encoder.loaded.share, encoder.loaded.missing) == (1.0, [])


@torch.no_grad()
def test_eva02_saved_by_timm_brings_its_norm_back(tmp_path):
    theirs = EVA(img_size=56, patch_size=14, num_classes=7, global_pool="avg").eval()
    nn.init.normal_(theirs.fc_norm.weight, generator=generator("norm"))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    encoder = load("tiny_eva_fused", tmp_path / "model.safetensors")
    images = picture(56)
    close(everything(encoder(images)), theirs.fc_norm(theirs.forward_features(normal(encoder, images))))
    assert sorted(encoder.loaded.dropped) == ["head.bias", "head.weight"]


@torch.no_grad()
def test_a_stage_of_the_authors_hands_over_its_student_alone(tmp_path):
    """The teacher, the heads, the average and the settings stay behind; the file holds an argparse.Namespace."""
    student = fill(vit_shapes(16, 1 + 9) | {"mask_token": (1, WIDTH)})
    content = gkd_file(student) | {"args": argparse.Namespace(lr=5e-4, student_path="", mask_ratio=[0.5])}
    torch.save(content, tmp_path / "checkpoint_99.pth")
    encoder = load("tiny_deit", tmp_path / "checkpoint_99.pth")
    for key, value in student.items():
        ours = encoder.mask_token[0] if key == "mask_token" else encoder.state_dict()[f"backbone.{key}"]
        assert torch.equal(ours, value), key
    report = encoder.loaded
    assert (report.layout, report.share, report.missing, report.changed) == ("GKD stage", 1.0, [], {})
    assert report.dropped["teacher.backbone.norm.weight"] == "the teacher"
    assert report.dropped["token_head.proj_q.1.bias"] == "the distillation heads"
    assert {"args", "model_ema", "optimizer"} < set(report.dropped)
    everywhere = {key for key in content["model"] if not key.startswith("student")}
    assert set(report.dropped) == everywhere | set(content) - {"model"}
    line = report.summary()
    assert "\n" not in line
    assert "100.00 % of the parameters" in line
    assert "24 of the distillation heads" in line


def test_the_authors_dino_student_keeps_its_layer_scale(tmp_path):
    """timm's DINO has none: without the setting the gains are unexpected, never dropped (spec A.9, 2)."""
    student = fill(vit_shapes(16, 1 + 9) | {"mask_token": (1, WIDTH)} | gain_shapes())
    path = tmp_path / "checkpoint_99.pth"
    torch.save(gkd_file(student), path)
    with pytest.raises(UserError, match=r"unexpected backbone.blocks.0.ls1.gamma.*set layer_scale: true"):
        load("tiny_deit", path)
    encoder = load("tiny_deit", path, layer_scale=True)
    assert torch.equal(encoder.backbone.blocks[1].ls2.gamma, student["blocks.1.ls2.gamma"])
    images = picture(48)
    theirs = plain_vit({k: v for k, v in student.items() if k != "mask_token"}, 16, 48, init_values=1.0)
    with torch.no_grad():
        close(everything(encoder(images)), theirs.forward_features(normal(encoder, images)))
    save_encoder(encoder, tmp_path / "stage" / "encoder.safetensors")
    again = load("tiny_deit", tmp_path / "stage", layer_scale=True)
    assert torch.equal(again.backbone.blocks[1].ls2.gamma, student["blocks.1.ls2.gamma"])


def test_layer_scale_starts_at_one_where_the_file_has_none(tmp_path):
    """How the authors' DINO student begins: gains of 1 change nothing."""
    torch.save(fill(vit_shapes(16, 1 + 9)), tmp_path / "dino.pth")
    scaled, plain = (load("tiny_deit", tmp_path / "dino.pth", layer_scale=flag) for flag in (True, False))
    images = picture(48)
    close(everything(scaled(images)), everything(plain(images)))
    assert set(scaled.loaded.missing) == {"mask_token"} | {f"backbone.{key}" for key in gain_shapes()}
    assert "not in the file" in scaled.loaded.summary()


def test_gains_that_are_not_neutral_may_not_be_missing(tmp_path):
    torch.save({k: v for k, v in dinov2_state().items() if "gamma" not in k}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"missing backbone.blocks.0.ls1.gamma, .*; unexpected nothing; \d\d.\d %"):
        load("tiny_dinov2", tmp_path / "file.pth")


def test_a_task_checkpoint_gives_its_encoder(tmp_path):
    state = dinov2_state()
    stored = {f"backbone.{key}": value for key, value in state.items()}
    stored |= {"decode_head.cls_embed.weight": torch.ones(20, 8), "data_preprocessor.mean": torch.ones(3)}
    torch.save({"meta": {"iter": 40000}, "state_dict": stored, "optimizer": {}}, tmp_path / "iter_40000.pth")
    encoder = load("tiny_dinov2", tmp_path / "iter_40000.pth")
    assert torch.equal(encoder.backbone.norm.weight, state["norm.weight"])
    assert torch.equal(encoder.mask_token[0], state["mask_token"])
    assert encoder.loaded.dropped["decode_head.cls_embed.weight"] == "the task head"
    assert set(encoder.loaded.dropped) == set(stored) - {f"backbone.{key}" for key in state} | {"meta", "optimizer"}


def test_wrapped_and_half_precision_files_load(tmp_path):
    state = dinov2_state()
    torch.save({"model": {f"module.{key}": value.half() for key, value in state.items()}}, tmp_path / "ddp.pth")
    encoder = load("tiny_dinov2", tmp_path / "ddp.pth")
    for key, value in encoder.state_dict().items():
        assert value.dtype == torch.float32
        if key != "mask_token":
            assert torch.equal(value, state[key.removeprefix("backbone.")].half().float())


def spoil(change) -> dict[str, torch.Tensor]:
    state = dinov2_state()
    change(state)
    return state


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (spoil(lambda s: s.update(extra=torch.ones(2))), "missing nothing; unexpected backbone.extra; 100.0 %"),
        (spoil(lambda s: s.pop("blocks.1.mlp.fc1.weight")), "missing backbone.blocks.1.mlp.fc1.weight"),
        (spoil(lambda s: s.pop("cls_token")), "missing backbone.cls_token"),
        (spoil(lambda s: s["norm.bias"].fill_(float("inf"))), "not finite: backbone.norm.bias"),
        (spoil(lambda s: s.update(pos_embed=torch.ones(1, 12, WIDTH))), "11 positions do not form the grid 3 x 3"),
        (spoil(lambda s: s.update(mask_token=torch.ones(3))), r"mask_token \(3,\) instead of \(1, 1, 24\)"),
        ({key: value for key, value in dinov2_state().items() if "blocks.1" not in key},
         "file has width 24 and depth 1, the encoder width 24 and depth 2: choose the encoder"),
        ({key: torch.cat([value, value], -1) for key, value in dinov2_state().items()},
         "file has width 48 and depth 2, the encoder width 24 and depth 2"),
        ({"epoch": 3, "metrics": {"miou": 1.0}}, "no known weights: its entries are epoch, metrics"),
        ([torch.ones(2)], "no known weights: it holds a list"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_user_errors(tmp_path, state, message):
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=message) as error:
        load("tiny_dinov2", tmp_path / "file.pth")
    assert "\n" not in str(error.value)


def test_a_neutral_tensor_may_be_missing_and_is_listed(tmp_path):
    """Without a bias a network computes what it computes with a bias of 0."""
    state = spoil(lambda s: s.pop("blocks.0.attn.proj.bias"))
    torch.save(state, tmp_path / "file.pth")
    encoder = load("tiny_dinov2", tmp_path / "file.pth")
    assert encoder.loaded.missing == ["backbone.blocks.0.attn.proj.bias"]
    assert encoder.backbone.blocks[0].attn.proj.bias.abs().max() == 0


def test_fewer_than_95_percent_are_an_error_even_where_all_that_is_missing_is_neutral(tmp_path):
    encoder = load("tiny_dinov2", "random")
    with torch.no_grad():
        for block in encoder.backbone.blocks:
            block.mlp.fc1.weight.zero_()
    torch.save({k: v for k, v in dinov2_state().items() if "mlp.fc1.weight" not in k}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"does not fit tiny_dinov2: .*; \d\d.\d % of the parameters are there"):
        load_encoder_weights(encoder, str(tmp_path / "file.pth"))


def test_a_missing_mask_token_is_zero_afterwards(tmp_path):
    encoder = load("tiny_deit", "random")
    nn.init.ones_(encoder.mask_token)
    torch.save(fill(vit_shapes(16, 1 + 9)), tmp_path / "dino.pth")
    report = load_encoder_weights(encoder, str(tmp_path / "dino.pth"))
    assert report.missing == ["mask_token"]
    assert encoder.mask_token.abs().max() == 0


def test_timm_resamples_other_weights_than_the_papers(tmp_path):
    """timm's loader, given the same file, would silently fill in antialiased positions and another kernel."""
    state = dinov2_state()
    torch.save(state, tmp_path / "file.pth")
    settings = {"patch": 16, "image_size": (32, 32)}
    papers, timm = (load("tiny_dinov2", tmp_path / "file.pth", resample=how, **settings) for how in ("papers", "timm"))
    theirs = VIT(img_size=32, patch_size=16, num_classes=0, init_values=1e-5)
    theirs.load_state_dict(vision_transformer.checkpoint_filter_fn(dict(state), theirs))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(timm.backbone.state_dict()[key], value)
        resampled = key in ("pos_embed", "patch_embed.proj.weight")
        assert torch.equal(papers.backbone.state_dict()[key], value) != resampled, key
    assert papers.loaded.changed == {
        "backbone.pos_embed": "4x4 -> 2x2, papers",
        "backbone.patch_embed.proj.weight": "14x14 -> 16x16, papers",
    }
