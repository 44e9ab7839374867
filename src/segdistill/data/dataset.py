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
from segdistill.data.archives import ImageFile
from segdistill.objects import Objects

Progress = Callable[[str, int, int], None]
"""Called with (description, done, total)."""

Split = Literal["train", "val", "test", "pretrain"]


def _share(value: object) -> object:
    """Reads ``1/16`` as a number."""
    if isinstance(value, str) and "/" in value:
        try:
            return float(Fraction(value))
        except (ValueError, ZeroDivisionError):
            raise ValueError("expected a share such as 1/16 or 0.0625") from None
    return value


Share = Annotated[float, BeforeValidator(_share), Field(gt=0, le=1)]


class DataSelection(Config):
    """The images that a stage reads: chosen by ``list``, then by ``first`` and ``images``, then by ``fraction``.

    A selection and the same one with ``rest`` divide the images between them.
    """

    domains: Names = Field(min_length=1)
    split: Split = "train"
    images: int | None = Field(
        None, ge=1, le=10**7, description="number of images per domain; None: all (not of the world)"
    )
    first: int = Field(0, ge=0, le=10**9, description="index of the first image of the split")
    fraction: Share | None = Field(
        None, description="share of each domain's images, such as 1/16; smaller shares are subsets of larger ones"
    )
    fraction_seed: int = Field(0, ge=0, lt=2**63, description="draws other images for the same fraction")
    rest: bool = Field(
        False, description="the other images: those that fraction leaves out, or without a fraction those not in list"
    )
    list: Path | None = Field(None, description="file that names the images, one stem or path per line")
    weights: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] = Field(
        (), description="share of each domain in every epoch; none: every image once"
    )

    @model_validator(mode="after")
    def _one_weight_per_domain(self) -> DataSelection:
        if self.weights and len(self.weights) != len(self.domains):
            raise ValueError(f"weights has {len(self.weights)} numbers for {len(self.domains)} domains; give one each")
        return self

    @model_validator(mode="after")
    def _rest_of_something(self) -> DataSelection:
        if self.rest and self.fraction is None and self.list is None:
            raise ValueError("rest is what fraction or list leaves out; set one of them")
        if self.rest and self.fraction == 1:
            raise ValueError("fraction 1 leaves no image for rest; choose a smaller one")
        if self.rest and self.fraction and self.images and max(1, round(self.images * self.fraction)) >= self.images:
            raise ValueError(
                f"fraction {self.fraction} of {self.images} images leaves none for rest; take a smaller one"
            )
        return self


@dataclass(frozen=True)
class Sample:
    """One image: ``image`` (H, W, 3) uint8 RGB, ``label`` (H, W) uint8 with 255 = ignored, None if unlabelled.

    ``objects``: its annotated objects, if the data set has them.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8] | None
    domain: str
    name: str
    objects: Objects | None = None

    @property
    def labelled(self) -> bool:
        """Whether it has ground truth."""
        return self.label is not None


@dataclass(frozen=True)
class Encoded:
    """An image that is not decoded here: the bytes of a JPEG file (N,), or pixels (3, H, W); ``size`` is (H, W)."""

    content: NDArray[np.uint8]
    size: tuple[int, int]


@dataclass(frozen=True)
class Protocol:
    """How the papers evaluate on a data set (spec A.11); all sizes (h, w) in pixels, None if not specified.

    Images are fitted into ``resize``, keeping their aspect ratio, and predicted in windows of ``window`` every
    ``stride``; scores are resized to the label's size. By default the whole image is predicted at its own size.
    """

    resize: tuple[int, int] | None = None
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None


class Dataset(Sequence[Sample]):
    """Samples of several domains in sequence, and their label space.

    ``sizes``: samples of each domain; ``weights``: shares of the domains in an epoch (empty: by samples); ``objects``:
    whether labelled samples have objects, whose classes are then ``names``.
    """

    names: tuple[str, ...]
    colors: NDArray[np.uint8]
    sizes: tuple[int, ...]
    weights: tuple[float, ...] = ()
    objects: bool = False

    def encoded(self, index: int) -> Encoded:
        """The image of sample ``index``, not decoded where its file is a plain JPEG."""
        sample = self[index]
        pixels = np.array(sample.image.transpose(2, 0, 1), order="C")
        return Encoded(pixels, (pixels.shape[1], pixels.shape[2]))

    def listing(self) -> Iterator[str]:
        """``domain/name`` of every sample, without reading it."""
        raise NotImplementedError

    def protocol(self, domain: str) -> Protocol:
        """How images of ``domain`` are evaluated."""
        return Protocol()


class DataSource(Config):
    """Where a run's images come from; shared by its stages and its evaluation. Each kind is a subclass."""

    scores: ClassVar[int | None] = None
    """Default number of images that are scored per domain; None: all."""

    size: Size = Field((64, 128), description="height and width in pixels that networks are trained on")

    def open(self, selection: DataSelection, progress: Progress | None = None) -> Dataset:
        """The images of ``selection``, rendered or prepared first if needed."""
        raise NotImplementedError

    def look(self, selection: DataSelection) -> tuple[int, tuple[str, ...]]:
        """Number of images in ``selection`` and their class names; nothing is prepared or decoded."""
        raise NotImplementedError

    def faults(self) -> list[str]:
        """One line for each invalid setting of the source itself."""
        return []

    def problems(self, selection: DataSelection, *, labelled: bool, objects: bool = False) -> list[str]:
        """One line for each reason why ``selection`` cannot be read, with labels or ``objects`` if these are needed."""
        raise NotImplementedError

    def listing(self, selection: DataSelection) -> Iterator[str]:
        """``domain/name`` of every image in ``selection``, as its :class:`Dataset` lists them; nothing is prepared."""
        raise NotImplementedError

    def files(self, selection: DataSelection) -> Iterator[ImageFile]:
        """The file of every image in ``selection``; nothing where images are not files."""
        return iter(())

    def has_objects(self, domain: str) -> bool:
        """Whether labelled samples of ``domain`` have objects; the files need not exist."""
        return False

    def has_pixels(self, domain: str) -> bool:
        """Whether labels of ``domain`` have classes of pixels; False: boxes alone. The files need not exist."""
        return True

    def box_problems(self, selection: DataSelection) -> list[str]:
        """One line for each domain of ``selection`` whose labels are boxes alone."""
        return [
            f"domain '{name}' has boxes and no masks; set task: detection, or choose another one"
            for name in selection.domains
            if not self.has_pixels(name)
        ]

    def with_objects(self) -> tuple[str, ...]:
        """Some domains with objects, for messages."""
        return ()

    def object_problems(self, selection: DataSelection) -> list[str]:
        """One line for each domain of ``selection`` that has labels without objects."""
        allowed = ", ".join(self.with_objects()) or "none of this source"
        return [
            f"domain '{name}' has class maps but no objects; choose one of: {allowed}"
            for name in selection.domains
            if not self.has_objects(name)
        ]

    def doubts(self, selection: DataSelection, *, labelled: bool) -> list[str]:
        """One line for each usable but suspicious thing in ``selection``; a quick look only."""
        return []

    def benchmark(self) -> tuple[str, ...]:
        """Default domains of an evaluation; empty: the recipe must name them."""
        return ()

    def validates(self, domain: str) -> bool:
        """Whether ``domain`` is for choosing settings, and so never counts as unseen."""
        return False

    def evaluation_split(self, domain: str) -> Split:
        """Default split of an evaluation on ``domain``."""
        return "test"

    def splits_apart(self, domain: str) -> bool:
        """Whether the splits of ``domain`` count as separate domains: after training on one, the others are unseen."""
        return False

    def licence(self, domain: str) -> str:
        """The licence of the images of ``domain``."""
        return "unknown: that of the images"

    def protocol(self, domain: str) -> Protocol:
        """How images of ``domain`` are evaluated; the files need not exist."""
        return Protocol()

    def facts(self, *selections: DataSelection) -> dict[str, Any]:
        """Everything that determines the images of ``selections``: part of a stage's fingerprint."""
        return self.model_dump(mode="json", exclude_defaults=True) | {"source": type(self).__name__}
