"""Applies ``key=value`` overrides to settings before validation. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segdistill import plainyaml
from segdistill.config import UserError, nearest, read_yaml, short

OWN = "table."
"""Start of the overrides that change a table itself."""


def recipe_values(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of the recipe in ``path`` with ``key=value`` overrides, not validated yet."""
    values = read_yaml(path, "recipe", "`segdistill list recipes` lists the shipped ones")
    for override in overrides:
        apply(values, override)
    return values


def table_values(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of the table in ``path``, changed by those ``overrides`` that start with :data:`OWN`."""
    known = [file.stem for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    values = read_yaml(path, "table", f"{nearest(path.stem, known)}tables are in recipes/tables")
    for override in overrides:
        if override.startswith(OWN):
            apply(values, override.removeprefix(OWN))
    return values


def apply(values: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value`` in place; list items are addressed by their ``name`` or index.

    ``null`` removes an item of a list, such as ``stages.start=null``.
    ``*`` addresses all items of a list that have the key, such as ``stages.*.data.fraction=1/5``, and ``**`` all groups
    that have it, at any depth: ``stages.**.fraction=1/5``. Without these, new keys are set too; validation decides
    later whether they are allowed.
    """
    key, equals, text = override.partition("=")
    shown = f"override '{short(override)}'"
    if not equals or not key.strip():
        raise UserError(f"{shown} is not of the form key=value, such as stages.task.steps=100")
    try:
        value = plainyaml.load(text)
    except ValueError as error:
        raise UserError(f"{shown}: the value is not valid YAML; quote it ({short(str(error), 200)})") from None
    *path, last = key.strip().split(".")
    if len(path) >= plainyaml.DEEPEST:
        raise UserError(f"{shown}: the key has {len(path) + 1:,} levels, but no setting is nested that deep")
    if "**" in path:
        _apply_below(values, path, last, value, shown)
        return
    if "*" in path:
        _apply_to_all(values, [*path, last], text, shown)
        return
    node: Any = values
    for step in path:
        node = _child(node, step, shown)
    if isinstance(node, list) and value is None:
        del node[_position(node, last, shown)]
    elif isinstance(node, list):
        node[_position(node, last, shown)] = value
    else:
        node[last] = value


def _apply_to_all(values: dict[str, Any], path: list[str], text: str, shown: str) -> None:
    """:func:`apply` for every item that ``*`` stands for."""
    star = path.index("*")
    node: Any = values
    for step in path[:star]:
        node = _child(node, step, shown)
    if not isinstance(node, list):
        raise UserError(f"{shown}: '*' stands for the items of a list, but {'.'.join(path[:star])} is not one")
    places = [str(place) for place, item in enumerate(node) if isinstance(item, dict) and item.get(path[star + 1])]
    if not places:
        raise UserError(f"{shown}: no item of {'.'.join(path[:star])} has '{path[star + 1]}'")
    for place in places:
        apply(values, f"{'.'.join([*path[:star], place, *path[star + 1 :]])}={text}")


def _apply_below(values: dict[str, Any], path: list[str], last: str, value: Any, shown: str) -> None:
    """Set ``last`` in every group that has it, at any depth below the place that ``**`` follows."""
    place: Any = values
    if path.index("**") != len(path) - 1:
        raise UserError(f"{shown}: '**' stands before the last key, such as stages.**.fraction")
    for step in path[:-1]:
        place = _child(place, step, shown)
    groups, found = [place], False
    while groups:
        node = groups.pop()
        if isinstance(node, dict) and last in node:
            node[last], found = value, True
        groups += [
            child for child in (node.values() if isinstance(node, dict) else node) if isinstance(child, dict | list)
        ]
    if not found:
        raise UserError(f"{shown}: no group below {'.'.join(path[:-1]) or 'the settings'} has '{last}'")


def _child(node: dict[str, Any] | list[Any], step: str, shown: str) -> dict[str, Any] | list[Any]:
    """The group or list at ``step`` of ``node``; a missing group is created."""
    place = _position(node, step, shown) if isinstance(node, list) else step
    if isinstance(node, dict) and node.get(step) is None:
        node[step] = {}
    child: Any = node[place]  # type: ignore[index]
    if not isinstance(child, dict | list):
        raise UserError(f"{shown}: '{step}' is a value, not a group of settings")
    return child


def _position(node: list[Any], step: str, shown: str) -> int:
    """The index of the list item with the name or index ``step``."""
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    if step in names:
        return names.index(step)
    if re.fullmatch(r"[0-9]{1,6}", step) and int(step) < len(node):
        return int(step)
    allowed = [name for name in names if isinstance(name, str) and name] or [str(i) for i in range(len(node))]
    hint = nearest(short(step), allowed)
    raise UserError(f"{shown}: no '{short(step)}' there; {hint}allowed: {', '.join(allowed) or 'nothing'}")
