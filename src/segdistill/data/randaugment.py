"""Validation of timm's RandAugment strings such as ``rand-m9-mstd0.5-inc1``, of which timm ignores invalid parts."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

WORDS: dict[str, tuple[float, float]] = {"m": (0, 10), "mstd": (0, 1000), "mmax": (0, 10), "n": (1, 10), "p": (0, 1),
                                         "inc": (0, 1)}  # fmt: skip
"""Word -> lowest and highest number: magnitude, its deviation (above 100: uniform) and bound, operations per image,
probability of each, whether they grow with the magnitude."""
WHOLE = ("m", "mmax", "n", "inc")
SETS = ("tweights", "t3a", "t3aw")
"""Named sets of operations."""


def _check(text: str) -> str:
    """The text, if all its parts are valid."""
    head, *words = text.split("-")
    numbers: dict[str, float] = {}
    chosen = [word for word in words if word in SETS]
    for word in (word for word in words if word not in SETS):
        match = re.fullmatch(r"([a-z]+)([0-9]+(?:\.[0-9]+)?)", word)
        name, number = match.groups() if match else ("", "0")
        low, high = WORDS.get(name, (1, 0))
        if not low <= float(number) <= high or (name in WHOLE and "." in number) or name in numbers:
            allowed = ", ".join(f"{name}{low}-{name}{high}" for name, (low, high) in WORDS.items())
            raise ValueError(f"'{word}' is unknown or a repetition; allowed: {allowed}, {', '.join(SETS)}")
        numbers[name] = float(number)
    if head != "rand" or len(chosen) > 1:
        raise ValueError("must begin with 'rand' and name at most one set, such as rand-m9-mstd0.5-inc1")
    return text


RandAugment = Annotated[str, Field(max_length=100), AfterValidator(_check)]
"""A valid RandAugment string of timm."""
