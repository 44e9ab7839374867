"""Contents of the package as rows of text, for ``segdistill list``. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable

Rows = list[list[str]]


def encoders() -> Rows:
    """The encoders: family, parameters, patch (last stride), blocks (stages), width, taps, licence of the weights."""
    from segdistill.encoders.record import LICENCE, PREFIX
    from segdistill.encoders.table import ENCODERS

    rows = [["encoder", "family", "parameters", "patch", "blocks", "width", "taps", "licence of the weights"]]
    for name, record in ENCODERS.items():
        shape = [f"{record.parameters / 1e6:.1f} M", str(record.patch), str(record.depth), str(record.width)]
        licence = f"{record.licence}, to be accepted before the download" if record.gated else record.licence
        rows.append([name, record.family, *shape, " ".join(map(str, record.taps)), licence])
    return [*rows, [f"{PREFIX}NAME", "any of timm", *[""] * 5, LICENCE]]


def heads() -> Rows:
    """The heads of a segmenter and their papers."""
    return _documented("head", "segdistill.heads", "HEADS")


def methods() -> Rows:
    """The distillation methods and their papers."""
    return _documented("method", "segdistill.methods", "METHODS")


def generalizers() -> Rows:
    """The domain generalisation baselines and their papers."""
    return _documented("generalizer", "segdistill.generalize", "GENERALIZERS")


def domains() -> Rows:
    """The built-in world's domains and their roles."""
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
    """The weights that come with the package: encoders, and packed models, which also have a head."""
    from segdistill.shipped import asset_facts, shipped_assets, shipped_path

    rows = [["weights", "encoder", "head", "bytes", "made by"]]
    for name in shipped_assets():
        facts, size = asset_facts(name), shipped_path(name).stat().st_size
        rows.append([f"shipped:{name}", facts["encoder"], facts["head"], str(size), facts["recipe"]])
    return rows


def _documented(kind: str, module: str, table: str) -> Rows:
    from segdistill.precheck import summaries

    return [[kind, "description"], *([name, line] for name, line in summaries(module, table).items())]


def _files(kind: str, pattern: str) -> Rows:
    from segdistill.shipped import recipes_folder

    rows = [[kind, "description"]]
    for path in sorted(recipes_folder().glob(pattern)):
        rows.append([path.stem, path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")])
    return rows


LISTS: dict[str, Callable[[], Rows]] = {
    "encoders": encoders,
    "heads": heads,
    "methods": methods,
    "generalizers": generalizers,
    "domains": domains,
    "recipes": recipes,
    "tables": tables,
    "weights": weights,
}


def overview() -> Rows:
    """The lists themselves."""
    rows = [["segdistill list", "content"]]
    return rows + [[name, (make.__doc__ or "").partition("\n")[0]] for name, make in LISTS.items()]
