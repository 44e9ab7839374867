"""Task heads on disk: those of our own stages, and the authors' Mask2Former (mmengine's ``decode_head.*``).

The names on the left are mmdet 3's (``MSDeformAttnPixelDecoder``, ``Mask2FormerTransformerDecoder``, spec A.10), those
on the right transformers'. Only the names differ, except in the queries' self-attention: one matrix for query, key and
value there, three here. mmseg's ``FPNHead`` is not our SemFPN: its pyramid (``neck.*``) has 3x3 convolutions after the
top-down sum and no norm before it, so its weights cannot be loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from segdistill.config import UserError, expanded
from segdistill.files import read_signed
from segdistill.shipped import shipped_path
from segdistill.weights.layouts import HEAD, State, tensors_of
from segdistill.weights.reading import check_digest, misshapen, need_finite, part_of_packed, read_file, strange_tensors
from segdistill.weights.report import LoadReport, some

OURS_ALONE = "criterion."  # the loss's class weights come from our settings
CLASSIFIER = "classifier.weight"  # (classes, and one more where there is 'no object'; width; ...) of every head
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


class HasHeadWeights(Protocol):
    """The part of a head's interface that is used here."""

    num_classes: int

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool) -> Any: ...


def head_path(source: str) -> Path:
    """The file that ``source`` refers to; a :class:`UserError` if it does not exist."""
    if source.startswith("shipped:"):
        return shipped_path(source.partition(":")[2])
    path = expanded(source)
    path = path / "head.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"no head weights at '{path}': give a task checkpoint (.pth, .pt, .safetensors) or the folder of a task "
            "stage, which contains head.safetensors"
        )
    return path


def load_head_weights(head: HasHeadWeights, source: str, name: str, classes: Sequence[str]) -> LoadReport:
    """Fill ``head``, the ``name`` of the table, from ``source`` (see ``HeadConfig.weights``).

    The file and the head must have exactly the same keys; else a :class:`UserError` lists the differences.
    Where the file names the classes it was trained on (a stage's manifest, mmengine's ``dataset_meta``), they must be
    ``classes``.
    """
    path = head_path(source)
    check_digest(path)
    content, header = read_file(path)
    report = LoadReport(source=str(path), network=name)
    content, _, said = part_of_packed(content, header, "head", report)
    with strange_tensors(content, report):
        _fill(head, content, path, classes, report)
    _check_classes(said.get("classes", ()), classes, report)
    return report


def _fill(head: HasHeadWeights, content: Any, path: Path, classes: Sequence[str], report: LoadReport) -> None:
    """:func:`load_head_weights` after the file was read."""
    stored = tensors_of(content, report)
    wanted = {key: value for key, value in head.state_dict().items() if not key.startswith(OURS_ALONE)}
    state = _ours(stored, wanted, report.network, report)
    _check_sizes(state, wanted, head.num_classes, report)
    _check_classes(_classes_of(content, path, report), classes, report)
    _account(state, wanted, report)
    head.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)


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


HEADS: dict[str, Callable[[State], State]] = {"mask2former": mask2former_state}
"""Head -> renaming of mmseg's ``decode_head.*``. Heads that are not listed do not exist in mmseg."""


def _ours(stored: State, wanted: State, name: str, report: LoadReport) -> State:
    """The head's tensors under our names; adds the layout and the dropped keys to ``report``."""
    head = {key.removeprefix(HEAD): value for key, value in stored.items() if key.startswith(HEAD)}
    if head:
        report.layout = "mmengine"
        report.dropped |= {key: "other networks" for key in stored if not key.startswith(HEAD)}
        if name not in HEADS:
            raise UserError(
                f"'{report.source}' has a decode_head of mmseg, and mmseg has no {name}: "
                f"choose the head {' or '.join(HEADS)} if it is one, or train {name} here"
            )
        return HEADS[name](head)
    if not stored.keys() & wanted.keys():
        raise UserError(
            f"'{report.source}' has neither {HEAD}* nor the keys of our {name}: give a task checkpoint or a task "
            "stage's folder, or leave head.weights out and train the head"
        )
    report.layout = "segdistill"
    why = "the loss's class weights (they come from the settings)"
    report.dropped |= {key: why for key in stored if key.startswith(OURS_ALONE)}
    return {key: value for key, value in stored.items() if not key.startswith(OURS_ALONE)}


def _check_sizes(state: State, wanted: State, num_classes: int, report: LoadReport) -> None:
    """A plain message for the usual mismatch: another number of classes or another width."""
    if CLASSIFIER not in state or state[CLASSIFIER].ndim != wanted[CLASSIFIER].ndim:
        return
    theirs, ours = (list(tensors[CLASSIFIER].shape) for tensors in (state, wanted))
    if theirs[1] != ours[1]:
        raise UserError(
            f"the head of '{report.source}' has the width {theirs[1]}, this {report.network} {ours[1]}: "
            f"set head.width={theirs[1]}, or choose the file that belongs to it"
        )
    if theirs[0] != ours[0]:
        found = theirs[0] - (ours[0] - num_classes)
        raise UserError(
            f"the head of '{report.source}' knows {found} classes, the data has {num_classes}: "
            "take data with its classes, or train a head"
        )


def _account(state: State, wanted: State, report: LoadReport) -> None:
    """Fill the report's lists; a :class:`UserError` for keys that do not fit."""
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    report.loaded = [key for key in wanted if key in state and state[key].shape == wanted[key].shape]
    report.share = sum(wanted[key].numel() for key in report.loaded) / sum(v.numel() for v in wanted.values())
    wrong = misshapen(state, wanted)
    if missing or unexpected or wrong:
        raise UserError(
            f"the head of '{report.source}' does not fit this {report.network}: missing {some(missing)}; unexpected "
            f"{some(unexpected)}; wrong {some(wrong)}; {100 * report.share:.1f} % of the parameters are there"
        )
    need_finite(state, report.source)


def _classes_of(content: Any, path: Path, report: LoadReport) -> tuple[str, ...]:
    """Names of the classes that the file was trained on; empty if it does not name them."""
    manifest = path.parent / "manifest.json"
    said: Any = content.get("meta") if isinstance(content, Mapping) else None
    if report.layout == "mmengine":
        said = said.get("dataset_meta", said) if isinstance(said, Mapping) else None
    elif manifest.is_file():  # of the stage that left the file; check_digest() has read it already
        said = read_signed(manifest)
        if said is None:
            raise UserError(f"damaged manifest {manifest}; delete the folder {path.parent} to run its stage again")
    names = (said.get("classes") or said.get("CLASSES") or ()) if isinstance(said, Mapping) else ()
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def _check_classes(theirs: Sequence[str], ours: Sequence[str], report: LoadReport) -> None:
    """A :class:`UserError` at the first class with another name; case, spaces and hyphens are ignored."""
    if not theirs:
        return
    for number, (there, here) in enumerate(zip_longest(theirs, ours, fillvalue="none")):
        if re.sub(r"[\W_]", "", there.lower()) != re.sub(r"[\W_]", "", here.lower()):
            way_out = "; if only the names differ, keep its state_dict alone" if report.layout == "mmengine" else ""
            raise UserError(
                f"the head of '{report.source}' was trained on other classes: number {number} is '{there}', "
                f"in the data '{here}'; take data with its classes{way_out}"
            )
