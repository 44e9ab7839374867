"""Objects of the world as boxes, in the form of data sets for detection. Each function yields (path, contents)."""

from __future__ import annotations

from collections.abc import Iterator

from segdistill.data.sample.pixels import jpeg
from segdistill.data.sample.scenes import Codec, Member, Scenes, edges
from segdistill.data.sample.things import numbered
from segdistill.world import CLASSES, Rendered

NAMES = {"rider": "person", "truck": "car", "motorcycle": "motorbike"}
"""Things of the world -> classes of Pascal VOC, if they differ."""


def voc(scenes: Scenes, _: Codec, *, year: int) -> Iterator[Member]:
    """JPEGImages, Annotations and the lists in ImageSets/Main; objects of few pixels are difficult.

    2007: trainval and test; 2012: trainval.
    """
    lists: dict[str, list[str]] = {}
    for split, listed in (("train", "trainval"), ("test", "test"))[: 2 if year == 2007 else 1]:
        for index, scene in scenes.of("clear", split):
            number = index + 1 + 5000 * (listed == "test")
            stem = f"{number:06d}" if year == 2007 else f"2008_{number:06d}"
            lists.setdefault(listed, []).append(stem)
            yield f"JPEGImages/{stem}.jpg", jpeg(scene.image)
            yield f"Annotations/{stem}.xml", annotation(scene, f"{stem}.jpg", year)
    for name, stems in lists.items():
        yield f"ImageSets/Main/{name}.txt", "".join(f"{stem}\n" for stem in stems).encode()


def annotation(scene: Rendered, image: str, year: int) -> bytes:
    """The objects of a scene as Pascal VOC's XML, whose pixels count from 1."""
    height, width = scene.label.shape
    lines = ["<annotation>", f"\t<folder>VOC{year}</folder>", f"\t<filename>{image}</filename>"]
    lines += [f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"]
    lines += ["\t<segmented>0</segmented>"]
    for train_id, number, mask in numbered(scene):
        corners = zip(("xmin", "ymin", "xmax", "ymax"), edges(mask), strict=True)
        box = "".join(f"<{corner}>{value + 1}</{corner}>" for corner, value in corners)
        name = NAMES.get(CLASSES[train_id], CLASSES[train_id])
        lines += ["\t<object>", f"\t\t<name>{name}</name>", "\t\t<pose>Unspecified</pose>"]
        lines += ["\t\t<truncated>0</truncated>", f"\t\t<difficult>{int(number < 0)}</difficult>"]
        lines += [f"\t\t<bndbox>{box}</bndbox>", "\t</object>"]
    return ("\n".join([*lines, "</annotation>"]) + "\n").encode()
