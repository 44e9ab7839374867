"""Removes what training tools add to checkpoints: containers, key prefixes, other networks.

============================  ==========================================================================================
``_orig_mod.``, ``module.``   torch.compile, DistributedDataParallel, FSDP, checkpointing: anywhere in a key
``model.``, ``encoder.`` ...  the prefix of one network in the file; other networks are dropped and reported
``teacher``, ``student``      DINO and DINOv2: the teacher, whose weights their authors publish
``blocks.<chunk>.<number>.``  DINOv2 under FSDP: the second number counts
``lora_A``, ``lora_B``        added to their weight where their scale is known (or they add nothing), else refused
============================  ==========================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from segdistill.config import UserError
from segdistill.weights.report import LoadReport, some

State = dict[str, Tensor]

CONTAINERS = (
    "state_dict_ema",  # timm's, which timm prefers as well
    "model", "module", "state_dict",  # beside them `model_ema` is never the network handed over (spec A.9)
    "teacher", "student", "model_ema", "ema", "network", "net",
)  # fmt: skip
STATES = re.compile(r"model|state_dict|teacher|student|.*ema.*")
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
ANCHOR = re.compile(  # a network's first layer, in every layout
    r"(?:^|\.)((?:image_encoder\.)?patch_embed\.proj\.weight"
    r"|(?:(?:vit|deit|dinov2|dinov2_with_registers|dinov3_vit)\.)?embeddings\.patch_embeddings\.(?:projection\.)?weight"
    r"|downsample_layers\.0\.0\.weight)$"
)
SELF_DISTILLATION = re.compile(r"(^|\.)(dino|ibot|koleo)\w*\.")
LORA = re.compile(r"(.+)\.lora_([AB])(?:\.([^.]+))??(?:\.weight)?")
PLACES = ("args", "config", "hyper_parameters", "lora_config", "peft_config", "hparams")


def inside(content: Any, report: LoadReport) -> Any:
    """The content of a file's containers; adds to the report which one was used and which were not."""
    steps: list[str] = []
    while isinstance(content, Mapping):
        name = next((name for name in CONTAINERS if isinstance(content.get(name), Mapping) and content[name]), None)
        if name is None:
            break
        rivals = [str(key) for key in content if key != name and STATES.fullmatch(str(key))]
        if rivals or name not in ("model", "module", "state_dict"):
            steps.append(f"{name}, not {' or '.join(rivals)}" if rivals else name)
        report.dropped |= {str(key): "the file's other entries" for key in content if key != name}
        content = content[name]
    report.taken = " / ".join(steps)
    return content


def plain_names(state: State, report: LoadReport) -> State:
    """``state`` without the prefixes of compilers and parallel wrappers."""
    named = _renamed(state, lambda key: WRAPPERS.sub("", key), report)
    while named and all(key.startswith("module.") for key in named):
        named = _renamed(named, lambda key: key.removeprefix("module."), report)
    return named


def one_network(state: State, report: LoadReport) -> State:
    """The network to use of those in the file, without its prefix; a single bare network is returned as it is."""
    found = dict.fromkeys(key[: match.start(1)] for key in state if (match := ANCHOR.search(key)))
    if not found or "" in found:
        return state
    prefixes = list(found)
    if len(prefixes) > 1:
        teachers = [prefix for prefix in prefixes if "teacher" in prefix.split(".")]
        if len(teachers) != 1 or not any(map(SELF_DISTILLATION.search, state)):
            raise UserError(
                f"'{report.source}' holds several networks ({', '.join(f'{prefix}*' for prefix in prefixes)}): save "
                "the one that you mean in a file of its own"
            )
        prefixes = teachers
    prefix = prefixes[0]
    report.layout = report.layout or f"{prefix}*"
    report.dropped |= {key: "other networks" for key in state if not key.startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def unchunked(state: State, report: LoadReport) -> State:
    """``state`` with ``blocks.<number>.`` for DINOv2's ``blocks.<chunk>.<number>.``."""
    blocks = [key for key in state if key.startswith("blocks.")]
    if not blocks or not all(re.match(r"blocks\.\d+\.\d+\.", key) for key in blocks):
        return state
    return _renamed(state, lambda key: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key), report)


def merged_lora(state: State, content: Any, report: LoadReport) -> State:
    """``state`` with its low-rank matrices added to the weights that they change: W + scale B A (Hu et al., 2021)."""
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for key in state:
        if match := LORA.fullmatch(key):
            pairs.setdefault((match[1], match[3] or ""), {})[match[2]] = key
    if not any("lora_" in key for key in state):
        return state
    used = {key for pair in pairs.values() for key in pair.values()}
    rest = {key.replace(".base_layer.", "."): value for key, value in state.items() if key not in used}
    strange = [key for key in rest if "lora_" in key] + [
        " ".join(pair.values()) for pair in pairs.values() if len(pair) < 2
    ]
    adapters = {adapter for _, adapter in pairs}
    missing = [name for name, _ in pairs if f"{name}.weight" not in rest]
    scale = _lora_scale(content, Path(report.source))
    if strange or len(adapters) > 1 or missing:
        raise UserError(
            _lora_line(report, strange or [f"{name}.weight is missing" for name in missing] or sorted(adapters))
        )
    for (name, _), pair in pairs.items():
        a, b, weight = state[pair["A"]], state[pair["B"]], rest[f"{name}.weight"]
        if a.ndim != 2 or b.ndim != 2 or (b.shape[0], a.shape[1]) != tuple(weight.shape) or b.shape[1] != a.shape[0]:
            raise UserError(_lora_line(report, [f"{name}: shapes that do not fit its weight"]))
        if not b.any() or not a.any():
            report.changed[name] = "LoRA that adds nothing"
            continue
        if scale is None:
            raise UserError(_lora_line(report, [f"{name}: their scale, lora_alpha / r, is not given"]))
        rest[f"{name}.weight"] = (weight.float() + scale(a.shape[0]) * (b.float() @ a.float())).to(weight.dtype)
        report.changed[name] = f"LoRA of rank {a.shape[0]} added"
    return rest


def _lora_line(report: LoadReport, what: list[str]) -> str:
    return (
        f"'{report.source}' holds LoRA matrices that cannot be added ({some(what, 2)}): merge them with the tool that "
        "trained them (peft: model.merge_and_unload()) and save that model's state_dict"
    )


def _lora_scale(content: Any, path: Path) -> Any:
    """Rank -> factor, from the file's own settings or peft's ``adapter_config.json`` beside it; None where unknown."""
    settings: list[Any] = []
    if isinstance(content, Mapping):
        settings += [content, *(content.get(name) for name in PLACES)]
    beside = path.with_name("adapter_config.json")
    if beside.is_file():
        try:
            settings.append(json.loads(beside.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise UserError(f"'{beside}' is damaged: fetch it again") from None
    for each in settings:
        values = each if isinstance(each, Mapping) else getattr(each, "__dict__", {})
        alpha = values.get("lora_alpha")
        plain = not any(values.get(key) for key in ("use_dora", "alpha_pattern", "rank_pattern", "fan_in_fan_out"))
        if isinstance(alpha, int | float) and not isinstance(alpha, bool) and plain:
            root = bool(values.get("use_rslora"))
            return lambda rank, alpha=alpha, root=root: alpha / (rank**0.5 if root else rank)
    return None


def _renamed(state: State, rename: Any, report: LoadReport) -> State:
    named = {rename(key): value for key, value in state.items()}
    if len(named) < len(state):
        raise UserError(f"'{report.source}' has two tensors of one name: save one network's state_dict alone")
    return named
