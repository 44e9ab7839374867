"""The base of all settings classes, reading of settings, and the exception for user mistakes."""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_serializer,
)

from segdistill import plainyaml

T = TypeVar("T")
C = TypeVar("C", bound=BaseModel)

LONGEST_LINE = 1800
"""Characters of a message, about twenty lines of a terminal."""
MOST_PROBLEMS = 12
"""Problems listed per group of settings."""
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Byte order marks of UTF-16, which some editors write as "Unicode"."""


class UserError(ValueError):
    """A mistake that the user can fix: one line with what was given, what is allowed and what to do."""

    def __init__(self, message: str) -> None:
        line = re.sub(r"\s*[\r\n]\s*", " ", message)
        super().__init__(short("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line), LONGEST_LINE))


class Config(BaseModel):
    """Frozen settings of one part, declared beside the class that reads them.

    Unknown keys are errors, numbers are finite, and booleans do not count as numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: Any) -> object:
        if info.field_name in _numeric(cls) and _holds_truth_values(value):
            raise ValueError("expected a number, not true or false")
        return value


@cache
def _numeric(cls: type[BaseModel]) -> frozenset[str]:
    """The fields of ``cls`` that hold numbers but no booleans."""
    kinds = {name: _leaves(field.annotation) for name, field in cls.model_fields.items()}
    return frozenset(name for name, leaves in kinds.items() if bool not in leaves and leaves & {int, float})


def _leaves(annotation: Any) -> set[Any]:
    """The types that an annotation consists of."""
    if isinstance(annotation, type) and not get_args(annotation):
        return {annotation}
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        arguments = arguments[:1]
    return set[Any]().union(*map(_leaves, arguments))


def _holds_truth_values(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_truth_values, (*value, *value.values())))
    return any(map(_holds_truth_values, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if none appears twice."""
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"{', '.join(twice)} appears twice; name it once")
    return names


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds, if they are in order."""
    if bounds[0] > bounds[1]:
        raise ValueError("the first bound is above the second; swap them")
    return bounds


def _file_name(name: str) -> str:
    """The name, if it is safe as part of a file name."""
    if ":" in name:
        raise ValueError(f"'{name}' has a colon, which marks subsets; rename it")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"'{name}' is not a valid name; use letters, digits, underscores, dots and dashes")
    return name


def _absent(value: object) -> None:
    """None, the only value."""
    if value is not None:
        raise ValueError("this type of stage takes none; remove it")


Absent = Annotated[Any, BeforeValidator(_absent)]
"""A setting that other types of stage have; None."""
Names = Annotated[tuple[str, ...], AfterValidator(_distinct)]
"""Names without duplicates."""
SetName = Annotated[str, Field(max_length=64), AfterValidator(_file_name)]
"""A user's name for a data set; becomes part of file names."""
Positive = Annotated[float, Field(ge=0.01, le=100)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ascending)]
"""Lower and upper bound of a positive factor."""
Share = Annotated[float, Field(gt=0, le=1)]
Shares = Annotated[tuple[Share, Share], AfterValidator(_ascending)]
"""Lower and upper bound of a share."""
Side = Annotated[int, Field(ge=1, le=8192)]
"""Side of an image or crop given to a network, in pixels."""
Size = tuple[Side, Side]
"""Height and width in pixels."""
Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = tuple[Beta, Beta]
"""Adam's decay rates of the two moments."""
SLUG = r"^[a-z0-9_]+$"
"""Pattern of the names of recipes, stages and tables; they become folder names."""


def short(text: str, limit: int = 100) -> str:
    """``text``, cut to ``limit`` characters."""
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text) - limit:,} more characters)"


def first_line(error: object, limit: int = 160) -> str:
    """The first line of an error's message, cut to ``limit`` characters; the error's type where it has no message."""
    return short((str(error).strip().splitlines() or [type(error).__name__])[0], limit)


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h`` or ``2.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def expanded(path: str | Path) -> Path:
    """``path`` with ``~`` and ``~user`` replaced; a :class:`UserError` for a user without a home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"'{path}' begins with the home folder of an unknown user: write the path out") from None


def nearest(name: str, allowed: Iterable[str]) -> str:
    """``did you mean 'x'? `` for the closest allowed name, or an empty string."""
    match = difflib.get_close_matches(str(name), [str(a) for a in allowed], n=1, cutoff=0.5)
    return f"did you mean '{match[0]}'? " if match else ""


def choose(kind: str, name: object, table: Mapping[str, T]) -> T:
    """``table[name]``, or a :class:`UserError` that names the nearest key and all keys."""
    if not isinstance(name, str) or name not in table:
        raise UserError(f"unknown {kind} '{name}': {nearest(str(name), table)}allowed: {', '.join(sorted(table))}")
    return table[name]


def describe(error: ValidationError, root: str, cls: type[BaseModel]) -> list[str]:
    """One line per problem of a pydantic error: the path, what was given and what is allowed."""
    lines = []
    problems = error.errors(include_url=False)
    more = len(problems) - MOST_PROBLEMS
    problems = problems[:MOST_PROBLEMS]
    for problem in problems:
        inner = any(other["loc"][: len(problem["loc"])] == problem["loc"] for other in problems if other is not problem)
        if problem["type"] == "too_short" and inner:
            continue  # pydantic counts a list's invalid items as missing
        path = short(".".join([*([root] if root else []), *map(str, problem["loc"])]))
        if problem["type"] == "extra_forbidden":
            fields = _fields_at(cls, problem["loc"][:-1])
            lines.append(
                f"{path}: unknown key; {nearest(str(problem['loc'][-1]), fields)}allowed: {', '.join(sorted(fields))}"
            )
        elif problem["type"] == "missing":
            lines.append(f"{path}: is missing")
        elif problem["type"] == "invalid_key":
            lines.append(f"{path}: a key must be text; quote it or correct it")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            whole = problem["type"] == "value_error" and isinstance(problem["input"], dict)  # the message has it
            got = "" if whole else f", got {short(repr(problem['input']))}"
            lines.append(": ".join([*([path] if path else []), message + got]))
    return [*lines, f"and {more} more problems"] if more > 0 else lines


def read_yaml(path: Path, what: str, missing: str) -> dict[str, Any]:
    """The settings in the file ``path``, not validated yet; a :class:`UserError` if it cannot be read.

    ``what`` is the kind of file for messages, such as "recipe"; ``missing`` is the advice if there is no file.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"cannot read the {what} {path}: it is not a regular file; copy its content to one")
        with path.open("rb") as file:
            data = file.read(4 * plainyaml.LONGEST + 1)  # a character has at most four bytes
        values = plainyaml.load(data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}; {missing}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the {what} {path}: {error}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a {what} is a mapping of settings (key: value), got {type(values).__name__}")
    return values


def parse(cls: type[C], values: object, root: str = "", *, context: object = None) -> C:
    """Validate ``values`` as ``cls``; a :class:`UserError` lists all problems at once.

    ``context`` is passed to the validators of ``cls``.
    """
    if not isinstance(values, dict):
        raise UserError(f"{root or cls.__name__}: expected settings (key: value), got {short(repr(values))}")
    try:
        return cls.model_validate(values, context=context)
    except ValidationError as error:
        raise UserError("; ".join(describe(error, root, cls))) from None


def _fields_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The field names of the settings class at ``location`` inside ``cls``."""
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
    def _flat(self, info: Any) -> dict[str, object]:
        return {"type": self.type, **self.settings.model_dump(mode="json", exclude_defaults=info.exclude_defaults)}


def part_of(kind: str, table: Mapping[str, type], default: str | None = None) -> object:
    """The annotation of a :class:`Part` field whose ``type`` is a key of ``table`` (classes with a ``Config``).

    ``default`` is the type of settings without one.
    """

    def read(value: object) -> object:
        if isinstance(value, Part):
            return value
        if isinstance(value, dict) and default is not None:
            value = {"type": default} | value
        if not isinstance(value, dict) or "type" not in value:
            raise ValueError(f"expected {{type: ..., settings}} with a type of {', '.join(sorted(table))}")
        settings = {key: item for key, item in value.items() if key != "type"}
        config = choose(kind, value["type"], table).Config
        return Part(type=value["type"], settings=parse(config, settings, kind))

    return Annotated[Part, BeforeValidator(read)]
