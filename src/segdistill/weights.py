"""Encoder weights on disk: safetensors, every key accounted for, nothing unpickled.

A file holds ``Encoder.state_dict()`` and, in its header, the encoder's name and the grid of its positional embedding.
Beside it may stand a manifest, ``<stem>.json`` or the folder's ``manifest.json``; the ``sha256`` found there
(one digest, or a digest per file name) is checked. Shipped files live in ``segdistill/assets``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from segdistill.config import UserError, nearest
from segdistill.files import sha256, write_atomic

ASSETS = Path(__file__).parent / "assets"
POSITIONS = "backbone.pos_embed"


class HasWeights(Protocol):
    """What this module needs of an encoder."""

    name: str

    @property
    def grid(self) -> tuple[int, int]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def shipped_assets() -> list[str]:
    """Names of the assets that come with the package."""
    return sorted(path.stem for path in ASSETS.glob("*.safetensors"))


def weights_path(source: str, name: str) -> Path:
    """The file that ``source`` means for the encoder ``name``; a :class:`UserError` where there is none."""
    if source == "shipped" or source.startswith("shipped:"):
        asset = source.partition(":")[2] or name
        path = ASSETS / f"{asset}.safetensors"
        if not path.is_file():
            known = shipped_assets()
            raise UserError(
                f"no shipped weights '{asset}': {nearest(asset, known)}"
                f"allowed: {', '.join(known) or 'none are in this copy'}; or give a path, or weights: random"
            )
        return path
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "encoder.safetensors"
    if not path.is_file():
        raise UserError(
            f"no encoder weights at '{path}': give a .safetensors file, a stage folder that contains "
            "encoder.safetensors, 'shipped', 'shipped:<asset>' or 'random'"
        )
    return path


def save_encoder(encoder: HasWeights, path: Path, *, half: bool = False) -> None:
    """Write the encoder's weights atomically, as fp32 or with ``half`` as fp16."""
    dtype = torch.float16 if half else torch.float32
    state = {key: value.detach().to("cpu", dtype).contiguous() for key, value in encoder.state_dict().items()}
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"weights of {encoder.name} are not finite as {dtype}: {_some(broken)}; not saved")
    header = {"encoder": encoder.name, "grid": _text(encoder.grid)}
    data = save(state, metadata=header)
    write_atomic(path, lambda file: file.write(data))


def load_encoder_weights(encoder: HasWeights, source: str, name: str | None = None) -> None:
    """Fill ``encoder`` from ``source`` (see ``EncoderConfig.weights``); ``random`` leaves it as it is.

    ``name`` is the asset that a bare ``shipped`` means, by default the encoder's name. Stored half precision is cast
    up; a positional embedding of another grid is resampled (bicubic, no antialias); any other difference in keys or
    shapes is a :class:`UserError`.
    """
    if source == "random":
        return
    path = weights_path(source, name or encoder.name)
    _check_digest(path)
    state, header = _read(path)
    wanted = encoder.state_dict()
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unexpected:
        raise UserError(
            f"'{path}' does not fit {encoder.name} (made for {header.get('encoder', 'an unknown encoder')}): "
            f"missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    same_length = state[POSITIONS].shape[:2] == wanted[POSITIONS].shape[:2]
    if state[POSITIONS].ndim == 3 and not (
        same_length and header.get("grid", _text(encoder.grid)) == _text(encoder.grid)
    ):
        old = _grid(header, state[POSITIONS].shape[1] - 1, path)
        state[POSITIONS] = resample_positions(state[POSITIONS].float(), old, encoder.grid)
    wrong = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if state[key].shape != value.shape
    ]
    if wrong:
        raise UserError(f"'{path}' does not fit {encoder.name}: {_some(wrong)}")
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"'{path}' has weights that are not finite: {_some(broken)}")
    encoder.load_state_dict({key: value.to(wanted[key].dtype) for key, value in state.items()})


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A (1, 1 + h*w, C) positional embedding with one CLS row for another grid: bicubic, no antialias (spec A.6)."""
    cls, patches = positions[:, :1], positions[:, 1:]
    maps = patches.transpose(1, 2).reshape(1, -1, *old)
    maps = F.interpolate(maps, size=new, mode="bicubic", align_corners=False)
    return torch.cat([cls, maps.flatten(2).transpose(1, 2)], dim=1)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{path}' is damaged or no safetensors file ({error}): make or fetch it again") from None


def _check_digest(path: Path) -> None:
    """Compare the file with the SHA-256 of its manifest, where there is one."""
    for manifest in (path.with_suffix(".json"), path.parent / "manifest.json"):
        if not manifest.is_file():
            continue
        try:
            content = json.loads(manifest.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"'{manifest}' is damaged ({error}): make or fetch '{path.name}' again") from None
        digests = content.get("sha256") if isinstance(content, dict) else None
        expected = digests.get(path.name) if isinstance(digests, dict) else digests
        if isinstance(expected, str) and expected != sha256(path):
            raise UserError(f"'{path}' differs from the sha256 in '{manifest.name}': it is damaged or was replaced")
        return


def _text(grid: tuple[int, int]) -> str:
    return f"{grid[0]}x{grid[1]}"


def _grid(header: dict[str, str], patches: int, path: Path) -> tuple[int, int]:
    """The grid of a stored positional embedding: from the header, else a square."""
    try:
        h, w = map(int, header["grid"].split("x"))
    except (KeyError, ValueError):
        h = w = math.isqrt(max(patches, 0))
    if h * w != patches or patches < 1:
        raise UserError(f"'{path}': {patches} positions do not form the grid {h} x {w}")
    return h, w


def _some(items: list[str], count: int = 4) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return (", ".join(items[:count]) + more) or "nothing"
