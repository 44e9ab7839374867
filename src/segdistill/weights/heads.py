"""The authors' task decoder: the Mask2Former head of a mmengine checkpoint (``decode_head.*``) -> our Mask2Former.

The names on the left are mmdet 3's (``MSDeformAttnPixelDecoder``, ``Mask2FormerTransformerDecoder``, spec A.10), those
on the right transformers'. The two differ in names only, but for the queries' self-attention: one matrix for query,
key and value there, three here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import nn

from segdistill.config import UserError
from segdistill.weights.layouts import State, tensors_of
from segdistill.weights.reading import read_file
from segdistill.weights.report import LoadReport, some

PREFIX = "decode_head."
OURS_ALONE = ("criterion.",)  # the loss's class weights come from our settings
QKV = re.compile(r"(transformer\.decoder\.layers\.\d+\.self_attn)\.in_proj_(weight|bias)")

NAMES = (
    (r"^pixel_decoder\.input_convs\.(\d+)\.conv\.", r"pixel_decoder.input_projections.\1.0."),
    (r"^pixel_decoder\.input_convs\.(\d+)\.gn\.", r"pixel_decoder.input_projections.\1.1."),
    (r"^pixel_decoder\.level_encoding\.weight$", "pixel_decoder.level_embed"),
    (r"^pixel_decoder\.lateral_convs\.0\.conv\.", "pixel_decoder.adapter_1.0."),
    (r"^pixel_decoder\.lateral_convs\.0\.gn\.", "pixel_decoder.adapter_1.1."),
    (r"^pixel_decoder\.output_convs\.0\.conv\.", "pixel_decoder.layer_1.0."),
    (r"^pixel_decoder\.output_convs\.0\.gn\.", "pixel_decoder.layer_1.1."),
    (r"^pixel_decoder\.mask_feature\.", "pixel_decoder.mask_projection."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+)\.norms\.0\.", r"\1.self_attn_layer_norm."),
    (r"^(pixel_decoder\.encoder\.layers\.\d+)\.norms\.1\.", r"\1.final_layer_norm."),
    (r"^transformer_decoder\.post_norm\.", "transformer.decoder.layernorm."),
    (r"^transformer_decoder\.", "transformer.decoder."),
    (r"^(transformer\.decoder\.layers\.\d+)\.norms\.0\.", r"\1.cross_attn_layer_norm."),
    (r"^(transformer\.decoder\.layers\.\d+)\.norms\.1\.", r"\1.self_attn_layer_norm."),
    (r"^(transformer\.decoder\.layers\.\d+)\.norms\.2\.", r"\1.final_layer_norm."),
    (r"^(transformer\.decoder\.layers\.\d+\.(?:self|cross)_attn)\.attn\.", r"\1."),
    (r"\.ffn\.layers\.0\.0\.", ".fc1."),
    (r"\.ffn\.layers\.1\.", ".fc2."),
    (r"^query_embed\.", "transformer.queries_embedder."),
    (r"^query_feat\.", "transformer.queries_features."),
    (r"^level_embed\.", "transformer.level_embed."),
    (r"^cls_embed\.", "classifier."),
    (r"^mask_embed\.0\.", "transformer.decoder.mask_predictor.mask_embedder.0.0."),
    (r"^mask_embed\.2\.", "transformer.decoder.mask_predictor.mask_embedder.1.0."),
    (r"^mask_embed\.4\.", "transformer.decoder.mask_predictor.mask_embedder.2.0."),
)


def load_mask2former(decoder: nn.Module, path: Path) -> LoadReport:
    """Fill our Mask2Former from the ``decode_head.*`` of a task checkpoint; every key must find its place.

    A :class:`UserError` names what does not fit: another number of classes, another head.
    """
    content, _ = read_file(path)
    report = LoadReport(source=str(path), encoder="mask2former", layout="mmengine")
    stored = tensors_of(content, report)
    report.dropped |= {key: "other networks" for key in stored if not key.startswith(PREFIX)}
    head = {key.removeprefix(PREFIX): value for key, value in stored.items() if key.startswith(PREFIX)}
    if not head:
        raise UserError(f"'{path}' has no {PREFIX}*: give a task checkpoint, or train the decoder")
    state = mask2former_state(head)
    wanted: dict[str, Any] = {
        key: value for key, value in decoder.state_dict().items() if not key.startswith(OURS_ALONE)
    }
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or unexpected or wrong:
        raise UserError(
            f"the head of '{path}' does not fit this Mask2Former: missing {some(missing)}; unexpected "
            f"{some(unexpected)}; wrong {some(wrong)}"
        )
    decoder.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    report.loaded, report.share = list(wanted), 1.0
    return report


def mask2former_state(head: State) -> State:
    """mmdet's tensors (without ``decode_head.``) under our names."""
    state: State = {}
    for key, value in head.items():
        for pattern, replacement in NAMES:
            key = re.sub(pattern, replacement, key)
        packed = QKV.fullmatch(key)
        if packed:
            for name, part in zip("qkv", value.chunk(3), strict=True):
                state[f"{packed[1]}.{name}_proj.{packed[2]}"] = part
        else:
            state[key] = value
    return state
