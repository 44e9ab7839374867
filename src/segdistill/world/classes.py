"""Classes of the procedural driving world, their colours, and the label spaces built on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IGNORE = 255
CLASSES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
THINGS = (11, 12, 13, 14, 15, 16, 17, 18)
COLORS = np.array(
    [
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ],
    dtype=np.uint8,
)


@dataclass(frozen=True, eq=False)
class LabelSpace:
    """Names and colours (n, 3) of a label space, and ``lookup`` (256,): world trainId -> id here; 255 stays 255.

    ``objects``: whether its classes are countable things, so that images come with their objects.
    """

    names: tuple[str, ...]
    lookup: np.ndarray
    colors: np.ndarray
    objects: bool = False


def _merge(groups: dict[str, tuple[str, ...]], *, objects: bool = False) -> LabelSpace:
    """The label space whose classes are the named groups of world classes."""
    lookup = np.full(256, IGNORE, dtype=np.uint8)
    for i, members in enumerate(groups.values()):
        for member in members:
            lookup[CLASSES.index(member)] = i
    colors = COLORS[[CLASSES.index(members[0]) for members in groups.values()]]
    return LabelSpace(tuple(groups), _frozen(lookup), _frozen(colors), objects)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


_frozen(COLORS)
LABEL_SPACES: dict[str, LabelSpace] = {
    "cityscapes19": _merge({name: (name,) for name in CLASSES}),
    "world13": _merge(
        {
            "road": ("road",),
            "sidewalk": ("sidewalk",),
            "building": ("building",),
            "barrier": ("wall", "fence"),
            "pole": ("pole",),
            "traffic object": ("traffic light", "traffic sign"),
            "vegetation": ("vegetation",),
            "terrain": ("terrain",),
            "sky": ("sky",),
            "human": ("person", "rider"),
            "car": ("car",),
            "heavy vehicle": ("truck", "bus", "train"),
            "two-wheeler": ("motorcycle", "bicycle"),
        }
    ),
    "things8": _merge({CLASSES[number]: (CLASSES[number],) for number in THINGS}, objects=True),
}
