"""The base of every settings class, how settings are read, and the one exception that a user's mistake raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny, ValidationError, model_serializer

T = TypeVar("T")
C = TypeVar("C", bound=BaseModel)


class UserError(ValueError):
    """A mistake that the user can mend: one line that says what came, what is allowed and what to do."""


class Config(BaseModel):
    """Frozen settings of one part, declared beside the class that reads them. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, ser_json_inf_nan="constants")


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``did you mean 'x'? `` for the allowed name that resembles ``name`` most, else an empty string."""
    match = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'? " if match else ""


def choose(kind: str, name: object, table: Mapping[str, T]) -> T:
    """``table[name]``, or a :class:`UserError` that names the nearest key and all keys."""
    if not isinstance(name, str) or name not in table:
        raise UserError(f"unknown {kind} '{name}': {nearest(str(name), table)}allowed: {', '.join(sorted(table))}")
    return table[name]


def describe(error: ValidationError, root: str, cls: type[BaseModel]) -> list[str]:
    """One line per problem of a pydantic error: the path, what came and what is allowed."""
    lines = []
    problems = error.errors(include_url=False)
    for problem in problems:
        inner = any(other["loc"][: len(problem["loc"])] == problem["loc"] for other in problems if other is not problem)
        if problem["type"] == "too_short" and inner:
            continue  # a list counts its wrong items as missing
        path = ".".join([*([root] if root else []), *map(str, problem["loc"])])
        if problem["type"] == "extra_forbidden":
            fields = _fields_at(cls, problem["loc"][:-1])
            lines.append(
                f"{path}: unknown key; {nearest(str(problem['loc'][-1]), fields)}allowed: {', '.join(sorted(fields))}"
            )
        elif problem["type"] == "missing":
            lines.append(f"{path}: is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            whole = problem["type"] == "value_error" and isinstance(problem["input"], dict)  # the message says it
            got = "" if whole else f", got {problem['input']!r}"
            lines.append(": ".join([*([path] if path else []), message + got]))
    return lines


def read_yaml(path: Path, what: str, missing: str) -> dict[str, Any]:
    """The settings in the file ``path``, not validated yet; a :class:`UserError` where there are none.

    ``what`` the file is, such as "recipe", and what to say where it is ``missing``.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}; {missing}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the {what} {path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: a date that does not exist
        raise UserError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a {what} is a mapping of settings (key: value), got {type(values).__name__}")
    return _unshared(values)


def apply(values: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value`` in place; list items go by their ``name`` or their number.

    A key that does not exist yet is set too: whether it may exist is for the validation to say.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"override '{override}' is not of the form key=value, such as stages.task.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override '{override}': the value is no valid YAML; quote it") from None
    *path, last = key.strip().split(".")
    node: Any = values
    for step in path:
        node = _child(node, step, override)
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, step: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, step, override)]
    if step not in node or node[step] is None:
        node[step] = {}
    if not isinstance(node[step], dict | list):
        raise UserError(f"override '{override}': '{step}' is a value, not a group of settings")
    return node[step]


def _position(node: list[Any], step: str, override: str) -> int:
    names = [item.get("name") for item in node if isinstance(item, dict)]
    if step in names:
        return names.index(step)
    if step.isdigit() and int(step) < len(node):
        return int(step)
    allowed = [name for name in names if name] or [str(i) for i in range(len(node))]
    raise UserError(f"override '{override}': no '{step}' there; {nearest(step, allowed)}allowed: {', '.join(allowed)}")


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's aliases name several times stands several times: an override means one of them."""
    if isinstance(value, dict):
        return {key: _unshared(child) for key, child in value.items()}
    return [_unshared(child) for child in value] if isinstance(value, list) else value


def parse(cls: type[C], values: object, root: str = "", *, context: object = None) -> C:
    """Validate ``values`` as ``cls``; a :class:`UserError` lists all problems at once.

    ``context`` is what the validators of ``cls`` are told beside the values.
    """
    if not isinstance(values, dict):
        raise UserError(f"{root or cls.__name__}: expected settings (key: value), got {values!r}")
    try:
        return cls.model_validate(values, context=context)
    except ValidationError as error:
        raise UserError("; ".join(describe(error, root, cls))) from None


def _fields_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names of the settings class at ``location`` below ``cls``."""
    current: type[BaseModel] = cls
    for step in location:
        field = current.model_fields.get(str(step))
        choices = [] if field is None else [field.annotation, *get_args(field.annotation)]
        models = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]
        if not models:
            return list(current.model_fields)
        current = models[0]
    return list(current.model_fields)


class Part(BaseModel):
    """One choice from a table and its settings, written flat in YAML: ``{type: gkd, patch_weight: 1.0}``."""

    model_config = ConfigDict(frozen=True)

    type: str
    settings: SerializeAsAny[Config]

    @model_serializer
    def _flat(self) -> dict[str, object]:
        return {"type": self.type, **self.settings.model_dump(mode="json")}


def part_of(kind: str, table: Mapping[str, type]) -> object:
    """The annotation of a :class:`Part` field whose ``type`` is a key of ``table`` (classes with a ``Config``)."""

    def read(value: object) -> object:
        if isinstance(value, Part):
            return value
        if not isinstance(value, dict) or "type" not in value:
            raise ValueError(f"expected {{type: ..., settings}} with a type of {', '.join(sorted(table))}")
        settings = {key: item for key, item in value.items() if key != "type"}
        config = choose(kind, value["type"], table).Config
        return Part(type=value["type"], settings=parse(config, settings, kind))

    return Annotated[Part, BeforeValidator(read)]
