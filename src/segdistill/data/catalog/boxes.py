"""Data sets with boxes, for detection."""

from __future__ import annotations

from segdistill.data.catalog.classes import VOC, VOC_COLORS
from segdistill.data.catalog.record import DatasetRecord, Encoding, Files, Layout, ObjectNumbers
from segdistill.data.dataset import Split

VOC_OBJECTS = VOC[1:]
"""The 20 classes, without the background."""


def _voc(year: int, lists: dict[Split, str], archives: tuple[str, ...], counts: dict[str, int]) -> DatasetRecord:
    """A year of Pascal VOC's detection task; ``lists``: the official list of each split."""
    names = {name: number for number, name in enumerate(VOC_OBJECTS)}
    return DatasetRecord(
        title=f"Pascal VOC {year} detection",
        folders=(f"voc{year}_boxes", f"VOCdevkit/VOC{year}", f"VOC{year}"),
        layouts=(
            Layout(
                "official",
                {
                    split: Files("JPEGImages/{stem}.jpg", "Annotations/{stem}.xml", f"ImageSets/Main/{listed}.txt")
                    for split, listed in lists.items()
                },
                Encoding(objects=ObjectNumbers(), names=names, boxes=True),
                archives,
            ),
        ),
        classes=VOC_OBJECTS,
        colors=VOC_COLORS[1:],
        size=None,
        resize=(600, 1000),  # of mmdetection's recipe; detectors see images whole
        evaluation="test" if "test" in lists else "train",
        counts=counts,
        licence="the photographs keep their Flickr terms: research",
        source=f"http://host.robots.ox.ac.uk/pascal/VOC/voc{year}/",
        note="the split train is the official trainval" + ("; unpack both archives" if "test" in lists else ""),
    )


VOC2007_BOXES = _voc(
    2007,
    {"train": "trainval", "test": "test"},
    ("VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"),
    {"train": 5011, "test": 4952},
)
VOC2012_BOXES = _voc(2012, {"train": "trainval"}, ("VOCtrainval_11-May-2012.tar",), {"train": 11540})
