"""Checks a shipped file against the digests that were recorded when it was made, and says what it could not check."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segdistill.config import UserError, expanded, parse
from segdistill.files import sha256
from segdistill.recipe import Recipe
from segdistill.sharing.card import card as make_card
from segdistill.sharing.pack import (
    card_path,
    data_digest,
    model_in,
    open_run,
    packed_path,
    read_packed,
    tensors_digest,
)
from segdistill.sharing.packed import state_of
from segdistill.stages.base import ModelConfig
from segdistill.weights import head_path, weights_path

SIDE = (".onnx", ".pt2")  # whose report stands beside them


@dataclass(frozen=True)
class Check:
    """One thing that was recorded. ``ok``: as recorded, different, or None: not at hand."""

    what: str
    name: str
    ok: bool | None
    why: str = ""

    @property
    def outcome(self) -> str:
        """In words."""
        word = {True: "as recorded", False: "DIFFERS", None: "not checked"}[self.ok]
        return f"{word}: {self.why}" if self.why else word


def verify(source: str | Path, run: Path | None = None) -> list[Check]:
    """Every check of a packed file (path or ``hf:<owner>/<name>``), an exported graph or a packed encoder.

    ``run`` is the run folder, where it is at hand: its files are hashed and its model is compared bit by bit. A
    :class:`UserError` where the file is none of these, or cannot be read.
    """
    path, run = expanded(source), run and expanded(run)
    if path.suffix in SIDE:
        whole = re.sub(r"\.(fp16|int8)(?=\.onnx$)", "", path.name)  # one report for all precisions
        own = path.with_name(f"{path.name}.json")
        return list(_beside(path, own if own.is_file() else path.with_name(f"{whole}.json")))
    if path.with_suffix(".json").is_file():
        return list(_beside(path, path.with_suffix(".json")))
    path = packed_path(source)
    state, header = read_packed(path)
    checks = [_equal("tensors", path.name, tensors_digest(state), header["tensors_sha256"])]
    checks += _card(path, header)
    recipe = _recipe(header)
    finished = None
    if run is not None:
        finished = open_run(run)
        own, _ = model_in(finished, header["role"])
        same = tensors_digest(state_of(own, half=header["precision"] == "float16")) == tensors_digest(state)
        checks.append(Check("model", f"{header['role']} of {run}", same))
    return checks + [_rest(each, recipe, run) for each in header.get("rests_on", [])]


def _beside(path: Path, report: Path) -> Iterator[Check]:
    """A file with a JSON report or manifest beside it, which has its SHA-256."""
    try:
        content = json.loads(report.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {report.name} beside {path}, which has its sha256; export it again") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"damaged {report}; make {path.name} again")
    files = content.get("files") or {path.name: {"sha256": content.get("sha256")}}
    if not isinstance(files, dict) or not all(isinstance(f, dict) and "sha256" in f for f in files.values()):
        raise UserError(f"damaged {report}; make {path.name} again")
    if path.name not in files:
        raise UserError(f"{report} does not name {path.name}, only {', '.join(files)}; export it again")
    for name, facts in files.items():
        place = path.with_name(name)
        if place.is_file():
            yield _equal("file", name, sha256(place), facts["sha256"])
        else:
            yield Check("file", name, False if name == path.name else None, "it is not there")
    if "source" in content:
        yield Check("source", content["source"].get("name", "?"), None, "check the packed file itself")


def _equal(what: str, name: str, found: str, recorded: object) -> Check:
    return Check(what, name, found == recorded)


def _card(path: Path, header: dict[str, Any]) -> list[Check]:
    """The card must be the one that belongs to the file, every letter of it; what was added to it is a difference."""
    place = card_path(path)
    if not place.is_file():
        return [Check("model card", place.name, None, "it is not there")]
    text = place.read_text(encoding="utf-8", errors="replace")
    named = re.search(r"\| this file \| (.+?) \| `([0-9a-f]{64})` \|", text)
    digest = sha256(path)
    if named is None or named[2] != digest:
        return [Check("file", path.name, False, f"{place.name} names another sha256")]
    same = text == make_card(header, file=named[1], digest=digest)
    return [Check("file", path.name, True), Check("model card", place.name, same, "" if same else "it was edited")]


def _recipe(header: dict[str, Any]) -> Recipe | None:
    """The recipe in the header, None where this version cannot read it any more."""
    try:
        return parse(Recipe, yaml.safe_load(header["history"]["recipe"]))
    except (UserError, yaml.YAMLError, KeyError, TypeError):
        return None


def _rest(each: dict[str, str], recipe: Recipe | None, run: Path | None) -> Check:
    """One line of what the file rests on."""
    what, name = each["what"], each["name"]
    if what in ("stage", "images", "scores"):
        if run is None:
            return Check(what, name, None, "give --run FOLDER")
        place = run / name
        return (
            _equal(what, name, sha256(place), each["sha256"])
            if place.is_file()
            else Check(what, name, None, "it is not there")
        )
    if recipe is None:
        return Check(what, name, None, "this version does not read the recipe")
    if what == "data":
        return _found(each, lambda: _data(recipe, name))
    role, _, part = what.partition(" ")
    return _found(each, lambda: sha256(_weights(getattr(recipe, role), part)))


def _found(each: dict[str, str], digest: Callable[[], str]) -> Check:
    try:
        return _equal(each["what"], each["name"], digest(), each["sha256"])
    except (UserError, OSError) as error:
        return Check(each["what"], each["name"], None, str(error).partition(":")[0])


def _data(recipe: Recipe, label: str) -> str:
    labels = [f"{number:02d}-{stage.name}" for number, stage in enumerate(recipe.stages)]
    return data_digest(recipe, labels.index(label))


def _weights(model: ModelConfig, part: str) -> Path:
    """A start file, without fetching one."""
    source = model.encoder.weights if part == "encoder" else str(model.head_weights)
    if part == "encoder" and source.startswith(("timm:", "hf:")):
        from segdistill.weights.hub import hub_file

        return hub_file(source, local=True)
    return weights_path(source, model.encoder.name) if part == "encoder" else head_path(source)
