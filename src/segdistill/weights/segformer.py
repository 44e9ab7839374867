"""Names of SegFormer's encoder in transformers' files, such as nvidia/mit-b5, and in the authors' own.

In transformers' files the key and value matrices are apart, and the file may have a classifier or SegFormer's decode
head as well. :class:`segdistill.encoders.mit.MiT` groups the authors' parts by stage.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from segdistill.weights.report import LoadReport

MARK = re.compile(r"(^|\.)encoder\.patch_embeddings\.0\.proj\.weight$")
ENCODER = re.compile(r"^(segformer\.)?encoder\.")
AUTHORS = re.compile(r"^(patch_embed|block|norm)(\d)\.")
STAGE = {"patch_embed": "embed", "block": "blocks", "norm": "norm"}
RULES = (
    (r"^patch_embeddings\.(\d+)\.layer_norm\.", r"patch_embed\1.norm."),
    (r"^patch_embeddings\.(\d+)\.", r"patch_embed\1."),
    (r"^layer_norm\.(\d+)\.", r"norm\1."),
    (r"^block\.(\d+)\.", r"block\1."),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.(key|value|sr)\.", r".attn.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
)


def is_transformers(state: dict[str, Tensor]) -> bool:
    """Whether these are the names of transformers' SegFormer."""
    return any(map(MARK.search, state))


def authors_names(state: dict[str, Tensor], report: LoadReport) -> dict[str, Tensor]:
    """The encoder's tensors by the authors' names; the report lists the other networks' keys."""
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        if not ENCODER.match(key):
            report.dropped[key] = "the classifier or task head"
            continue
        key = ENCODER.sub("", key)
        for pattern, replacement in RULES:
            key = re.sub(pattern, replacement, key)
        key = re.sub(r"^(patch_embed|norm|block)(\d+)", lambda found: f"{found[1]}{int(found[2]) + 1}", key)
        named[key] = value
    for key in [key for key in named if ".attn.key." in key]:
        pair = named.pop(key), named.pop(key.replace(".key.", ".value."), None)
        named[key.replace(".key.", ".kv.")] = torch.cat([part for part in pair if part is not None])
    return named


def by_stage(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors by our names; those of other networks are left as they are."""
    if "patch_embed1.proj.weight" not in state:
        return state
    return {AUTHORS.sub(lambda found: f"stage{found[2]}.{STAGE[found[1]]}.", key): state[key] for key in state}
