"""Naming schemes of checkpoints, and which of their tensors belong to the encoder (spec A.8, E).

=================  ====================================================================================================
official, timm     flat, or in ``model`` / ``module`` / ``state_dict``: DINOv2 (with and without registers), DINO, DeiT,
                   EVA02, DINOv3, SAM (``image_encoder.*``), and what timm saves
GKD stage          ``model`` with ``student.backbone.*``, ``teacher.backbone.*`` and three heads: the student alone
mmengine           ``state_dict`` with ``backbone.*`` and ``decode_head.*``: the backbone alone
training tools     unwrapped first by :mod:`segdistill.weights.wrappers`
transformers       ViT, DeiT, DINOv2 (with and without registers), DINOv3's ViTs (``embeddings.*``, ``*layer.*``),
                   SegFormer's encoder (:mod:`segdistill.weights.segformer`)
segdistill         ``backbone.*`` and ``mask_token``: our own stages
=================  ====================================================================================================

timm's own converters rename official keys. They are given a model of the file's sizes, so that they never resample
(they would use antialiasing and a pseudo-inverse, spec A.6). Tensors that timm drops silently are dropped here first,
with the reason in the report; any other tensor that disappears is an error.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from timm.models import convnext, eva, vision_transformer, vision_transformer_sam
from torch import Tensor

from segdistill.config import UserError
from segdistill.weights import segformer
from segdistill.weights.report import LoadReport, some
from segdistill.weights.wrappers import (
    SELF_DISTILLATION,
    inside,
    merged_lora,
    one_network,
    plain_names,
    unchunked,
)

State = dict[str, Tensor]
DINOV3_KERNEL = "embeddings.patch_embeddings.weight"  # in transformers' files
KERNEL, STUDENT, SAM = "patch_embed.proj.weight", "student.backbone.", "image_encoder."
HEAD = "decode_head."

OTHER_NETWORKS = {
    "GKD stage": (
        (r".*teacher\.backbone\.", "the teacher"),
        (r"(module\.)?(patch|fea|token)_head\.", "the distillation heads"),
    ),
    "mmengine": (
        (r"(decode|auxiliary)_head\.", "the task head"),
        (r"data_preprocessor\.", "the normalisation (each encoder has its own)"),
    ),
}

# Known parts of official files that encoders do not use. A key that the encoder has is never dropped.
NOT_ENCODER = (
    (r"(head|head_dist|lm_head|fc|classifier|cls_classifier|distillation_classifier|pre_logits)\.", "the classifier"),
    (r"(.*\.)?rope[._].*|.*\.(periods|freqs_cos|freqs_sin)$", "RoPE buffers (rebuilt)"),
    (r".*\.bias_mask$", "masks of biases"),
    (r"(projectors|norms|local_cls_norm)\.", "heads of the pre-training"),
    (r"(prompt_encoder|mask_head)\.|pixel_(mean|std)$|(image_encoder\.)?neck\.", "SAM's other parts"),
    (r"pooler\.", "the pooler"),
)  # fmt: skip

CONVERTERS: dict[str, Callable[..., State]] = {
    "VisionTransformer": vision_transformer.checkpoint_filter_fn,
    "Eva": eva.checkpoint_filter_fn,
    "VisionTransformerSAM": vision_transformer_sam.checkpoint_filter_fn,
    "ConvNeXt": convnext.checkpoint_filter_fn,
}

TRANSFORMERS = (
    (r"^(vit|deit|dinov2|dinov2_with_registers|dinov3_vit)\.", ""),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?", "patch_embed.proj."),
    (r"^(encoder\.|model\.)?layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
)
DINOV3 = ((r"^register_tokens$", "storage_tokens"), (r"\.up_proj\.", ".fc1."), (r"\.down_proj\.", ".fc2."))
DINOV3_GATED = (*DINOV3[:1], (r"\.gate_proj\.", ".w1."), (r"\.up_proj\.", ".w2."), (r"\.down_proj\.", ".w3."))


def encoder_state(content: Any, header: Mapping[str, str], encoder: Any, report: LoadReport) -> State:
    """The tensors of a file under the encoder's names; adds the layout and the dropped keys to ``report``."""
    state = merged_lora(tensors_of(content, report), content, report)
    if "encoder" in header or ("mask_token" in state and any(key.startswith("backbone.") for key in state)):
        report.layout = "segdistill"
        return state
    wanted = {key.removeprefix("backbone.") for key in encoder.state_dict()}
    state = segformer.by_stage(unchunked(_backbone(state, wanted, report), report))
    state = _leave_out(state, encoder.backbone, wanted, report)
    mask_token = state.pop("mask_token", None)
    state = _without_distillation_token(state, wanted, report)
    state = _timm_names(state, encoder.backbone, report)
    if "fc_norm.weight" in state and "fc_norm.weight" not in wanted and "norm.weight" not in state:
        state = {key.replace("fc_norm.", "norm.", 1): value for key, value in state.items()}  # EVA02 saved by timm
    state = {f"backbone.{key}": value for key, value in state.items()}
    if mask_token is not None:
        size = encoder.state_dict()["mask_token"].shape
        state["mask_token"] = mask_token.reshape(size) if mask_token.numel() == size.numel() else mask_token
    return state


def tensors_of(content: Any, report: LoadReport) -> State:
    """The dictionary of tensors inside a file's containers."""
    content = inside(content, report)
    names = [str(key) for key in content] if isinstance(content, Mapping) else []
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)} if names else {}
    if not state:
        what = f"its entries are {some(names)}" if names else f"it holds a {type(content).__name__}"
        raise UserError(f"'{report.source}' has no known weights: {what}; give a state dictionary")
    report.dropped |= {key: "entries that are no tensors" for key in names if key not in state}
    return plain_names(state, report)


def _backbone(state: State, wanted: set[str], report: LoadReport) -> State:
    """One network of those in the file, without its prefix."""
    if any(STUDENT in key for key in state) and not any(map(SELF_DISTILLATION.search, state)):
        return _without_others(state, "GKD stage", STUDENT, report)
    if any(key.startswith("backbone.") for key in state):
        heads = any(key.startswith((HEAD, "auxiliary_head.")) for key in state)
        return _without_others(state, "mmengine" if heads else "backbone.*", "backbone.", report)
    if all(key.startswith((HEAD, "auxiliary_head.")) for key in state):
        raise UserError(
            f"'{report.source}' has a task head ({HEAD}*) and no backbone.*: give the weights of its encoder in a "
            "file of their own, as encoder.weights"
        )
    if segformer.is_transformers(state):
        report.layout = "transformers"
        return segformer.authors_names(state, report)
    state = _common_prefix(one_network(state, report), wanted)
    if any(key.endswith(("embeddings.patch_embeddings.projection.weight", DINOV3_KERNEL)) for key in state):
        report.layout = "transformers"
        return _from_transformers(state)
    report.layout = report.layout or "official or timm"
    return dict(state)


def _without_others(state: State, layout: str, prefix: str, report: LoadReport) -> State:
    """The keys below ``prefix``; adds the others to the report."""
    report.layout = layout
    kept: State = {}
    for key, value in state.items():
        why = next((why for pattern, why in OTHER_NETWORKS.get(layout, ()) if re.match(pattern, key)), None)
        if prefix in key and why is None:
            kept[key.partition(prefix)[2]] = value
        elif layout == "GKD stage" and why is None:
            kept[key] = value
        else:
            report.dropped[key] = why or "other networks"
    return kept


def _common_prefix(state: State, wanted: set[str]) -> State:
    """``state`` without a prefix that all its names share and the encoder's names lack."""
    while state and not wanted & state.keys():
        first = {key.partition(".")[0] for key in state}
        shorter = {key.partition(".")[2]: value for key, value in state.items()}
        if len(first) > 1 or "" in shorter or any(key.startswith(f"{next(iter(first))}.") for key in wanted):
            break
        state = shorter
    return state


def _leave_out(state: State, backbone: Any, wanted: set[str], report: LoadReport) -> State:
    """``state`` without known parts that this encoder lacks."""
    named = (getattr(backbone, "pretrained_cfg", None) or {}).get("classifier") or ()
    classifier = tuple(f"{name}." for name in ((named,) if isinstance(named, str) else named))
    kept: State = {}
    for key, value in state.items():
        why = next((why for pattern, why in NOT_ENCODER if re.match(pattern, key)), None)
        if key.startswith(classifier):
            why = "the classifier"
        if why is None or key.removeprefix(SAM) in wanted:
            kept[key] = value
        else:
            report.dropped[key] = why
    return kept


def _without_distillation_token(state: State, wanted: set[str], report: LoadReport) -> State:
    """DeiT's distilled models as the papers use them: without the second token and its row of positions (spec A.6)."""
    if "dist_token" not in state or "dist_token" in wanted:
        return state
    rest = {key: value for key, value in state.items() if key != "dist_token"}
    report.dropped["dist_token"] = "the distillation token"
    if "pos_embed" in rest:
        rest["pos_embed"] = torch.cat([rest["pos_embed"][:, :1], rest["pos_embed"][:, 2:]], dim=1)
        report.changed["backbone.pos_embed"] = "without the distillation token's row"
    return rest


class _SameSizes:
    """A stand-in backbone for timm's converters, with the file's kernel and no positions: nothing to resample."""

    pos_embed = None

    def __init__(self, backbone: Any, kernel: Tensor | None) -> None:
        self._backbone = backbone
        self.patch_embed = SimpleNamespace(proj=SimpleNamespace(weight=kernel))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


def _timm_names(state: State, backbone: Any, report: LoadReport) -> State:
    """Renames official keys to timm's; lost tensors are unexpected unless they are all zero."""
    family = type(backbone).__name__
    given = dict(state)
    kernel = given.get(KERNEL)
    if family not in CONVERTERS or (kernel is not None and kernel.ndim != 4):
        return state
    if family == "VisionTransformer":
        given["mask_token"] = torch.zeros(0)  # timm recognises DINOv2's files by it, and drops it
    with contextlib.redirect_stdout(io.StringIO()):  # timm prints a line for DINOv3 models without bias
        named = CONVERTERS[family](given, _SameSizes(backbone, kernel))
    alive = {_storage(value) for value in named.values()}
    for key, value in state.items():
        if _storage(value) in alive:
            continue
        if key in named:  # registers: the CLS token takes its row of the positions
            report.changed[f"backbone.{key}"] = "merged with its position"
        elif value.nan_to_num().any():
            report.unexpected.append(key)
        else:
            report.dropped[key] = "unused zeros"
    return named


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _from_transformers(state: State) -> State:
    """Renames keys of transformers' files to the official ones; query, key and value become one.

    DINOv3's keys have no bias there, and a bias of 0 in the official files.
    """
    rules = TRANSFORMERS
    if any(key.endswith(DINOV3_KERNEL) for key in state):
        rules += DINOV3_GATED if any(".gate_proj." in key for key in state) else DINOV3
    named: State = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        named[key] = value
    for key in [key for key in named if ".attn.query." in key]:
        parts = [named.pop(key.replace(".query.", f".{part}."), None) for part in ("query", "key", "value")]
        if parts[1] is None and parts[0] is not None and key.endswith(".bias"):
            parts[1] = torch.zeros_like(parts[0])
        named[key.replace(".query.", ".qkv.")] = torch.cat([part for part in parts if part is not None])
    return named
