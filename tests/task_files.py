"""A small segmenter, and the checkpoint that mmengine would have written of it: names, containers and log."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from official import DEPTH, VIT, WIDTH
from segdistill.encoders import ENCODERS, build_encoder
from segdistill.stages.base import ModelConfig
from segdistill.stages.task import build_model
from segdistill.tasks.table import TASKS

NARROW = {
    "type": "mask2former", "queries": 6, "width": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 2,
    "encoder_feedforward": 16, "decoder_feedforward": 24, "points": 32,
}  # fmt: skip


def install(monkeypatch):
    """Put the small encoder, four taps of two blocks, into the table."""
    small = replace(
        ENCODERS["deit_s"], build=VIT, patch=16, depth=DEPTH, width=WIDTH, taps=(0, 0, 1, 1), image_size=(48, 48)
    )
    monkeypatch.setitem(ENCODERS, "tiny_task", small)


def network(classes, **changes):
    """A segmenter with weights that no other one has, in evaluation mode."""
    model = ModelConfig.model_validate({"encoder": {"name": "tiny_task"}, "head": NARROW | changes})
    segmenter = build_model(
        TASKS["semantic"], model, build_encoder(model.encoder, seed=5), classes, seed=6, stage="source"
    ).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for parameter in segmenter.parameters():  # biases and gains too
            parameter += 0.1 * torch.randn_like(parameter)
    return segmenter


def mmdet_head(head):
    """The parameters of our Mask2Former, module by module, under the names of mmdet's."""
    state = {}

    def put(name, module):
        state.update({f"{name}.{key}": value for key, value in module.state_dict().items()})

    pixels, transformer = head.pixel_decoder, head.transformer
    for level, projection in enumerate(pixels.input_projections):
        put(f"pixel_decoder.input_convs.{level}.conv", projection[0])
        put(f"pixel_decoder.input_convs.{level}.gn", projection[1])
    for number, layer in enumerate(pixels.encoder.layers):
        name = f"pixel_decoder.encoder.layers.{number}"
        put(f"{name}.self_attn", layer.self_attn)
        for place, module in {"ffn.layers.0.0": layer.fc1, "ffn.layers.1": layer.fc2,
                              "norms.0": layer.self_attn_layer_norm,
                              "norms.1": layer.final_layer_norm}.items():  # fmt: skip
            put(f"{name}.{place}", module)
    state["pixel_decoder.level_encoding.weight"] = pixels.level_embed
    for name, module in {"lateral_convs": pixels.adapter_1, "output_convs": pixels.layer_1}.items():
        put(f"pixel_decoder.{name}.0.conv", module[0])
        put(f"pixel_decoder.{name}.0.gn", module[1])
    put("pixel_decoder.mask_feature", pixels.mask_projection)
    for number, layer in enumerate(transformer.decoder.layers):
        name, own = f"transformer_decoder.layers.{number}", layer.self_attn
        for part in ("weight", "bias"):
            packed = [getattr(getattr(own, f"{letter}_proj"), part) for letter in "qkv"]
            state[f"{name}.self_attn.attn.in_proj_{part}"] = torch.cat(packed)
        put(f"{name}.self_attn.attn.out_proj", own.out_proj)
        put(f"{name}.cross_attn.attn", layer.cross_attn)
        for place, module in {"ffn.layers.0.0": layer.fc1, "ffn.layers.1": layer.fc2,
                              "norms.0": layer.cross_attn_layer_norm, "norms.1": layer.self_attn_layer_norm,
                              "norms.2": layer.final_layer_norm}.items():  # fmt: skip
            put(f"{name}.{place}", module)
    put("transformer_decoder.post_norm", transformer.decoder.layernorm)
    for name, module in {"query_embed": transformer.queries_embedder, "query_feat": transformer.queries_features,
                         "level_embed": transformer.level_embed, "cls_embed": head.classifier}.items():  # fmt: skip
        put(name, module)
    for number, block in enumerate(transformer.decoder.mask_predictor.mask_embedder.children()):
        put(f"mask_embed.{2 * number}", next(block.children()))
    return state


def task_state(segmenter):
    """``backbone.*`` and ``decode_head.*``."""
    backbone = {key: value for key, value in segmenter.encoder.state_dict().items() if key.startswith("backbone.")}
    state = backbone | {f"decode_head.{key}": value for key, value in mmdet_head(segmenter.head).items()}
    return {key: value.detach().clone() for key, value in state.items()}


def save_task(path, state, classes=()):
    """As mmengine's hook writes it in training: weights, what they were trained on, optimiser and log."""
    module = ModuleType("mmengine.logging.history_buffer")
    buffer = type("HistoryBuffer", (), {"__module__": module.__name__})
    module.HistoryBuffer, log = buffer, buffer()
    log.__dict__.update(max_length=10, _log_history=np.array([0.5, 0.25]), _count_history=np.array([1, 1]))
    meta = {"epoch": 0, "iter": 40000, "cfg": "model = dict()", "mmengine_version": "0.10.1"}
    if classes:
        meta["dataset_meta"] = {"classes": tuple(classes), "palette": [[0, 0, 0]] * len(classes)}
    content = {
        "meta": meta,
        "state_dict": state,
        "message_hub": {"log_scalars": {"train/loss": log}, "runtime_info": {"iter": 40000, "loss": np.float64(1.5)}},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    }
    with pytest.MonkeyPatch.context() as patch:  # the class is gone when the file is read
        for name in ("mmengine", "mmengine.logging", module.__name__):
            patch.setitem(sys.modules, name, module)
        torch.save(content, path)
    return path
