"""How every key of a checkpoint was used."""

from __future__ import annotations

from dataclasses import dataclass, field

NAMED = 4  # keys that a line names before it counts the rest


@dataclass
class LoadReport:
    """How every key of the file and of the network was used. A load that returns a report has succeeded.

    Keys are the network's (``backbone.norm.weight``); in ``dropped`` they are the file's.
    """

    source: str  # the file
    network: str  # the encoder's name, or the head's
    layout: str = ""  # the file's naming scheme
    taken: str = ""  # which of the file's state dictionaries was used
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # not in the file: they keep a neutral value (0, or a gain of 1)
    dropped: dict[str, str] = field(default_factory=dict)  # dropped, and why
    changed: dict[str, str] = field(default_factory=dict)  # resampled, cut or merged, and how
    unexpected: list[str] = field(default_factory=list)  # unknown keys: an error, so empty in a returned report
    share: float = 0.0  # of the network's parameters that came from the file

    def _from(self) -> str:
        return f"{self.layout}; {self.taken}" if self.taken else self.layout

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"{self.network} <- '{self.source}' ({self._from()}): {100 * self.share:.2f} % of the parameters"]
        if self.changed:
            parts.append("changed " + some([f"{key} ({how})" for key, how in self.changed.items()]))
        if self.missing:
            parts.append("not in the file " + some(self.missing))
        if self.dropped:
            counts: dict[str, int] = {}
            for why in self.dropped.values():
                counts[why] = counts.get(why, 0) + 1
            parts.append("left out " + some([f"{count} of {why}" for why, count in counts.items()]))
        return "; ".join(parts)


def some(items: list[str], count: int = NAMED) -> str:
    """The first few items and the number of the others."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return (", ".join(items[:count]) + more) or "nothing"
