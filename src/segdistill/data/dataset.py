"""Data sets as sequences of samples. A sample's domain is a field, never a piece of its path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, model_validator

from segdistill.config import Config, Names, Size

Progress = Callable[[str, int, int], None]
"""Called with (what is being made, done, total)."""

Split = Literal["train", "val", "test", "pretrain"]


def _share(value: object) -> object:
    """``1/16`` as a number."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError):
            raise ValueError("expected a share such as 1/16 or 0.0625") from None
    return value


Share = Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)]


class DataSelection(Config):
    """Which images of the source a stage reads: ``list``, of those ``first`` and ``images``, of those ``fraction``."""

    domains: Names = Field(min_length=1)
    split: Split = "train"
    images: int | None = Field(
        None, ge=1, le=10**7, description="number of images per domain; None: all (not of the world)"
    )
    first: int = Field(0, ge=0, le=10**9, description="index of the first image of the split")
    fraction: Share | None = Field(
        None, description="share of each domain's images, such as 1/16; a smaller one is part of a larger one"
    )
    fraction_seed: int = Field(0, ge=0, lt=2**63, description="draws other images for the same fraction")
    list: Path | None = Field(None, description="file that names the images, one stem or path per line")
    weights: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] = Field(
        (), description="share of each domain in every epoch; none: every image once, whatever its domain"
    )

    @model_validator(mode="after")
    def _one_weight_per_domain(self) -> DataSelection:
        if self.weights and len(self.weights) != len(self.domains):
            raise ValueError(f"weights has {len(self.weights)} numbers for {len(self.domains)} domains; give one each")
        return self


@dataclass(frozen=True)
class Sample:
    """One image: ``image`` (H, W, 3) uint8 RGB, ``label`` (H, W) uint8 with 255 = ignored, None where unlabelled."""

    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    domain: str
    name: str

    @property
    def labelled(self) -> bool:
        """Whether it has ground truth."""
        return self.label is not None


@dataclass(frozen=True)
class Protocol:
    """How the papers evaluate on a data set (spec A.11); all sizes (h, w) in pixels, None where nothing is prescribed.

    Images are fitted into ``resize``, keeping their aspect, and seen through windows of ``window`` every ``stride``;
    the scores are brought back to the label's size. The defaults: the image as it is, at once.
    """

    resize: tuple[int, int] | None = None
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None


class Dataset(Sequence[Sample]):
    """Samples of several domains, one after the other, plus the label space they are written in.

    ``sizes`` says how many there are of each domain, ``weights`` how the domains share an epoch (none: by images).
    """

    names: tuple[str, ...]
    colors: NDArray[np.uint8]
    sizes: tuple[int, ...]
    weights: tuple[float, ...] = ()

    def listing(self) -> Iterator[str]:
        """``domain/name`` of every sample, without reading it."""
        raise NotImplementedError

    def protocol(self, domain: str) -> Protocol:
        """How images of ``domain`` are evaluated."""
        return Protocol()


class DataSource(Config):
    """Where a run's images come from; shared by its stages and its evaluation. Each kind is a subclass."""

    scores: ClassVar[int | None] = None
    """Images per domain that are scored where a recipe gives no number; None: all."""

    size: Size = Field((64, 128), description="height and width in pixels that networks are trained on")

    def open(self, selection: DataSelection, progress: Progress | None = None) -> Dataset:
        """The images that ``selection`` names, prepared where they must be."""
        raise NotImplementedError

    def look(self, selection: DataSelection) -> tuple[int, tuple[str, ...]]:
        """How many images ``selection`` means and the names of their classes; nothing is prepared or decoded."""
        raise NotImplementedError

    def faults(self) -> list[str]:
        """One line for each setting of the source itself that cannot work, whatever is read from it."""
        return []

    def problems(self, selection: DataSelection, *, labelled: bool) -> list[str]:
        """One line for each thing that keeps ``selection`` from being read here, with labels where asked for."""
        raise NotImplementedError

    def doubts(self, selection: DataSelection, *, labelled: bool) -> list[str]:
        """One line for each thing in ``selection`` that can be used and is probably not meant; cheap to find."""
        return []

    def benchmark(self) -> tuple[str, ...]:
        """The domains that are scored where a recipe names none; empty: it must name some."""
        return ()

    def validates(self, domain: str) -> bool:
        """Whether ``domain`` is one that settings are chosen on, and so never counts as unseen."""
        return False

    def evaluation_split(self, domain: str) -> Split:
        """The split that ``domain`` is scored on where nobody names one."""
        return "test"

    def splits_apart(self, domain: str) -> bool:
        """Whether the splits of ``domain`` are domains of their own: trained on one, another is unseen."""
        return False

    def licence(self, domain: str) -> str:
        """Under which licence the images of ``domain`` may be used."""
        return "unknown: that of the images"

    def protocol(self, domain: str) -> Protocol:
        """How images of ``domain`` are evaluated; they need not be there."""
        return Protocol()

    def facts(self, *selections: DataSelection) -> dict[str, Any]:
        """What the images of ``selections`` depend on: part of a stage's fingerprint."""
        return self.model_dump(mode="json", exclude_defaults=True) | {"source": type(self).__name__}
