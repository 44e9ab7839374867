"""Finds mistakes in the text of a recipe within a fraction of a second: keys, names, types and ranges.

Settings are declared in the modules that use them, and those import torch. This module reads the declarations from the
source code (``ast``) without executing it, and builds classes with the same fields: annotation, default and ``Field``.
What only code can check (validators, weights, data), and any declaration that is not understood, is left to
:func:`segdistill.recipe.load`. What fails here is wrong; what passes may still be.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from segdistill import config
from segdistill.config import Config, UserError, choose, nearest, parse, part_of
from segdistill.overrides import OWN, recipe_values, table_values
from segdistill.shipped import listed_path, recipes_folder

PLAIN: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool, "None": None, "Path": Path, "Any": Any}
GENERIC: dict[str, Any] = {"tuple": tuple, "list": list, "dict": dict}
RECIPE, TABLE = ("segdistill.recipe", "Recipe"), ("segdistill.grid.table", "TableConfig")


def check_recipe(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The settings in ``path`` with ``key=value`` overrides; a :class:`UserError` lists all mistakes found."""
    values = recipe_values(path, overrides)
    parse(light(*RECIPE), values)
    return values


def check_table(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Like :func:`check_recipe`, for a table of recipes, whose own overrides start with ``table.``, and its rows.

    Every row is checked with the sweep's first value, and every other value with the first row.
    """
    values = table_values(path, overrides)
    others = [override for override in overrides if not override.startswith(OWN)]
    if wrong := [override for override in others if "=" not in override]:
        raise UserError(f"override '{wrong[0]}' is not of the form key=value, such as stages.task.steps=100")
    parse(light(*TABLE), values, path.name)
    _check_rows(values, others)
    return values


def _check_rows(values: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """The recipes and settings that a table names."""
    sweep = (values.get("sweep") or {}).get("values") or {"": ()}
    first, *others = sweep
    pairs = [(row, first) for row in values["rows"]] + [(values["rows"][0], value) for value in others]
    problems = []
    for row, value in pairs:
        settings = [*(values.get("settings") or ()), *(row.get("settings") or ()), *(sweep[value] or ()), *overrides]
        settings.append(f"seed={(values.get('seeds') or [0])[0]}")  # a table's seed has the last word
        try:
            check_recipe(listed_path(row["recipe"], recipes_folder()), settings)
        except UserError as error:
            problems.append(f"row '{row['title']}'{f', {value}' if value else ''}: {error}")
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))


@dataclass(frozen=True)
class Module:
    """The parsed source of a module."""

    name: str
    tree: ast.Module

    def imported(self, name: str) -> tuple[str, str] | None:
        """Where ``name`` is imported from: the module, and the name there."""
        blocks = [self.tree.body, *(node.body for node in self.tree.body if isinstance(node, ast.If))]
        for node in (node for block in blocks for node in block):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("segdistill"):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return node.module, alias.name
        return None

    def own(self, name: str) -> ast.ClassDef | ast.expr | None:
        """The top-level class of this name, or the value assigned to it."""
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return getattr(node, "value", None)
        return None


@cache
def source(module: str) -> Module:
    """The source of a module; imports at most its parent packages, never the module itself."""
    package, _, last = module.rpartition(".")
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    path = next((p for p in (folder / f"{last}.py", folder / last / "__init__.py") if p.is_file()), None)
    if path is None:
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None, module
        path = Path(spec.origin)
    return Module(module, ast.parse(path.read_text(encoding="utf-8")))


def located(module: str, name: str) -> tuple[str, ast.ClassDef | ast.expr] | None:
    """The module that defines ``name`` (a class, ``Class.Inner`` or a value) of ``module``, and its node."""
    first, _, rest = name.partition(".")
    read = source(module)
    node = read.own(first)
    if node is None:
        there = read.imported(first)
        if there is None:
            return None
        place, original = there
        if (Path(__file__).parent.joinpath(*place.split(".")[1:]) / f"{original}.py").is_file():
            return located(f"{place}.{original}", rest) if rest else None
        return located(place, f"{original}.{rest}" if rest else original)
    if rest and isinstance(node, ast.ClassDef):
        return _inner(module, node, rest)
    return None if rest else (module, node)


def _inner(module: str, node: ast.ClassDef, name: str) -> tuple[str, ast.ClassDef | ast.expr] | None:
    """A class nested in a class or in one of its bases."""
    for each in node.body:
        if isinstance(each, ast.ClassDef) and each.name == name:
            return module, each
    for base in node.bases:
        if (found := located(module, f"{ast.unparse(base)}.{name}")) is not None:
            return found
    return None


@cache
def light(module: str, name: str) -> type[Config]:
    """A settings class with the fields of class ``name`` of ``module``, built without importing it."""
    found = located(module, name)
    home, node = found or (module, None)
    if not isinstance(node, ast.ClassDef):
        raise LookupError(f"{module}.{name}")
    fields: dict[str, Any] = {}
    fields |= {field: (annotation, default) for field, annotation, default in _fields(home, node)}
    if name == "EncoderConfig":
        fields["name"] = (Annotated[str, BeforeValidator(_encoder)], ...)
    return create_model(name.replace(".", ""), __base__=Config, __doc__="", **fields)


def _fields(module: str, node: ast.ClassDef) -> Iterator[tuple[str, Any, Any]]:
    """Name, annotation and default of every field, base classes first."""
    for base in node.bases:
        found = located(module, ast.unparse(base))
        if found is not None and isinstance(found[1], ast.ClassDef) and found[0] != "segdistill.config":
            yield from _fields(found[0], found[1])
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.target.id[0] != "_":
            annotation = _type(module, each.annotation)
            limits, default = _declared(each.value)
            yield each.target.id, Annotated[annotation, limits] if limits is not None else annotation, default


def _declared(value: ast.expr | None) -> tuple[Any, Any]:
    """The limits in ``Field(...)``, and the default: ``...`` for a required field, else a placeholder."""
    if value is None:
        return None, ...
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        limits = _limits(value)
        named = any(keyword.arg in ("default", "default_factory") for keyword in value.keywords)
        required = not named and (not value.args or ast.unparse(value.args[0]) == "...")
        return limits, ... if required else _Unchecked
    return None, _Unchecked


def _limits(call: ast.Call) -> Any:
    """``Field`` with the limits that are literals or names of :mod:`segdistill.config`."""
    kept: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
            try:
                kept[keyword.arg] = ast.literal_eval(keyword.value)
            except ValueError:
                if isinstance(keyword.value, ast.Name) and hasattr(config, keyword.value.id):
                    kept[keyword.arg] = getattr(config, keyword.value.id)
    return Field(**kept) if kept else None


class _Missing:
    """Placeholder for a default, which is not checked."""


_Unchecked = Field(default_factory=_Missing, validate_default=False)


def _type(module: str, node: ast.expr) -> Any:
    """The annotation as a type; ``Any`` if it is not understood."""
    if isinstance(node, ast.Constant):
        return _type(module, ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node.value
    if isinstance(node, ast.BinOp):
        return operator.or_(*(_type(module, side) or type(None) for side in (node.left, node.right)))
    if isinstance(node, ast.Subscript):
        return _generic(module, node)
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "part_of":
        kind, table, *default = node.args
        return part_of(ast.literal_eval(kind), _Parts(module, ast.unparse(table)), *map(ast.literal_eval, default))
    if isinstance(node, ast.Name):
        return PLAIN[node.id] if node.id in PLAIN else _named(module, node.id)
    return Any


def _generic(module: str, node: ast.Subscript) -> Any:
    """``tuple[int, ...]``, ``Literal["a"]``, ``Annotated[int, Field(ge=1)]``."""
    outer = ast.unparse(node.value)
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if outer == "Literal":
        literal: Any = Literal
        return literal[tuple(ast.literal_eval(each) for each in inner)]
    if outer == "Annotated":
        calls = [each for each in inner[1:] if isinstance(each, ast.Call)]
        if any(ast.unparse(call.func) == "BeforeValidator" for call in calls):
            return Any  # the validator may accept more than the type
        limits = next((_limits(call) for call in calls if ast.unparse(call.func) == "Field"), None)
        own = _type(module, inner[0])
        return own if limits is None else Annotated[own, limits]
    if outer in GENERIC:
        parts = tuple(... if ast.unparse(each) == "..." else _type(module, each) for each in inner)
        return GENERIC[outer][parts if len(parts) > 1 else parts[0]]
    return Any


def _named(module: str, name: str) -> Any:
    """The settings class or type behind a name; aliases declared in :mod:`segdistill.config` are used directly."""
    if source(module).imported(name) == (config.__name__, name) and not isinstance(getattr(config, name), type):
        return getattr(config, name)
    if (module, name) in CHOICES or (known := located(module, name)) is None:
        return Annotated[Any, BeforeValidator(CHOICES[module, name])] if (module, name) in CHOICES else Any
    home, node = known
    if (home, name) in CHOICES:
        return Annotated[Any, BeforeValidator(CHOICES[home, name])]
    if not isinstance(node, ast.ClassDef):
        return _type(home, node)
    return light(home, name) if name.endswith("Config") or _is_settings(home, node) else Any


def _is_settings(module: str, node: ast.ClassDef) -> bool:
    for base in map(ast.unparse, node.bases):
        found = located(module, base)
        if found is not None and isinstance(found[1], ast.ClassDef):
            return (found[0], base) == ("segdistill.config", "Config") or _is_settings(*found)  # type: ignore[arg-type]
    return False


class _Parts(Mapping[str, type]):
    """A table of classes with a ``Config``, each parsed on first use."""

    def __init__(self, module: str, table: str) -> None:
        self.homes = classes_of(module, table)

    def __getitem__(self, key: str) -> type:
        module, name = self.homes[key]
        return type(name, (), {"Config": light(module, f"{name}.Config")})

    def __iter__(self) -> Iterator[str]:
        return iter(self.homes)

    def __len__(self) -> int:
        return len(self.homes)


def classes_of(module: str, table: str) -> dict[str, tuple[str, str]]:
    """The entries of a table ``{"name": Class, ...}``: module and name of each class, in the table's order."""
    found = located(module, table)
    assert found is not None and isinstance(found[1], ast.Dict), table
    return {ast.literal_eval(key): (found[0], ast.unparse(value))
            for key, value in zip(found[1].keys, found[1].values, strict=True) if key is not None}  # fmt: skip


def summaries(module: str, table: str) -> dict[str, str]:
    """For every entry of a table of classes, the first line of its module's docstring, which names the paper."""
    lines = {}
    for key, (home, name) in classes_of(module, table).items():
        found = located(home, name)
        assert found is not None, name
        lines[key] = (ast.get_docstring(source(found[0]).tree) or "").strip().partition("\n")[0]
    return lines


def _encoder(value: object) -> object:
    """Validate the name of an encoder of the table or of timm."""
    from segdistill.encoders.record import PREFIX
    from segdistill.encoders.table import ENCODERS

    if isinstance(value, str) and value not in ENCODERS and not value.startswith(PREFIX):
        raise UserError(
            f"unknown encoder '{value}': {nearest(value, ENCODERS)}`segdistill list encoders` names all "
            f"{len(ENCODERS)}, {PREFIX}<name> is any backbone of timm"
        )
    return value


def _stage(value: object) -> object:
    table = classes_of("segdistill.recipe", "STAGES")
    if not isinstance(value, dict) or "type" not in value:
        raise ValueError(f"a stage is {{type: ..., settings}}; allowed types: {', '.join(table)}")
    return parse(light(*choose("stage type", value["type"], table)), value, f"stage '{value.get('name', '?')}'")


def _task(value: object) -> object:
    return choose("task", str(value), classes_of("segdistill.tasks.table", "TASKS")) and value


def _augment(value: object) -> object:
    """Not checked here: its settings depend on the recipe's task, which the full check knows."""
    return value


def _source(value: object) -> object:
    table = classes_of("segdistill.data.source", "SOURCES")
    if not isinstance(value, dict):
        raise ValueError(f"expected settings with a source of {', '.join(table)}")
    return parse(light(*choose("source", value.get("source", "world"), table)), value, "data")


CHOICES: dict[tuple[str, str], Callable[[object], object]] = {
    ("segdistill.recipe", "Stage"): _stage,
    ("segdistill.recipe", "TaskName"): _task,
    ("segdistill.stages.task", "AnyAugment"): _augment,
    ("segdistill.data.source", "AnySource"): _source,
}
"""Annotations whose class depends on a value, with a validator that selects it."""
