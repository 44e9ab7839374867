"""One model as one safetensors file: the tensors of encoder and head, and all that is needed to use them.

Tensors are named ``encoder.*`` and ``head.*``. The header has one entry, ``segdistill``: a JSON object with

=================== ==================================================================================================
``format``          1
``task``            key of TASKS; semantic if it is missing
``name`` ``title``  of the run
``model``           settings of encoder and head (with random weights), and the encoder's ``taps``
``grid``            of the positional embedding, such as 8x16
``classes``         names; ``colors``: RGB of each
``preprocessing``   ``mean`` and ``std`` (inside the encoder), ``size`` (trained on), ``resize`` and ``window`` of the
                    evaluation, and both for every domain (``domains``)
``precision``       float32, or float16: cast up when it is loaded
``tensors_sha256``  digest of all tensors, see :func:`.reading.tensors_digest`; ``header_sha256``: of all other entries
``history``         recipe as YAML, seed, stages, commit, versions
``scores``          of student and teacher by domain with intervals; ``kept``: student / teacher
``licences``        the chain teacher -> data -> student
``rests_on``        sha256 of every file and list that the weights come from
=================== ==================================================================================================

One entry, keys in order and no times: the same weights and history give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from segdistill.config import UserError, choose, expanded, parse
from segdistill.encoders import build_encoder
from segdistill.files import facts_digest, write_bytes
from segdistill.models import Model
from segdistill.stages.base import ModelConfig
from segdistill.stages.task import build_model
from segdistill.tasks.table import TASKS
from segdistill.weights import as_stored
from segdistill.weights.reading import PACKED, read_file, tensors_digest

FORMAT = 1
KEY = PACKED
NEEDED = ("model", "classes", "colors", "preprocessing", "precision", "tensors_sha256")
MAKE = "make one with 'segdistill pack RUN FILE'"


def state_of(model: Model, *, half: bool = False) -> dict[str, Tensor]:
    """The tensors of encoder and head on the CPU; floats as float16 with ``half``."""
    parts = {"encoder": model.encoder, "head": model.head}
    state = {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}
    return as_stored(state, "the model", half=half)


def write_packed(path: Path, model: Model, metadata: Mapping[str, Any], *, half: bool = False) -> None:
    """Write the file; ``metadata`` is what the header says beside the tensors' own entries."""
    state = state_of(model, half=half)
    precision = "float16" if half else "float32"
    header = {**metadata, "format": FORMAT, "precision": precision, "tensors_sha256": tensors_digest(state)}
    header["header_sha256"] = _header_digest(header)
    data = save(state, metadata={KEY: json.dumps(header, sort_keys=True, ensure_ascii=False, allow_nan=False)})
    write_bytes(path, data)


def _header_digest(header: Mapping[str, Any]) -> str:
    """SHA-256 of everything else that the header says."""
    return facts_digest({key: value for key, value in header.items() if key != "header_sha256"})


def packed_path(source: str | Path) -> Path:
    """The file that ``source`` means: a path, or ``hf:<owner>/<name>[@revision]``, which is fetched and cached."""
    if str(source).startswith("hf:"):
        from segdistill.weights.hub import hub_file  # a client that needs time to import

        return hub_file(str(source))
    path = expanded(source)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"no packed model at '{path}'; {MAKE}, or give hf:<owner>/<name>")
    return path


def read_packed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a packed file, not checked against each other; one line where it is no such file."""
    state, header = read_file(path)
    try:
        metadata = json.loads(header.get(KEY, ""))
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise UserError(f"'{path}' is no packed model (its header has no '{KEY}' entry); {MAKE}")
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"'{path}' has the format {metadata.get('format')!r}, this version reads {FORMAT}: update segdistill, or "
            "pack the run again"
        )
    if metadata.get("header_sha256") != _header_digest(metadata):
        raise UserError(f"'{path}' is damaged: its header is not what was written; make or fetch it again")
    if missing := [key for key in NEEDED if key not in metadata]:
        raise UserError(f"'{path}' is damaged: its header lacks {', '.join(missing)}; pack the run again")
    return state, metadata


def load_packed(source: str | Path) -> tuple[Model, dict[str, Any]]:
    """The network in evaluation mode and the header, from a path or ``hf:<owner>/<name>[@revision]``.

    A :class:`UserError` where the file is damaged, was changed or does not fit its own settings.
    """
    path = packed_path(source)
    state, metadata = read_packed(path)
    if tensors_digest(state) != metadata["tensors_sha256"]:
        raise UserError(f"'{path}': its tensors are not those that were packed; make or fetch it again")
    classes, model, taps = _described(metadata, path)
    encoder = build_encoder(model.encoder, seed=0)
    task = str(metadata.get("task", "semantic"))
    network = build_model(choose("task", task, TASKS), model, encoder, classes, seed=0, stage="packed file")
    if list(network.taps) != taps:
        raise UserError(f"'{path}' reads the taps {taps} of {encoder.name}, this version {list(network.taps)}")
    _fill(network, state, path)
    return network.eval(), metadata


def _described(metadata: Mapping[str, Any], path: Path) -> tuple[list[str], ModelConfig, list[int]]:
    """Classes, settings of the network and taps that a header names."""
    classes, settings = metadata["classes"], metadata["model"]
    if not isinstance(settings, dict) or not isinstance(classes, list) or not classes:
        raise UserError(f"'{path}' is damaged: its header names no classes or no model; pack the run again")
    values = {key: value for key, value in settings.items() if key != "taps"}
    return [str(name) for name in classes], parse(ModelConfig, values, f"'{path}'").bare(), list(settings["taps"])


def _fill(network: Model, state: Mapping[str, Tensor], path: Path) -> None:
    """Every tensor of file and network must find its place."""
    wanted = {f"{part}.{key}" for part in ("encoder", "head") for key in getattr(network, part).state_dict()}
    if wanted != state.keys():
        wrong = sorted(wanted ^ state.keys())
        raise UserError(f"'{path}' does not fit its own settings: {len(wrong)} tensors, such as {wrong[0]}")
    for part in ("encoder", "head"):
        own = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{part}.")}
        own = {key: value.float() if value.is_floating_point() else value for key, value in own.items()}
        try:
            getattr(network, part).load_state_dict(own)
        except RuntimeError as error:  # of shapes
            line = " ".join(str(error).split())[:200]
            raise UserError(f"'{path}' does not fit its own settings: {line}") from None
