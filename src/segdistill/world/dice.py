"""Random numbers that depend on integer keys only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Number = float | int  # beartype, which checks annotations in tests, does not accept an int as a float
Span = tuple[Number, Number]
_POOL = 1024


class Dice:
    """A generator keyed by non-negative integers; scalars come from a pool, which is much faster than single calls."""

    def __init__(self, *key: int) -> None:
        self.rng = np.random.default_rng(list(key))
        self._pool: list[float] = []

    def unit(self) -> float:
        """Uniform in [0, 1)."""
        if not self._pool:
            self._pool = self.rng.random(_POOL).tolist()
        return self._pool.pop()

    def uniform(self, low: Number, high: Number) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def between(self, span: Span) -> float:
        """Uniform within ``span``."""
        return span[0] + (span[1] - span[0]) * self.unit()

    def narrowed(self, span: Span) -> Span:
        """A random 60 % of ``span``."""
        low, high = span
        start = low + 0.4 * self.unit() * (high - low)
        return start, start + 0.6 * (high - low)

    def integer(self, low: int, high: int) -> int:
        """Uniform integer, both ends included."""
        return low + int((high - low + 1) * self.unit())

    def flip(self, probability: Number) -> bool:
        """True with ``probability``."""
        return self.unit() < probability

    def sign(self) -> int:
        """-1 or 1."""
        return 1 if self.unit() < 0.5 else -1

    def count(self, mean: Number) -> int:
        """A small count with the given mean: the integer part, spread by one half either way."""
        return int(mean * self.uniform(0.4, 1.6) + self.unit())

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[int(len(options) * self.unit())]

    def tint(self) -> tuple[Number, Number, Number]:
        """Three numbers in [-1, 1): the deviation of one object from its material's mean colour."""
        return 2 * self.unit() - 1, 2 * self.unit() - 1, 2 * self.unit() - 1
