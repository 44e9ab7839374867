"""Hypothesis strategies that spoil inputs: settings trees (YAML, JSON) and bytes. What property tests share."""

from __future__ import annotations

import copy
import math
from typing import Any

from hypothesis import strategies as st

STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    17,
    10**9,
    -(10**9),
    2**63,
    2**64,
    10**30,
    0.0,
    -0.0,
    0.5,
    1e-300,
    1e300,
    math.inf,
    -math.inf,
    math.nan,
    "",
    " ",
    "0",
    "1",
    "nan",
    "null",
    "../../x",
    "/",
    "a\0b",
    "\N{COMBINING ACUTE ACCENT}",
    "x" * 300,
    [],
    {},
    [None],
    [[]],
    [0],
    [1, 2],
    [2, 0.5],
    [-1, -1],
    [math.nan, 1.0],
    {"": None},
    {"type": "gkd"},
    {"type": None},
    {1: 2},
)
"""Values that a setting hardly ever wants."""  # fmt: skip


def paths(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every node of ``tree`` except its root: keys of mappings and indices of lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found: list[tuple[Any, ...]] = []
    for key, child in items:
        found += [(*prefix, key), *paths(child, (*prefix, key))]
    return found


@st.composite
def spoiled(draw: Any, tree: Any, most: int = 2) -> Any:
    """A copy of ``tree`` in which one to ``most`` nodes are replaced, removed, repeated, renamed or swapped."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        places = paths(tree)
        if not places:
            return tree
        *way, key = draw(st.sampled_from(places))
        node = tree
        for step in way:
            node = node[step]
        action = draw(st.sampled_from(("replace", "replace", "scale", "remove", "repeat", "rename", "swap")))
        if action == "remove":
            del node[key]
        elif action == "repeat" and isinstance(node, list):
            node.insert(key, copy.deepcopy(node[key]))
        elif action == "rename" and isinstance(node, dict):
            node[draw(st.sampled_from((f"{key}_", str(key)[:-1], "type", "name", 7)))] = node.pop(key)
        elif action == "swap":
            other = draw(st.sampled_from(places))
            value: Any = tree
            for step in other:
                value = value[step]
            node[key] = copy.deepcopy(value)
        elif action == "scale" and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = node[key] * draw(st.sampled_from((-1, 0, 0.5, 2, 1000)))
        else:
            node[key] = copy.deepcopy(draw(st.sampled_from(STRANGE)))
    return tree


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """``data`` with a bit flipped, cut short, emptied, with bytes inserted, or with a block of zeros."""
    if not data:
        return b"\0"
    place = draw(st.integers(0, len(data) - 1))
    action = draw(st.sampled_from(("flip", "cut", "empty", "insert", "zero")))
    if action == "flip":
        return data[:place] + bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) + data[place + 1 :]
    if action == "insert":
        return data[:place] + draw(st.binary(min_size=1, max_size=9)) + data[place:]
    if action == "zero":
        return data[:place] + bytes(len(data[place : place + 64])) + data[place + 64 :]
    return data[:place] if action == "cut" else b""
