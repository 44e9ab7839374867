"""The tables of the package as rows of text, for ``segdistill list``."""

from __future__ import annotations

from collections.abc import Callable

Rows = list[list[str]]


def encoders() -> Rows:
    """Name, family, parameters, patch (last stride), blocks (stages), width, taps and the licence of the weights."""
    from segdistill.encoders import ENCODERS
    from segdistill.encoders.anytimm import LICENCE, PREFIX

    rows = [["encoder", "family", "parameters", "patch", "blocks", "width", "taps", "licence of the weights"]]
    for name, record in ENCODERS.items():
        shape = [f"{record.parameters / 1e6:.1f} M", str(record.patch), str(record.depth), str(record.width)]
        licence = f"{record.licence}, to be accepted at their host" if record.gated else record.licence
        rows.append([name, record.family, *shape, " ".join(map(str, record.taps)), licence])
    return [*rows, [f"{PREFIX}NAME", "any of timm", *[""] * 5, LICENCE]]


def decoders() -> Rows:
    """Name and first line of the documentation."""
    from segdistill.decoders import DECODERS

    return _documented("decoder", DECODERS)


def methods() -> Rows:
    """Name and first line of the documentation."""
    from segdistill.methods import METHODS

    return _documented("method", METHODS)


def domains() -> Rows:
    """The world's domains and the part they play."""
    from segdistill.world import DOMAINS

    rows = [["domain", "role", "labels"]]
    rows += [[name, domain.role, "yes" if domain.labelled else "no"] for name, domain in DOMAINS.items()]
    return rows


def recipes() -> Rows:
    """The shipped recipes and their first line."""
    return _files("recipe", "*.yaml")


def tables() -> Rows:
    """The shipped tables and their first line."""
    return _files("table", "tables/*.yaml")


def weights() -> Rows:
    """The encoder weights that come with the package."""
    import json

    from segdistill.weights import ASSETS, shipped_assets

    rows = [["weights", "encoder", "bytes", "made by"]]
    for name in shipped_assets():
        path = ASSETS / f"{name}.safetensors"
        manifest = json.loads((ASSETS / f"{name}.json").read_text(encoding="utf-8"))
        rows.append([f"shipped:{name}", manifest["encoder"], str(path.stat().st_size), manifest["recipe"]])
    return rows


def _documented(kind: str, table: dict[str, type]) -> Rows:
    return [[kind, "what it is"]] + [[name, (cls.__doc__ or "").strip().splitlines()[0]] for name, cls in table.items()]


def _files(kind: str, pattern: str) -> Rows:
    from segdistill.demo import recipes_folder

    rows = [[kind, "what it is"]]
    for path in sorted(recipes_folder().glob(pattern)):
        rows.append([str(path), path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")])
    return rows


LISTS: dict[str, Callable[[], Rows]] = {
    "encoders": encoders,
    "decoders": decoders,
    "methods": methods,
    "domains": domains,
    "recipes": recipes,
    "tables": tables,
    "weights": weights,
}
