"""The lead of one row over another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lead:
    """How far row ``first`` is ahead of ``second`` in the mean over unseen domains, in displayed units."""

    first: int
    second: int
    points: float
    interval: tuple[float, float]  # 95 %, other images of the same domains
    beaten: float  # share of draws in which the first is not ahead
    seeds: tuple[int, ...]
    value: str = ""  # of the sweep
    over_domains: tuple[float, float] | None = None  # 95 %, other domains and other images; None with few domains

    @property
    def settled(self) -> bool:
        """Whether the interval excludes zero."""
        return self.interval[0] > 0 or self.interval[1] < 0

    @property
    def bounds(self) -> tuple[str, str]:
        """The interval's ends with one decimal; never "-0.0"."""
        return _ends(self.interval)

    @property
    def wide(self) -> tuple[str, str] | tuple[()]:
        """As :attr:`bounds`, over domains; empty with few domains."""
        return _ends(self.over_domains) if self.over_domains else ()


def _ends(interval: tuple[float, float]) -> tuple[str, str]:
    low, high = (f"{round(end, 1) + 0.0:.1f}" for end in interval)
    return low, high
