"""The mean of scores, some of which may be undefined. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean


def complete_mean(values: Iterable[float | None]) -> float | None:
    """The mean; None without values or if one is missing."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return fmean(known) if known and len(known) == len(listed) else None
