"""Settings: frozen, complete, and every problem told at once with what is allowed."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from segdistill.config import Config, Part, UserError, choose, first_line, nearest, parse, part_of, read_yaml


class Wheel(Config):
    size: int = Field(16, ge=1)
    colour: str = "red"


class Car(Config):
    wheels: Wheel = Wheel()
    spare: Wheel | None = None
    doors: tuple[int, ...] = Field((4,), min_length=1)
    name: str


class Diesel:
    class Config(Config):
        power: float = 1.0


class Electric:
    class Config(Config):
        range_km: int = 300


class Vehicle(Config):
    engine: part_of("engine", {"diesel": Diesel, "electric": Electric})


def problems(cls, values, root=""):
    with pytest.raises(UserError) as caught:
        parse(cls, values, root)
    return str(caught.value)


def test_settings_are_frozen_and_values_are_checked():
    car = parse(Car, {"name": "a", "wheels": {"size": 3}})
    assert car.wheels.size == 3
    with pytest.raises(ValidationError):
        car.name = "b"
    assert problems(Car, {"name": "a", "wheels": {"size": 0}}) == (
        "wheels.size: Input should be greater than or equal to 1, got 0"
    )
    assert problems(Car, {"name": {"a": 1}}) == "name: Input should be a valid string, got {'a': 1}"
    assert "expected settings (key: value), got 3" in problems(Car, 3)


def test_an_unknown_key_names_the_nearest_one_of_its_own_group():
    assert problems(Car, {"nmae": "a"}).startswith(
        "name: is missing; nmae: unknown key; did you mean 'name'? allowed: "
    )
    for group in ("wheels", "spare"):
        line = problems(Car, {"name": "a", group: {"color": "blue"}})
        assert line == f"{group}.color: unknown key; did you mean 'colour'? allowed: colour, size"


def test_all_problems_are_told_at_once_below_their_root():
    line = problems(Car, {"wheels": {"size": "x"}, "bogus": 1}, "car")
    assert line.split("; ")[0].startswith("car.wheels.size: Input should be a valid integer")
    assert "car.bogus: unknown key" in line
    assert "car.name: is missing" in line


def test_a_wrong_item_is_not_told_a_second_time_as_a_missing_one():
    line = problems(Car, {"name": "a", "doors": ["x"]})
    assert line.count(";") == 0
    assert line.startswith("doors.0: ")
    assert "at least 1 item" in problems(Car, {"name": "a", "doors": []})


def test_a_part_is_written_flat_and_reads_its_own_settings():
    vehicle = parse(Vehicle, {"engine": {"type": "diesel", "power": 2.0}})
    assert isinstance(vehicle.engine, Part)
    assert isinstance(vehicle.engine.settings, Diesel.Config)
    assert vehicle.model_dump() == {"engine": {"type": "diesel", "power": 2.0}}
    assert parse(Vehicle, vehicle.model_dump()) == vehicle
    assert Vehicle(engine=vehicle.engine) == vehicle
    assert "unknown engine 'desel': did you mean 'diesel'? allowed: diesel, electric" in problems(
        Vehicle, {"engine": {"type": "desel"}}
    )
    assert "engine.power: unknown key" in problems(Vehicle, {"engine": {"type": "electric", "power": 1}})
    for value in (3, {}, "diesel"):
        assert "with a type of diesel, electric" in problems(Vehicle, {"engine": value})


@pytest.mark.parametrize("name", ["gdk", ["gkd"], None, 3])
def test_choose_names_what_is_allowed(name):
    assert choose("method", "gkd", {"gkd": 1}) == 1
    with pytest.raises(UserError, match=r"unknown method .*allowed: gkd, mse"):
        choose("method", name, {"mse": 2, "gkd": 1})


@pytest.mark.parametrize(
    ("message", "line"),
    [("no disk\nat line 3", "no disk"), ("", "OSError"), (" \n", "OSError"), ("a" * 9, "aaaa... (5 more characters)")],
)
def test_the_first_line_of_an_error_is_never_empty(message, line):
    assert first_line(OSError(message), 4 if message == "a" * 9 else 160) == line


def test_nearest_is_silent_where_nothing_resembles():
    assert nearest("gdk", ["gkd", "mse"]) == "did you mean 'gkd'? "
    assert nearest("zzz", ["gkd", "mse"]) == ""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no menu at {path}; write one"),
        (b"\xff\xfe\x00", "cannot read the menu {path}: "),
        (b"a: [", "{path} is not valid YAML: while parsing"),
        (b"a: 1\nb: 2\na: 3", "{path} is not valid YAML: line 3: the key 'a' appears twice; keep one of them"),
        (b"- 1", "{path}: a menu is a mapping of settings (key: value), got list"),
        (b"", "{path}: a menu is a mapping of settings (key: value), got NoneType"),
    ],
)
def test_a_file_that_holds_no_settings_is_one_line(tmp_path, content, message):
    path = tmp_path / "menu.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(path, "menu", "write one")
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)
    path.write_text("soup: {of: the day}")
    assert read_yaml(path, "menu", "") == {"soup": {"of": "the day"}}
