"""Reads YAML settings: plain values, unique keys, bounded size.

Supports mappings, lists, text, numbers, ``true``, ``false`` and ``null``; dates are text. Aliases and merge keys are
expanded to copies, so that changing one does not change the others. Every problem is a one-line ``ValueError`` with
the line number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

LONGEST = 2**18
"""Most characters of a text."""
DEEPEST = 40
"""Most levels of nesting."""
MOST = 20_000
"""Most values; those of aliases count at every use."""
DIGITS = 100
"""Most characters of a number."""

_TAG = "tag:yaml.org,2002:"
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """PyYAML's loader without dates, and with limited nesting to protect the stack."""

    depth = 0
    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own attribute
        start: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}timestamp"]
        for start, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"line {self.line + 1}: nested deeper than {DEEPEST} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def load(text: str) -> Any:
    """The value of ``text``; None if it is empty."""
    if len(text) > LONGEST:
        raise ValueError(f"{len(text):,} characters; allowed: {LONGEST:,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _Values(loader).of(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


class _Values:
    """Converts nodes to values, and counts them."""

    def __init__(self, loader: _Loader) -> None:
        self.loader, self.left = loader, MOST

    def of(self, node: Node, depth: int = 1) -> Any:
        """The value of ``node``, as a separate copy."""
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"{_line(node)}: more than {MOST:,} values, those of aliases counted at every use")
        if depth > DEEPEST:
            raise ValueError(f"{_line(node)}: nested deeper than {DEEPEST} levels, or an alias contains itself")
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        if isinstance(node, SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.of(child, depth + 1) for child in node.value]
        if isinstance(node, MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, depth)
        raise ValueError(
            f"{_line(node)}: the tag {_name(node)} is not supported; allowed: plain values, lists and groups"
        )

    def _scalar(self, node: ScalarNode) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        if kind in ("str", "value", "merge"):
            if strange := _UNSEEN.search(text):
                raise ValueError(f"{_line(node)}: text with the character {strange.group()!r}; leave it out")
            return text
        if kind not in ("null", "bool", "int", "float"):
            raise ValueError(f"{_line(node)}: the tag {_name(node)} is not supported; write the value as plain text")
        if len(text) > DIGITS:
            raise ValueError(f"{_line(node)}: a number of {len(text):,} characters; allowed: {DIGITS}")
        try:
            return getattr(self.loader, f"construct_yaml_{kind}")(node)
        except (ValueError, KeyError, IndexError, OverflowError):
            raise ValueError(f"{_line(node)}: {text!r} is not a valid {kind}") from None

    def _mapping(self, node: MappingNode, depth: int) -> dict[Any, Any]:
        """The mapping's own keys win over merged ones (``<<``), and earlier merged ones over later ones."""
        own: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, child in node.value:
            if key_node.tag == f"{_TAG}merge":
                for other in self._merged(child, depth):
                    merged = other | merged
                continue
            key = self._key(key_node)
            if key in own:
                raise ValueError(f"{_line(key_node)}: the key '{key}' appears twice; keep one of them")
            own[key] = self.of(child, depth + 1)
        return merged | own if merged else own

    def _merged(self, node: Node, depth: int) -> Iterator[dict[Any, Any]]:
        """The mappings that a merge key names."""
        for part in node.value if isinstance(node, SequenceNode) else [node]:
            value = self.of(part, depth + 1)
            if not isinstance(value, dict):
                raise ValueError(f"{_line(part)}: << merges groups (key: value), got {type(value).__name__}")
            yield value

    def _key(self, node: Node) -> str | int:
        key = self.of(node, DEEPEST) if isinstance(node, ScalarNode) else None
        if isinstance(key, bool) or not isinstance(key, str | int):
            shown = f"'{node.value}'" if isinstance(node, ScalarNode) else "a list or a group"
            raise ValueError(f"{_line(node)}: a key must be text or a whole number, got {shown}; quote it")
        return key


def _line(node: Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _name(node: Node) -> str:
    """A tag in its written form."""
    return f"!!{node.tag.removeprefix(_TAG)}" if node.tag.startswith(_TAG) else str(node.tag)
