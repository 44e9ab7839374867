"""A model's scores on corrupted images, as ``results.json`` has them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from segdistill.averages import complete_mean
from segdistill.results.record import Number, Record


class Corruptions(Record):
    """A model on corrupted images: the primary score of each corruption at each severity, and their means."""

    domains: tuple[str, ...]
    images: int
    seed: int = 0
    severities: Annotated[tuple[int, ...], Field(min_length=1)]
    clean: Number = None  # P
    mpc: Number = None
    rpc: Number = None
    scores: dict[str, tuple[Number, ...]]
    families: dict[str, tuple[str, ...]]  # every corruption once; "extra": never part of mPC

    @model_validator(mode="after")
    def _complete(self) -> Corruptions:
        for name, values in self.scores.items():
            if len(values) != len(self.severities):
                raise ValueError(f"corruption '{name}' has {len(values)} scores for {len(self.severities)} severities")
        if sorted(name for names in self.families.values() for name in names) != sorted(self.scores):
            raise ValueError("the corruptions of 'families' and 'scores' differ")
        return self

    @property
    def common(self) -> tuple[str, ...]:
        """The corruptions that mPC is the mean of."""
        return tuple(name for family, names in self.families.items() if family != "extra" for name in names)

    @property
    def setup(self) -> str:
        """What must agree before two models can be compared."""
        levels = ", ".join(map(str, self.severities))
        return (f"{', '.join(self.scores)} at severities {levels} on {self.images:,} images of "
                f"{', '.join(self.domains)}, seed {self.seed}")  # fmt: skip

    def mean(self, name: str) -> float | None:
        """The mean over the severities; None if one was not measured."""
        return complete_mean(self.scores.get(name, ()))

    def at(self, name: str, severity: int) -> float | None:
        """The score at one severity; 0 is the clean image."""
        return self.clean if severity == 0 else self.scores[name][self.severities.index(severity)]
