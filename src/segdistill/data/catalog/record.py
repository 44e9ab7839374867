"""Records of data sets: file layout, label encoding, licence.

Records are data; `data/index.py` finds files with them and `data/labels.py` reads labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from segdistill.data.dataset import Protocol, Split

IGNORE = 255
WINDOW, STRIDE = (512, 512), (341, 341)
RGB = tuple[int, int, int]

FIELDS = {"number": r"\d+", "path": ".+", "ext": "(?i:png|jpe?g|tiff?|bmp|webp)"}
"""Patterns of template fields; any other field matches anything within one folder or file name."""

COCO_LABELS = "coco-labels"
"""Folder of the labels that stores of COCO files offer."""

UNPAIRED = ("ext",)
"""Fields in which an image and its label may differ."""


@dataclass(frozen=True)
class Files:
    """The files of one split, as templates in the data set's folder such as ``val/{city}/{stem}_rgb.png``.

    An image and a label belong together if the fields of their templates agree. ``{subset}`` is one of the record's
    subsets. If the folder does not determine the split, ``listed`` is a text file with one ``{stem}`` per line, or
    ``members`` are the values of ``{tile}``. ``labels`` None: the labels are not public.
    """

    images: str
    labels: str | None = None
    listed: str | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class ObjectNumbers:
    """Numbers of objects in label files: value = id * ``divisor`` + number, at most 65535.

    ``channel``: the number is in this channel and the id in that of the encoding. ``crowds``, regions with several
    objects: ``plain``: values below ``divisor`` are their ids; ``zero``: their number is 0; ``none``: there are none.
    ``stuff`` are ids of pixels without an object. Stores that keep objects themselves, such as COCO's, need no numbers.
    """

    divisor: int = 1000
    channel: int | None = None
    crowds: Literal["plain", "zero", "none"] = "plain"
    stuff: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Encoding:
    """Encoding of classes in label files: value -> trainId by number (``ids``) or by RGB ``colors``.

    The number of a palette image is its index, whatever the palette's colours. ``channel`` is the channel with the
    number in files with several. Values mapped to 255 are ignored; values that are missing are errors.

    With ``objects`` the numbers are ids of things, and those mapped to 255 are void; labels are the things' classes.

    ``names``: classes by name, in Pascal VOC's XML. ``boxes``: the objects have boxes and no pixels.
    """

    ids: Mapping[int, int] = field(default_factory=dict)
    colors: Mapping[RGB, int] = field(default_factory=dict)
    channel: int | None = None
    objects: ObjectNumbers | None = None
    names: Mapping[str, int] = field(default_factory=dict)
    boxes: bool = False


@dataclass(frozen=True)
class Layout:
    """One arrangement of the files. ``archives``: the official archives that contain it together.

    ``upright``: images are turned according to their EXIF orientation; official sets are read in stored orientation.
    ``annotations``: the COCO file of each split, which takes the place of label files.
    """

    title: str
    splits: Mapping[Split, Files]
    encoding: Encoding | None
    archives: tuple[str, ...] = ()
    upright: bool = False
    annotations: Mapping[Split, str] = field(default_factory=dict)

    @property
    def objects(self) -> bool:
        """Whether its labels have objects."""
        return self.encoding is not None and self.encoding.objects is not None


@dataclass(frozen=True)
class DatasetRecord:
    """One data set. Sizes are (height, width) in pixels."""

    title: str
    folders: tuple[str, ...]  # its name in the root; the first one that exists is used
    layouts: tuple[Layout, ...]  # the one with the most labelled images is used
    classes: tuple[str, ...]  # of trainIds 0, 1, ...; none: unlabelled
    colors: tuple[RGB, ...]
    size: tuple[int, int] | None  # of its images; None: they differ
    licence: str
    source: str  # where to get it
    resize: tuple[int, int] | None = None  # the test images are fitted inside (spec A.11)
    evaluation: Split | None = None  # the split whose scores are reported
    counts: Mapping[str, int] = field(default_factory=dict)  # official images per "split" or "subset:split"
    subsets: tuple[str, ...] = ()
    raw: tuple[Layout, ...] = ()  # official forms that must be prepared before they can be read
    note: str = ""
    splits_apart: bool = False  # its splits count as separate domains: after training on one, another is unseen

    @property
    def objects(self) -> bool:
        """Whether its samples have objects."""
        return any(layout.objects for layout in self.layouts)

    @property
    def pixels(self) -> bool:
        """Whether its labels have classes of pixels; False: boxes alone."""
        return not any(layout.encoding is not None and layout.encoding.boxes for layout in self.layouts)

    @property
    def protocol(self) -> Protocol:
        """If the papers resize test images, they also use sliding windows (spec A.11)."""
        return Protocol() if self.resize is None else Protocol(self.resize, WINDOW, STRIDE)


def trainids(classes: int, *, ignored: Iterable[int] = (IGNORE,)) -> Encoding:
    """Labels stored as trainIds."""
    return Encoding(ids={i: i for i in range(classes)} | dict.fromkeys(ignored, IGNORE))


def shifted(classes: int) -> Encoding:
    """0 and 255 are ignored and 1, 2, ... are the classes (elsewhere called reduce_zero_label)."""
    return Encoding(ids={0: IGNORE, 255: IGNORE} | {i + 1: i for i in range(classes)})


def mapped(table: Mapping[int, int], known: Iterable[int], *, channel: int | None = None) -> Encoding:
    """Ids by ``table``; the rest of the ``known`` ids are ignored."""
    return Encoding(ids={i: table.get(i, IGNORE) for i in known}, channel=channel)


def coco_files(split: Split, images: str) -> Files:
    """The images below the folder ``images``, with the labels that a store of COCO files offers for them."""
    below = "" if images == "." else f"{images}/"
    return Files(f"{below}{{path}}.{{ext}}", f"{COCO_LABELS}/{split}/{{path}}.png")


def interleaved_colors(count: int) -> tuple[RGB, ...]:
    """Pascal VOC's colours: the bits of the index, distributed to R, G and B from the top bit down."""
    return tuple(
        (_spread(index, 0), _spread(index, 1), _spread(index, 2))  # one channel takes each third bit
        for index in range(count)
    )


def class_colors(count: int) -> tuple[RGB, ...]:
    """Colours of ``count`` classes: Pascal VOC's without black."""
    return interleaved_colors(count + 1)[1:]


def _spread(index: int, channel: int) -> int:
    return sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
