"""The page of the Python functions: signatures and docstrings, read from the source text without importing it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "segdistill"
ALSO: dict[str, tuple[str, ...]] = {
    "segdistill.config": ("UserError",),
    "segdistill.runlog": ("Watcher",),
    "segdistill.trackers": ("Tracker", "Tracked"),
}
"""What a caller meets and the package does not export."""
WIDTH = 100
Node = ast.FunctionDef | ast.ClassDef
HEAD = """# Python

The functions and classes that are meant to be called.
"""
EXAMPLES = "[Using a finished model](use.md) has examples that run.\n"


def page(package: Path = PACKAGE, also: Mapping[str, Sequence[str]] = ALSO) -> str:
    """Everything that the package exports, and ``also``, as Markdown."""
    entries: dict[tuple[str, str], str] = {}
    for name, module in sorted(exported(package).items()):
        entries[find(package, module, name)] = f"{package.name}.{name}"
    for module, names in also.items():
        for name in names:
            entries.setdefault(find(package, module, name), f"{module}.{name}")
    texts = []
    for (module, name), title in sorted(entries.items(), key=lambda item: item[1].lower()):
        texts.append(entry(definition(package, module, name), title))
    head = [HEAD, EXAMPLES] if Path(__file__).with_name("use.md").exists() else [HEAD]
    return "\n".join([*head, *texts])


def exported(package: Path) -> dict[str, str]:
    """The public names that ``__init__.py`` imports from its modules, those for the type checker included."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    found = {
        alias.asname or alias.name: node.module or ""
        for node in imports
        for alias in node.names
        if (node.module or "").startswith(f"{package.name}.")
    }
    return {name: module for name, module in found.items() if not name.startswith("_")}


def find(package: Path, module: str, name: str) -> tuple[str, str]:
    """The module that defines ``name``, which ``module`` may only import; and its name there."""
    for node in tree_of(package, module).body:
        if isinstance(node, Node) and node.name == name:
            return module, name
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package.name}."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(package, node.module or "", alias.name)
    raise LookupError(f"{module} has no function or class {name}")


def tree_of(package: Path, module: str) -> ast.Module:
    """The syntax tree of a module."""
    place = package.parent.joinpath(*module.split("."))
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def definition(package: Path, module: str, name: str) -> Node:
    """The definition of ``name`` in ``module``."""
    body = tree_of(package, module).body
    return next(node for node in body if isinstance(node, Node) and node.name == name)


def entry(node: Node, title: str) -> str:
    """One function or class with its public methods."""
    lines = [f"## {title}", ""]
    if isinstance(node, ast.ClassDef):
        lines += [f"class `{node.name}`", "", text_of(node), ""]
        for member in members(node):
            kind = "property " if is_property(member) else ""
            lines += [*signature(member, prefix=kind), "", text_of(member), ""]
    else:
        lines += [*signature(node), "", text_of(node), ""]
    return "\n".join(lines)


def members(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """The public methods that say what they do."""
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and not member.name.startswith("_") and ast.get_docstring(member):
            yield member


def is_property(node: ast.FunctionDef) -> bool:
    """Whether a method is read like an attribute."""
    return any(ast.unparse(each).endswith("property") for each in node.decorator_list)


def signature(node: ast.FunctionDef, prefix: str = "") -> list[str]:
    """The call as a code block, one parameter a line where it is long."""
    arguments = ast.unparse(node.args)
    arguments = re.sub(r"^self(, )?", "", arguments)
    result = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    line = f"{prefix}{node.name}({arguments}){result}"
    if prefix:
        line = f"{prefix}{node.name}{result.replace(' -> ', ': ')}"
    elif len(line) > WIDTH:
        parameters = split(arguments)
        line = "\n".join([f"{node.name}(", *(f"    {each}," for each in parameters), f"){result}"])
    return ["```python", line, "```"]


def split(arguments: str) -> list[str]:
    """The parameters between commas that no bracket or quote encloses."""
    parts, depth, quote = [""], 0, ""
    for letter in arguments:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in "([{") - (letter in ")]}") if not quote else 0
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def text_of(node: Node) -> str:
    """The docstring as Markdown."""
    text = inspect.cleandoc(ast.get_docstring(node) or "")
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    text = re.sub(r"::\n\n((?:    .*\n|\n)+)", lambda match: ":\n\n" + match.group(1), f"{text}\n")
    return text.replace("``", "`").strip()
