"""What is known about a data set: where its files lie, how its labels are written, what it may be used for.

A record is data. How files are found by it stands in `data/index.py`, how labels are read by it in `data/labels.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from segdistill.data.dataset import Protocol, Split

IGNORE = 255
WINDOW, STRIDE = (512, 512), (341, 341)
RGB = tuple[int, int, int]

FIELDS = {"number": r"\d+", "path": ".+", "ext": "(?i:png|jpe?g|tiff?|bmp|webp)"}
"""What a template's field matches; any other name matches anything within one folder or file name."""

UNPAIRED = ("ext",)
"""Fields by which an image and its label may differ."""


@dataclass(frozen=True)
class Files:
    """The files of one split, as templates below the data set's folder such as ``val/{city}/{stem}_rgb.png``.

    An image and a label belong together when the fields of their templates agree. ``{subset}`` is one of the record's
    subsets. ``listed`` is a text file with one ``{stem}`` per line, ``members`` the values of ``{tile}``, where the
    folder does not tell which files the split has. ``labels`` None: the labels are not public.
    """

    images: str
    labels: str | None = None
    listed: str | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoding:
    """How the pixels of a label file name classes: value -> trainId by number (``ids``) or by RGB ``colors``.

    The index of a palette image is its number, whatever its palette shows. ``channel`` says which channel of a file
    with several holds the number. What a table maps to 255 is ignored, what it lacks is an error.
    """

    ids: Mapping[int, int] = field(default_factory=dict)
    colors: Mapping[RGB, int] = field(default_factory=dict)
    channel: int | None = None


@dataclass(frozen=True)
class Layout:
    """One way in which the files may lie. ``archives``: the official packed files that hold it together.

    ``upright``: images are turned as their EXIF orientation says; official sets are read as they are stored.
    """

    title: str
    splits: Mapping[Split, Files]
    encoding: Encoding | None
    archives: tuple[str, ...] = ()
    upright: bool = False


@dataclass(frozen=True)
class DatasetRecord:
    """One data set. Sizes are (height, width) in pixels."""

    title: str
    folders: tuple[str, ...]  # its name below the root; the first one that exists is taken
    layouts: tuple[Layout, ...]  # the one with the most images that have labels is taken
    classes: tuple[str, ...]  # of trainIds 0, 1, ...; none: unlabelled
    colors: tuple[RGB, ...]
    size: tuple[int, int] | None  # of its images; None: they differ
    licence: str
    source: str  # where to obtain it
    resize: tuple[int, int] | None = None  # the test images are fitted inside (spec A.11)
    evaluation: Split | None = None  # the split whose scores are reported
    counts: Mapping[str, int] = field(default_factory=dict)  # official images per "split" or "subset:split"
    subsets: tuple[str, ...] = ()
    raw: tuple[Layout, ...] = ()  # official forms that must be prepared before they can be read
    note: str = ""
    splits_apart: bool = False  # its splits are domains of their own: trained on one, another is unseen

    @property
    def protocol(self) -> Protocol:
        """Where the papers resize test images they also see them through windows (spec A.11)."""
        return Protocol() if self.resize is None else Protocol(self.resize, WINDOW, STRIDE)


def trainids(classes: int, *, ignored: Iterable[int] = (IGNORE,)) -> Encoding:
    """Labels that are written as trainIds."""
    return Encoding(ids={i: i for i in range(classes)} | dict.fromkeys(ignored, IGNORE))


def shifted(classes: int) -> Encoding:
    """0 and 255 are ignored and 1, 2, ... are the classes (elsewhere called reduce_zero_label)."""
    return Encoding(ids={0: IGNORE, 255: IGNORE} | {i + 1: i for i in range(classes)})


def mapped(table: Mapping[int, int], known: Iterable[int], *, channel: int | None = None) -> Encoding:
    """Ids by ``table``; the rest of the ``known`` ids are ignored."""
    return Encoding(ids={i: table.get(i, IGNORE) for i in known}, channel=channel)


def interleaved_colors(count: int) -> tuple[RGB, ...]:
    """Pascal VOC's colours: the bits of the index, dealt to R, G and B from the top bit down."""
    return tuple(
        (_spread(index, 0), _spread(index, 1), _spread(index, 2))  # one channel takes each third bit
        for index in range(count)
    )


def _spread(index: int, channel: int) -> int:
    return sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
