"""The licences that a student rests on: its teacher's weights, its own start weights, its training images.

What is named here are the licences that the tables of encoders and data sets state; it is no legal advice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from segdistill.config import UserError
from segdistill.data.dataset import DataSource
from segdistill.encoders import record_of
from segdistill.recipe import Recipe, load
from segdistill.stages.base import ModelConfig
from segdistill.weights import head_path, weights_path
from segdistill.weights.reading import PACKED

NON_COMMERCIAL = re.compile(r"non-?commercial|not-for-profit|\bNC\b|research|education", re.IGNORECASE)
OPEN = re.compile(r"^(Apache-2\.0|MIT|BSD.*|CC0.*|CC BY(-SA)? \d.*|yours)$", re.IGNORECASE)


@dataclass(frozen=True)
class Link:
    """One link of the chain: ``part`` (teacher, student start, data), what it is, its licence and what that forbids."""

    part: str
    name: str
    licence: str
    restrictions: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self) | {"restrictions": list(self.restrictions)}


def restrictions(licence: str, *, gated: bool = False) -> tuple[str, ...]:
    """``non-commercial``, ``gated``, ``own terms`` or ``unknown``: what stands between a licence and free use."""
    found = ["non-commercial"] if NON_COMMERCIAL.search(licence) else []
    found += ["gated"] if gated or "registration" in licence else []
    if not found and not OPEN.match(licence):
        found = ["unknown"] if licence.startswith(("unknown", "see ")) else ["own terms"]
    return tuple(found)


def chain(recipe: Recipe) -> list[Link]:
    """Teacher, student's start weights, then the images of every stage; each once."""
    links = [link for role in ("teacher", "student") for link in _weights(role, getattr(recipe, role))]
    links += [_link("teacher", *own) for stage in recipe.stages for own in stage.own_licences().items()]
    domains = [(recipe.data, name) for stage in recipe.stages for _, each, _ in stage.reads() for name in each.domains]
    links += [_data(source, name) for source, name in domains]
    return list(dict.fromkeys(links))


def read_chain(values: Iterable[Mapping[str, Any]]) -> list[Link]:
    """The links that :meth:`Link.as_dict` wrote."""
    return [Link(v["part"], v["name"], v["licence"], tuple(v["restrictions"])) for v in values]


def warnings(links: Iterable[Link]) -> list[str]:
    """One line for each link with restrictions: what it is, what it forbids, what follows."""
    effect = {
        "non-commercial": "non-commercial use only: a student that learnt from it inherits that",
        "gated": "gated: its terms must be accepted where it is hosted, and also apply to derived models",
        "own terms": "terms of its own: read them before you ship the student",
        "unknown": "licence not known here: read it before you ship the student",
    }
    return [
        f"{link.part} {link.name} ({link.licence}): {'; '.join(effect[each] for each in link.restrictions)}"
        for link in links
        if link.restrictions
    ]


def student_licence(links: Iterable[Link]) -> str:
    """``apache-2.0`` where nothing restricts the student, else ``other``: Hugging Face's names."""
    return "other" if any(link.restrictions for link in links) else "apache-2.0"


def _weights(role: str, model: ModelConfig | None) -> list[Link]:
    """The files that a network starts from; random weights have no licence."""
    if model is None:
        return []
    source, links = model.encoder.weights, []
    part = role if role == "teacher" else "student start"
    if source.startswith("shipped"):
        links.append(Link(part, f"{model.encoder.name} ({source})", "Apache-2.0"))
    elif source.startswith("hf:"):
        links.append(_link(part, f"{model.encoder.name} ({source})", "unknown: see the repository's page"))
    elif source != "random":
        record, file = record_of(model.encoder.name), not source.startswith("timm:")
        own = _brought(lambda: weights_path(source, model.encoder.name), part) if file else []
        name = f"{model.encoder.name} ({'a file' if file else source})"
        links += own or [_link(part, name, record.licence, gated=record.gated)]
    head = model.head_weights
    if head is not None and head.startswith("shipped"):
        links.append(Link(part, f"head ({head})", "Apache-2.0"))
    elif head is not None:
        links += _brought(lambda: head_path(head), part) or [_link(part, "head (a file)", "unknown: that of the file")]
    return links


def _brought(find: Callable[[], Path], part: str) -> list[Link]:
    """The chain of a run's stage, a packed model or a packed encoder, as links of ``part``; empty for other files."""
    try:
        path = find().resolve()
        manifest = path.with_suffix(".json")
        said = _header(path) if path.suffix == ".safetensors" else {}
        if not said and manifest.is_file():
            said = json.loads(manifest.read_text(encoding="utf-8"))
        links = _of_run(path) or read_chain(said.get("licences", ()))
        return [replace(link, part=part) for link in links]
    except (UserError, SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # the file is read, and refused, where its network starts from it


def _of_run(path: Path) -> list[Link]:
    """The chain of the run, one of whose stages wrote ``path``; empty for other files."""
    recipe = path.parent.parent.parent / "recipe.yaml"
    if path.parent.parent.name != "stages" or not recipe.is_file():
        return []
    try:
        return chain(load(recipe))
    except UserError:
        return [_link("", f"the run {recipe.parent.name}", "unknown: its recipe cannot be read")]


def _header(path: Path) -> dict[str, Any]:
    """What a packed model says of itself."""
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get(PACKED, "{}"))


def _data(source: DataSource, name: str) -> Link:
    return _link("data", name, source.licence(name))


def _link(part: str, name: str, licence: str, *, gated: bool = False) -> Link:
    return Link(part, name, licence, restrictions(licence, gated=gated))
