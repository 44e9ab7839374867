"""Data sets under corruption: the settings, and any data set with corrupted images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

from segdistill.config import Config, Names, choose
from segdistill.data.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, corrupt, draws
from segdistill.data.dataset import Dataset, Protocol, Sample


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("name at least one corruption, or common for all 15")
    for name in names:
        choose("corruption", name, {**GROUPS, **CORRUPTIONS})
    return names


def _distinct(severities: tuple[int, ...]) -> tuple[int, ...]:
    if not severities or sorted(set(severities)) != sorted(severities):
        raise ValueError("give each severity once, at least one of 1 to 5")
    return tuple(sorted(severities))


class CorruptConfig(Config):
    """Corrupted images of the scored domains (ImageNet-C's corruptions), scored beside the clean ones.

    P is the primary score on the clean images of this subset, mPC its mean over the 15 common corruptions among
    ``names`` and over ``severities``, rPC = mPC / P. With several domains each score is their mean.
    """

    names: Annotated[Names, AfterValidator(_known)] = Field(
        ("common",),
        description="corruptions or groups of them: common (15), all (19), noise, blur, weather, digital, extra; the "
        "four extra ones are scored and never part of mPC",
    )
    severities: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], AfterValidator(_distinct)] = Field(
        SEVERITIES, description="strengths from 1 (least) to 5"
    )
    images: int | None = Field(
        None, ge=1, le=10**7, description="images per domain, drawn by seed; fewer are a subset of more; None: all"
    )
    domains: Names = Field(
        (), description="domains to corrupt; empty: those that a stage was trained on, without any all scored ones"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="draws the images and the corruptions")

    def corruptions(self) -> tuple[str, ...]:
        """The names with groups written out, in the table's order."""
        chosen = {each for name in self.names for each in GROUPS.get(name, (name,))}
        return tuple(name for name in CORRUPTIONS if name in chosen)

    def rows(self, domain: str, count: int) -> list[int]:
        """The chosen of ``count`` images of ``domain``, ascending."""
        digest = hashlib.sha256(domain.encode()).digest()[:8]
        order = np.random.default_rng([self.seed, int.from_bytes(digest, "little")]).permutation(count)
        return sorted(order[: self.images].tolist())


class Corrupted(Dataset):
    """The images ``rows`` of ``dataset`` under one corruption; without one, as they are.

    The same image looks the same in every process and whatever other images are chosen.
    """

    def __init__(
        self, dataset: Dataset, rows: Sequence[int], corruption: str | None = None, severity: int = 0, *, seed: int = 0
    ) -> None:
        self.dataset, self.rows, self.corruption, self.severity, self.seed = dataset, rows, corruption, severity, seed
        self.names, self.colors, self.objects = dataset.names, dataset.colors, dataset.objects
        self.sizes = (len(rows),)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        sample = self.dataset[self.rows[index]]
        if self.corruption is None:
            return sample
        rng = draws(self.seed, self.corruption, self.severity, f"{sample.domain}/{sample.name}")
        return replace(sample, image=corrupt(np.asarray(sample.image), self.corruption, self.severity, rng=rng))

    def listing(self) -> Iterator[str]:
        """``domain/name`` of the chosen images."""
        every = list(self.dataset.listing())
        return (every[row] for row in self.rows)

    def protocol(self, domain: str) -> Protocol:
        """As of the clean images."""
        return self.dataset.protocol(domain)
