"""Files that come with the package (recipes, tables, weights) and how commands refer to them. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from segdistill.config import UserError, nearest

ASSETS = Path(__file__).parent / "assets"

DEMOS = {
    "semantic": ("world_none", "world_vanilla_kd", "world_gkd", "world_heir"),
    "instance": (
        "world_instance_start",
        "world_instance_supervised",
        "world_instance_heir_transfer",
        "world_instance_heir",
    ),
}
"""Recipes of each demo, by task."""


def recipes_folder() -> Path:
    """The shipped recipes: inside an installed package, or in the source tree."""
    package = Path(__file__).parent
    for folder in (package / "recipes", package.parents[1] / "recipes"):
        if folder.is_dir():
            return folder
    raise UserError("this installation has no recipes; clone the repository or reinstall")


def shipped_assets() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in ASSETS.glob("*.safetensors"))


def shipped_path(asset: str) -> Path:
    """The weight file of the name ``asset``; a :class:`UserError` if there is none."""
    known = shipped_assets()
    if asset not in known:
        raise UserError(
            f"no shipped weights '{asset}': {nearest(asset, known)}"
            f"allowed: {', '.join(known) or 'none are in this copy'}; or give a path, or weights: random"
        )
    return ASSETS / f"{asset}.safetensors"


def asset_facts(asset: str) -> dict[str, str]:
    """The ``encoder``, ``head`` (``-``: none) and ``recipe`` of shipped weights.

    They stand in the header of a packed model, and for an encoder in the JSON file beside it.
    """
    path = shipped_path(asset)
    if path.with_suffix(".json").is_file():
        manifest = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return {"encoder": manifest["encoder"], "head": "-", "recipe": manifest["recipe"]}
    with path.open("rb") as file:  # a safetensors file: the length of a JSON header, then the header
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    said = json.loads(header["__metadata__"]["segdistill"])
    model = said["model"]
    return {"encoder": model["encoder"]["name"], "head": model["head"]["type"], "recipe": said["name"]}


def recipe_path(word: Path) -> Path:
    """The file that ``word`` refers to: a path, or the name of a shipped recipe."""
    return _named(word, "")


def listed_path(name: str, recipes: Path) -> Path:
    """The recipe that a table names: a path with a suffix, or a name in the folder ``recipes``."""
    path = Path(name)
    return path if path.suffix else recipes / f"{name}.yaml"


def table_path(word: Path) -> Path:
    """The file that ``word`` refers to: a path, or the name of a shipped table."""
    return _named(word, "tables")


def _named(word: Path, folder: str) -> Path:
    if word.exists() or word.name != str(word) or word.suffix:
        return word
    path = recipes_folder() / folder / f"{word.name}.yaml"
    return path if path.is_file() else word
