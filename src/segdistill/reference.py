"""Every setting of a recipe and of a ``dataset.yaml`` as Markdown, read from the classes that own them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from segdistill.config import Config, Part
from segdistill.data.dataset import DataSource
from segdistill.data.files import FilesSource
from segdistill.data.own import OwnConfig
from segdistill.data.rendered import WorldSource
from segdistill.heads import HEADS
from segdistill.methods import METHODS
from segdistill.recipe import Recipe
from segdistill.stages import STAGES, StageConfig
from segdistill.tasks.table import TASKS

HEAD = """# Settings

Written by `segdistill settings`; a test says when it is out of date. A recipe is a YAML file of the settings of
[Recipe](#recipe); `key=value` on the command line changes one, such as `stages.task.steps=100`. What is left out has
the default.
"""

KINDS: dict[type[BaseModel], tuple[type[BaseModel], ...]] = {
    DataSource: (WorldSource, FilesSource),
    StageConfig: tuple(STAGES.values()),
    Config: tuple(task.Augment for task in TASKS.values()),
}
"""What stands for a class of which a recipe has a subclass."""

PLACES = {
    "WorldSource": "`data: {source: world, ...}`, the built-in world",
    "FilesSource": "`data: {source: files, ...}`, images on disk",
    "Recipe": "the recipe file",
    "OwnConfig": "a `dataset.yaml`",
    "ModelConfig": "`teacher` and `student`",
    "EvaluateConfig": "`evaluate`",
}


def settings_page() -> str:
    """The page."""
    parts = [HEAD]
    done: set[type] = set()
    for cls in (Recipe, OwnConfig):
        for each in _reachable(cls):
            if each not in done:
                done.add(each)
                parts.append(_section(each.__name__, each, PLACES.get(each.__name__)))
    for kind, table in (("method", METHODS), ("head", HEADS)):
        parts += [
            _section(f"{kind}: {name}", _config(cls), f"`{{type: {name}, ...}}`, {_first_line(cls).rstrip('.:')}")
            for name, cls in table.items()
        ]
    return "\n".join(parts)


def _reachable(cls: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The settings class ``cls`` and those below it, each before its own parts."""
    for kind in KINDS.get(cls, ()):
        yield from _reachable(kind)
    if cls not in KINDS:
        yield cls
    for field in cls.model_fields.values():
        for each in _classes(field.annotation):
            if issubclass(each, Config):
                yield from _reachable(each)


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)


def _section(title: str, cls: type[BaseModel], where: str | None) -> str:
    lines = [f"## {title}", ""]
    lines += [f"{where[0].upper()}{where[1:]}." if where else _sentence(_first_line(cls)), ""]
    lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
    for name, field in cls.model_fields.items():
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | {_escape(_type(field))} | {_escape(_default(field))} | {_escape(meaning)} |")
    return "\n".join([*lines, ""])


def _config(cls: Any) -> type[BaseModel]:
    return cls.Config


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


def _type(field: FieldInfo) -> str:
    """What may be written, in words: ``whole number >= 1``, ``name of a method``."""
    text = _words(field.annotation)
    symbols = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "at least", "max_length": "at most"}
    limits = [
        f"{symbols[name]} {getattr(rule, name)}"
        for rule in field.metadata
        for name in symbols
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([text, *limits])


def _words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(argument) for argument in arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_words(arguments[0])}"
        return f"[{', '.join(map(_words, arguments))}]"
    if origin is dict:
        return f"{_words(arguments[0])}: {_words(arguments[1])}, ..."
    if annotation is Part:
        return "`{type: ..., settings}`"
    known = {int: "whole number", float: "number", bool: "true or false", str: "text", type(None): "null"}
    if annotation in known:
        return known[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        names = [kind.__name__ for kind in KINDS.get(annotation, (annotation,))]
        return " or ".join(f"[{name}](#{name.lower()})" for name in names)
    return "path" if getattr(annotation, "__name__", "") == "Path" else getattr(annotation, "__name__", str(annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "null"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`" if str(value) else "empty"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
