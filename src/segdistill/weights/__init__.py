"""Weights on disk: reads every official checkpoint of the papers, reports every key, runs no pickled code.

Our own files are safetensors with ``Encoder.state_dict()`` and, in the header, the encoder's name and the grid of its
positional embedding. A manifest beside the file, ``<stem>.json`` or the folder's ``manifest.json``, is checked: its
``sha256`` (one digest, or one per file name) or ``files``. Shipped files are in ``segdistill/assets``. Packed
models are read too, as an encoder or as a head.

``layouts``: naming schemes of files. ``reading``: opening files. ``resample``: other patches and grids.
``hub``: timm and Hugging Face names. ``heads``: task heads, the authors' and ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from segdistill.config import UserError, expanded
from segdistill.files import write_bytes
from segdistill.shipped import ASSETS, shipped_assets, shipped_path
from segdistill.weights.heads import head_path, load_head_weights
from segdistill.weights.layouts import State, encoder_state
from segdistill.weights.reading import (
    check_digest,
    digest_of,
    misshapen,
    need_finite,
    part_of_packed,
    read_file,
    strange_tensors,
)
from segdistill.weights.report import LoadReport, some
from segdistill.weights.resample import (
    Resample,
    RunTimePositions,
    resample_kernel,
    resample_positions,
    resample_relative,
)

__all__ = [
    "ASSETS",
    "LoadReport",
    "Resample",
    "RunTimePositions",
    "as_stored",
    "digest_of",
    "head_path",
    "load_encoder_weights",
    "load_head_weights",
    "resample_kernel",
    "resample_positions",
    "safetensors_bytes",
    "save_encoder",
    "save_head",
    "shipped_assets",
    "weights_path",
]  # fmt: skip

ADAPTER = "rein."  # parameters that pretrained weights do not contain
MASK_TOKEN, POSITIONS, KERNEL = "mask_token", "backbone.pos_embed", "backbone.patch_embed.proj.weight"
RELATIVE = re.compile(r"\.rel_pos_[hw]$")
IN_FOLDER = ("encoder.safetensors", "model.safetensors", "model.safetensors.index.json")
NEEDED = 0.95  # of the encoder's parameters must come from the file


class HasWeights(Protocol):
    """The part of the encoder's interface that is used here."""

    name: str

    @property
    def grid(self) -> tuple[int, int]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def weights_path(source: str, name: str) -> Path:
    """The file that ``source`` refers to for the encoder ``name``; a :class:`UserError` if it does not exist."""
    if source == "shipped" or source.startswith("shipped:"):
        return shipped_path(source.partition(":")[2] or name)
    if source.startswith(("timm:", "hf:")):
        from segdistill.weights.hub import hub_file  # slow to import

        return hub_file(source)
    path = expanded(source)
    if path.is_dir():
        path = next((path / name for name in IN_FOLDER if (path / name).is_file()), path / IN_FOLDER[0])
    if not path.is_file():
        raise UserError(
            f"no encoder weights at '{path}': give a checkpoint (.safetensors, .pth, .pt, .bin), a folder with "
            f"{', '.join(IN_FOLDER)}, timm:<name>, hf:<owner>/<name>, 'shipped', 'shipped:<asset>' or 'random'"
        )
    return path


def save_encoder(encoder: HasWeights, path: Path, *, half: bool = False) -> None:
    """Write the encoder's weights atomically, as fp32 or with ``half`` as fp16."""
    state = as_stored(encoder.state_dict(), encoder.name, half=half)
    data = safetensors_bytes(state, {"encoder": encoder.name, "grid": _text(encoder.grid)})
    write_bytes(path, data)


def as_stored(state: Mapping[str, Tensor], name: str, *, half: bool = False) -> State:
    """The tensors of the network ``name`` on the CPU, floats as fp32 or with ``half`` as fp16; all must be finite."""
    dtype = torch.float16 if half else torch.float32
    stored = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in state.items()
    }
    broken = [key for key, value in stored.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"weights of {name} are not finite as {dtype}: {some(broken)}; not saved")
    return stored


def save_head(head: Any, path: Path) -> None:
    """Write the head's weights atomically."""
    state = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    write_bytes(path, safetensors_bytes(state))


def safetensors_bytes(state: State, header: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file, the same for the same tensors and header (safetensors' own order varies)."""
    data = save(state, metadata=header)
    start = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:start])
    if "__metadata__" in table:
        table["__metadata__"] = dict(sorted(table["__metadata__"].items()))
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def load_encoder_weights(encoder: HasWeights, source: str, *, resample: Resample = "papers") -> LoadReport | None:
    """Fill ``encoder`` from ``source`` (see ``EncoderConfig.weights``); ``random`` leaves it as it is (no report).

    A bare ``shipped`` is the asset with the encoder's name. Half precision is cast up; patch
    kernels and positional embeddings of another size are resampled in float32 (``resample``). The report lists every
    key. A :class:`UserError` is raised for an unknown key, for another width or depth, and if less than 95 % of the
    parameters are in the file. A tensor may be missing only where the encoder's own is neutral (a mask token or bias
    of 0, a gain of 1), and in our own files only the mask token of an encoder that was loaded without one. An adapter
    (``rein``) stays fresh if the file has none.
    """
    if source == "random":
        return None
    path = weights_path(source, encoder.name)
    check_digest(path)
    content, header = read_file(path)
    report = LoadReport(source=str(path), network=encoder.name)
    with strange_tensors(content, report):
        _fill(encoder, content, header, report, resample)
    return report


def _fill(encoder: HasWeights, content: Any, header: Mapping[str, str], report: LoadReport, resample: Resample) -> None:
    """:func:`load_encoder_weights` after the file was read."""
    content, header, _ = part_of_packed(content, header, "encoder", report)
    state = encoder_state(content, header, encoder, report)
    wanted = encoder.state_dict()
    _account(state, wanted, header, report)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    _fit(state, wanted, _Grids(encoder.grid, header, report), resample)
    if wrong := misshapen(state, wanted):
        raise UserError(f"'{report.source}' does not fit {encoder.name}: {some(wrong)}{_sizes(state, wanted)}")
    need_finite(state, report.source)
    if MASK_TOKEN in report.missing:
        state[MASK_TOKEN] = torch.zeros_like(wanted[MASK_TOKEN])
    filled = {key: state.get(key, value).to(value.dtype) for key, value in wanted.items()}
    encoder.load_state_dict(filled)


def _account(state: State, wanted: State, header: Mapping[str, str], report: LoadReport) -> None:
    """Fill the report's lists; a :class:`UserError` for keys that must not be missing or must not be there."""
    missing = sorted(wanted.keys() - state.keys())
    report.unexpected += sorted(state.keys() - wanted.keys())
    report.loaded = [key for key in wanted if key in state]
    fresh = [key for key in missing if key.startswith(ADAPTER)]
    if any(key.startswith(ADAPTER) for key in state):
        fresh = []
    total = sum(value.numel() for key, value in wanted.items() if key not in fresh)
    report.share = sum(wanted[key].numel() for key in report.loaded) / total
    neutral = [] if report.layout == "segdistill" else [key for key in missing if _neutral(key, wanted[key])]
    forgiven = [key for key in missing if key in fresh or key in neutral]
    report.missing = forgiven
    needed = [key for key in missing if key not in forgiven]
    if not needed and not report.unexpected and report.share >= NEEDED:
        return
    made_for = f" (made for {header.get('encoder', 'an unknown encoder')})" if report.layout == "segdistill" else ""
    hint = ""
    if any(re.search(r"\.ls[12]\.gamma$", key) for key in report.unexpected):
        hint = "; set layer_scale: true for a network with LayerScale"
    raise UserError(
        f"'{report.source}' does not fit {report.network}{made_for}: missing {some(needed)}; "
        f"unexpected {some(report.unexpected)}; {100 * report.share:.1f} % of the parameters are there"
        f"{_sizes(state, wanted)}{hint}"
    )


def _neutral(key: str, value: Tensor) -> bool:
    """Whether leaving this tensor at the encoder's own value changes nothing."""
    if key == MASK_TOKEN:
        return True
    return not key.endswith(("running_mean", "running_var")) and bool((value == 0).all() or (value == 1).all())


def _sizes(state: State, wanted: State) -> str:
    """The different widths and depths of file and encoder, and what to do; empty if they agree."""

    def of(tensors: State) -> tuple[int, int]:
        widths = [tensors[key].shape[-1] for key in (POSITIONS, "backbone.cls_token") if key in tensors]
        blocks = [int(match[1]) for key in tensors if (match := re.match(r"backbone\.blocks\.(\d+)\.", key))]
        return (widths or [0])[0], 1 + max(blocks, default=-1)

    theirs, ours = of(state), of(wanted)
    if theirs == ours or not all(theirs + ours):
        return ""
    return (
        f"; the file has width {theirs[0]} and depth {theirs[1]}, the encoder width {ours[0]} and depth {ours[1]}: "
        "choose the encoder that the file was made for"
    )


class _Grids:
    """The grids of a file's positions and of the encoder's."""

    def __init__(self, new: tuple[int, int], header: Mapping[str, str], report: LoadReport) -> None:
        self.new, self.header, self.report = new, header, report

    def old(self, patches: int) -> tuple[int, int]:
        """The file's grid: from its header; else the encoder's if the length agrees, else a square."""
        ours = self.report.layout == "segdistill"
        if "grid" not in self.header and ours and patches == self.new[0] * self.new[1]:
            return self.new
        try:
            h, w = map(int, self.header["grid"].split("x"))
        except (KeyError, ValueError):
            h = w = math.isqrt(max(patches, 0))
        if h * w != patches or patches < 1:
            raise UserError(f"'{self.report.source}': {patches} positions do not form the grid {h} x {w}")
        return h, w


def _fit(state: State, wanted: State, grids: _Grids, how: Resample) -> None:
    """Resample, in place, tensors made for another patch or grid; the report lists them."""
    changed = grids.report.changed

    def note(key: str, what: str) -> None:
        changed[key] = f"{changed[key]}, {what}" if key in changed else what

    for key, target in wanted.items():
        value = state.get(key)
        if value is None or value.ndim != target.ndim:
            continue
        if key == KERNEL and value.ndim == 4 and value.shape[:2] == target.shape[:2] and value.shape != target.shape:
            state[key] = resample_kernel(value, (target.shape[-2], target.shape[-1]), how)
            note(key, f"{_text(value.shape[-2:])} -> {_text(target.shape[-2:])}, {how}")
        elif key == POSITIONS and value.ndim == 3 and value.shape[-1] == target.shape[-1]:
            prefix = target.shape[1] - grids.new[0] * grids.new[1]  # 1: CLS; 0 where prefix tokens have no position
            old = grids.old(value.shape[1] - prefix)
            if old != grids.new:
                state[key] = resample_positions(value, old, grids.new, prefix=prefix, how=how)
                note(key, f"{_text(old)} -> {_text(grids.new)}, {how}")
        elif key == POSITIONS and value.ndim == 4 and value.shape[-1] == target.shape[-1]:  # SAM: (1, h, w, C)
            old = (value.shape[1], value.shape[2])
            if old != grids.new:
                rows = resample_positions(value.flatten(1, 2), old, grids.new, prefix=0, how=how)
                state[key] = rows.unflatten(1, grids.new)
                note(key, f"{_text(old)} -> {_text(grids.new)}, {how}")
        elif RELATIVE.search(key) and value.shape[0] != target.shape[0]:
            state[key] = resample_relative(value, target.shape[0])
            note(key, f"{value.shape[0]} -> {target.shape[0]} places, linear")


def _text(grid: Any) -> str:
    return f"{grid[0]}x{grid[1]}"
