"""The networks of an open-vocabulary teacher: found, checked and loaded. transformers is imported when they are.

A part is a folder in the form of ``save_pretrained`` (``config.json``, safetensors, its processor), or a name of the
hub, ``hf:<owner>/<name>[@revision]``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from segdistill.config import UserError, short
from segdistill.files import files_digest, read_signed, write_signed
from segdistill.weights.hub import hub_folder
from segdistill.weights.report import some

DETECTORS = {
    "mm-grounding-dino": "MMGroundingDinoForObjectDetection",  # also LLMDet
    "grounding-dino": "GroundingDinoForObjectDetection",
}
SEGMENTERS = {"sam2": "Sam2Model", "sam2_video": "Sam2Model"}
CONCEPTS = {"sam3": "Sam3Model", "sam3_video": "Sam3Model"}

LICENCES = {  # of the hub's repositories, by the beginning of their names
    "openmmlab-community/mm_grounding_dino": "Apache-2.0",
    "IDEA-Research/grounding-dino": "Apache-2.0",
    "iSEE-Laboratory/llmdet": "Apache-2.0",
    "facebook/sam2": "Apache-2.0",
    "facebook/sam3": "SAM License",
}
SAM_LICENCE = LICENCES["facebook/sam3"]

PATTERNS = ("*.json", "*.txt", "*.model", "model*.safetensors")
PROCESSOR = ("preprocessor_config.json", "processor_config.json")
TOKENIZER = ("tokenizer.json", "vocab.txt")
LICENCE = "licence.json"
DAMAGED = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, ImportError, SafetensorError)
"""What transformers raises for damaged files, and for files of other networks."""


@dataclass(frozen=True)
class PartFolder:
    """A network's folder, and the name of its class in transformers."""

    source: str
    path: Path
    kind: str


def find(source: str, role: str, kinds: dict[str, str], files: Sequence[Sequence[str]]) -> PartFolder:
    """The folder of ``source``, if its ``config.json`` names one of ``kinds``.

    Of every group in ``files``, it must have one.
    """
    path = hub_folder(source, PATTERNS) if source.startswith("hf:") else Path(source)
    if not path.is_dir():
        raise UserError(f"{role}: there is no folder {source}; give a folder with config.json and weights, or "
                        "hf:<owner>/<name>")  # fmt: skip
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind = values["model_type"]
    except FileNotFoundError:
        raise UserError(f"{role}: {source} has no config.json; give a folder written by save_pretrained") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{role}: {source}/config.json does not say which network it is ({error!r})") from None
    if kind not in kinds:
        raise UserError(f"{role}: {source} is a network of type '{short(str(kind))}'; allowed: {', '.join(kinds)}")
    if not any(path.glob("model*.safetensors")):
        raise UserError(f"{role}: {source} has no weights model.safetensors; save them with safe serialization")
    for group in files:
        if not any((path / name).is_file() for name in group):
            raise UserError(f"{role}: {source} has no {' or '.join(group)}; copy it from where the weights are from")
    return PartFolder(source, path, kinds[kind])


def load_network(folder: PartFolder, role: str) -> Any:
    """The network with its weights in float32; weights that are missing are an error."""
    try:
        with quiet() as transformers:
            network, report = getattr(transformers, folder.kind).from_pretrained(
                folder.path, local_files_only=True, output_loading_info=True, dtype="float32", use_safetensors=True
            )
    except DAMAGED as error:
        reason = short(str(error), 300)
        raise UserError(f"{role}: {folder.source} cannot be loaded as {folder.kind}: {reason}") from None
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{role}: {folder.source} lacks {len(missing)} weights of {folder.kind}: {some(missing)}")
    return network.eval().requires_grad_(False)


def load_processor(folder: PartFolder, role: str, kind: str) -> Any:
    """The image processor, tokenizer or processor (``kind``: its class in transformers) in the folder."""
    try:
        with quiet() as transformers:
            return getattr(transformers, kind).from_pretrained(folder.path, local_files_only=True)
    except DAMAGED as error:
        raise UserError(f"{role}: the {kind} of {folder.source} cannot be loaded: {short(str(error), 300)}") from None


def digest_of(folder: Path) -> str:
    """SHA-256 of a part's files: settings, weights, tokenizer and licence."""
    return files_digest(sorted({path for pattern in PATTERNS for path in folder.glob(pattern)}))


def name_of(source: str) -> str:
    """A part's name without the folders above it."""
    return source.removeprefix("hf:") if source.startswith("hf:") else Path(source).name


def licence_of(source: str, otherwise: str | None = None) -> str:
    """The licence of a part: of a known repository, or as :func:`save_licence` left it in a folder.

    ``otherwise``: that of a part whose licence is not known here.
    """
    if source.startswith("hf:"):
        known = (licence for name, licence in LICENCES.items() if name_of(source).startswith(name))
        found = next(known, None)
    else:
        found = (read_signed(path) or {}).get("licence") if (path := Path(source) / LICENCE).is_file() else None
    return found if isinstance(found, str) else otherwise or f"unknown: that of {name_of(source)}"


def save_licence(folder: Path, licence: str) -> None:
    """Keep the licence of the weights in ``folder`` beside them."""
    write_signed(folder / LICENCE, {"licence": licence})


@contextmanager
def quiet() -> Iterator[Any]:
    """transformers, without its progress bars and remarks."""
    import transformers  # takes seconds

    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield transformers
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
