"""Reads checkpoint files as plain tensors, without running code from them.

``.pth`` files are pickles, which can run arbitrary code. They are read with torch's ``weights_only`` unpickler, which
builds tensors and plain containers only. One more class is allowed: ``argparse.Namespace``, which the authors' files
contain (spec A.9, 7) and which only holds attributes. Training checkpoints of mmengine also contain its log; the few
names used there are read as :class:`_Nothing`, which discards its content.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from segdistill.config import UserError, first_line
from segdistill.files import files_digest, input_digest, plain_name, sha256
from segdistill.weights.report import LoadReport, some

INDEX = ".index.json"
PACKED = "segdistill"
"""The key of a packed model's description in its header."""
LOG = (  # names in mmengine's pickled log buffers: their class, NumPy arrays, and attribute look-ups
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray",
    "numpy.dtype",
)


class _Nothing:
    """Placeholder for an unused object: discards its arguments and runs nothing."""

    def __new__(cls, *_: Any) -> _Nothing:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Discard the state."""


def read_file(path: Path) -> tuple[Any, dict[str, str]]:
    """The content of a checkpoint and, for safetensors, its header; a :class:`UserError` for any other file."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.name.endswith(INDEX):
        return _read_shards(path), {}
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}): check its permissions") from None
    problem = _not_weights(start)
    if problem:
        raise UserError(f"'{path}' {problem}")
    if start[8:9] == b"{":  # a length in eight bytes, then JSON
        return _read_safetensors(path)
    return _read_torch(path), {}


def part_of_packed(
    content: Any, header: Mapping[str, str], part: str, report: LoadReport
) -> tuple[Any, Mapping[str, str], Mapping[str, Any]]:
    """The tensors of ``part`` (encoder or head) of a packed model, its encoder's header, and its description.

    Any other file is returned unchanged.
    """
    if PACKED not in header:
        return content, header, {}
    try:
        said = json.loads(header[PACKED])
        name = str(said["model"]["encoder"]["name"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"'{report.source}' is damaged: its header has no description of a packed model") from None
    if said.get("tensors_sha256", digest := tensors_digest(content)) != digest:
        raise UserError(f"'{report.source}': its tensors are not those that were packed; make or fetch it again")
    other = "head" if part == "encoder" else "encoder"
    left = [key for key in content if not key.startswith(f"{part}.")]
    report.dropped |= dict.fromkeys(left, f"the {other} of the packed model")
    own = {key.partition(".")[2]: value for key, value in content.items() if key.startswith(f"{part}.")}
    grid = {"grid": str(said["grid"])} if "grid" in said else {}
    return own, {"encoder": name} | grid, said


def tensors_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_digest(path: Path) -> None:
    """Compare the file with the SHA-256 in its manifest, if there is one."""
    for manifest in (path.with_suffix(".json"), path.parent / "manifest.json"):
        if not manifest.is_file():
            continue
        try:
            content = json.loads(manifest.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"'{manifest}' is damaged ({error}): make or fetch '{path.name}' again") from None
        digests = content.get("sha256", content.get("files")) if isinstance(content, dict) else None
        expected = digests.get(path.name) if isinstance(digests, dict) else digests
        if isinstance(expected, str) and expected != sha256(path):
            raise UserError(f"'{path}' differs from the sha256 in '{manifest.name}': it is damaged or was replaced")
        return


def shards(index: Path) -> list[Path]:
    """The files that a ``model.safetensors.index.json`` names, in the same folder."""
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({plain_name(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"'{index}' is damaged or not an index of safetensors files: fetch it again") from None
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent or not names:
        raise UserError(f"'{index}' names {some(absent)}, which is not beside it: fetch all {len(names)} of its files")
    return [index.parent / name for name in names]


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all files of an index; they must be the ones it lists."""
    state: dict[str, Tensor] = {}
    for path in shards(index):
        check_digest(path)
        state |= _read_safetensors(path)[0]
    listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].keys()
    if odd := sorted(listed ^ state.keys()):
        raise UserError(f"'{index}' and its files differ in {some(odd)}: fetch them again")
    return state


def digest_of(path: Path) -> str:
    """SHA-256 of a weight file; for an index, of all its files."""
    if not path.name.endswith(INDEX):
        return input_digest(path)
    return files_digest(shards(path))


def misshapen(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """One text for each of the ``wanted`` tensors that is in ``state`` with another shape."""
    return [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]


def need_finite(state: Mapping[str, Tensor], source: str) -> None:
    """A :class:`UserError` if a tensor of the file ``source`` is not finite."""
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise UserError(f"'{source}' has weights that are not finite: {some(broken)}")


@contextmanager
def strange_tensors(content: Any, report: LoadReport) -> Iterator[None]:
    """An error of a library on tensors that fit no layout, as one line with the file's first keys."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  timm's converters and torch raise many kinds
        names = [str(key) for key in content] if isinstance(content, Mapping) else []
        raise UserError(
            f"'{report.source}' does not fit {report.network} ({type(error).__name__}: {first_line(error, 80)}); its "
            f"first names are {some(names)}: give a state dictionary of that network"
        ) from None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # noqa: BLE001  a damaged header raises many kinds
        raise UserError(f"'{path}' is damaged or not a safetensors file ({error}): make or fetch it again") from None


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *((_Nothing, name) for name in LOG)]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  the unpickler raises whatever a damaged file makes it do
        foreign = re.search(r"GLOBAL (\S+)|Unsupported class (\S+)", str(error))
        if foreign:
            name = next(filter(None, foreign.groups()))
            raise UserError(
                f"'{path}' holds more than tensors ({name}) and could run code, so it was not opened: if you trust "
                "its source, convert it once, in a container or virtual machine without anything of value: "
                f"python -c \"import torch; c = torch.load('{path.name}', weights_only=False); "
                "torch.save(c.get('model', c.get('state_dict', c)), 'weights.pth')\""
            ) from None
        line = first_line(error, 120)
        raise UserError(f"'{path}' is damaged or not a PyTorch file ({line}): make or fetch it again") from None


def _not_weights(start: bytes) -> str:
    """What a file is, by its first bytes, if it holds no weights at all; else empty."""
    text = start.lstrip()[:200].lower()
    if not start:
        return "is empty: fetch it again"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "is a web page, not weights: its address was refused or moved; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer and not the file itself: run 'git lfs pull', or fetch it from its page"
    printable = bytes(range(32, 127)) + b"\t\r\n"
    if not start.translate(None, printable):
        return "is a text file, not weights: give a .pth, .pt, .bin or .safetensors file"
    return ""
