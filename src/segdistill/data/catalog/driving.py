"""Street scenes in the 19 Cityscapes classes (spec D.1). [know] marks facts not checked against a source."""

from __future__ import annotations

from typing import Any

from segdistill.data.catalog.classes import CITYSCAPES_IDS, DRIVING, DRIVING_COLORS, MAPILLARY_IDS, SYNTHIA_IDS
from segdistill.data.catalog.record import DatasetRecord, Files, Layout, mapped, trainids

_CLASSES: Any = {"classes": DRIVING, "colors": DRIVING_COLORS}
_TRAINIDS = trainids(len(DRIVING))

_GTAV_ARCHIVES = tuple(f"{part:02d}_{kind}.zip" for kind in ("images", "labels") for part in range(1, 11))
GTAV = DatasetRecord(
    title="GTAV (Playing for Data)",
    folders=("GTA5", "gta", "gta5", "gtav", "GTAV"),
    layouts=(
        Layout(
            "trainIds beside",
            {"train": Files("images/{number}.png", "labels/{number}_labelTrainIds.png")},
            _TRAINIDS,
        ),
        Layout(
            "official",
            {"train": Files("images/{number}.png", "labels/{number}.png")},  # palettised; the index is the id
            mapped(CITYSCAPES_IDS, range(35)),  # 34: licence plate [know]
            _GTAV_ARCHIVES,
        ),
    ),
    size=(1052, 1914),
    counts={"train": 24966},  # all of it: the official split is not used (spec D.1)
    licence="for research and education; rights remain with the game's owner",
    source="https://download.visinf.tu-darmstadt.de/data/from_games/",
    note="a few images are 1046 x 1914",
    **_CLASSES,
)  # fmt: skip

SYNTHIA = DatasetRecord(
    title="SYNTHIA-RAND-CITYSCAPES",
    folders=("SYNTHIA_RAND_CITYSCAPES", "SYNTHIA_RAND_CITYSCAPES/RAND_CITYSCAPES", "RAND_CITYSCAPES", "synthia"),
    layouts=tuple(
        Layout(title, {"train": Files(f"{above}RGB/{{number}}.png", f"{above}GT/LABELS/{label}")}, encoding)
        for above in ("", "RAND_CITYSCAPES/")
        for title, label, encoding in (
            ("trainIds beside", "{number}_labelTrainIds.png", _TRAINIDS),
            # 16-bit, three channels: R the class, G the instance. "Last channel" in the spec is that of a BGR reader.
            ("official", "{number}.png", mapped(SYNTHIA_IDS, range(23), channel=0)),
        )
    ),
    size=(760, 1280),
    counts={"train": 9400},
    licence="CC BY-NC-SA 3.0",
    source="https://synthia-dataset.net/downloads/ (SYNTHIA-RAND-CITYSCAPES (CVPR16))",
    note="comes as one RAR file: unpack it first",
    **_CLASSES,
)

URBANSYN = DatasetRecord(
    title="UrbanSyn",
    folders=("UrbanSyn", "urbansyn"),
    layouts=(  # official names [know]; Rein's loader expects equal names
        Layout("official", {"train": Files("rgb/rgb_{number}.png", "ss/ss_{number}.png")},
               trainids(len(DRIVING), ignored=(19, 255))),
        Layout("renamed", {"train": Files("rgb/{stem}.png", "ss/{stem}.png")},
               trainids(len(DRIVING), ignored=(19, 255))),
    ),
    size=(1024, 2048),
    counts={"train": 7539},
    licence="CC BY-SA 4.0",
    source="https://www.urbansyn.org/",
    **_CLASSES,
)  # fmt: skip


def _three(images: str, labels: str) -> dict[Any, Files]:
    """The splits train, val and test, without labels of test; ``{split}`` in the templates is the split's name."""
    return {
        split: Files(images.replace("{split}", split), None if split == "test" else labels.replace("{split}", split))
        for split in ("train", "val", "test")
    }


def _cityscapes(kind: str) -> dict[Any, Files]:
    label = f"gtFine/{{split}}/{{city}}/{{stem}}_gtFine_{kind}.png"
    return _three("leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png", label)


CITYSCAPES = DatasetRecord(
    title="Cityscapes (fine)",
    folders=("cityscapes", "Cityscapes"),
    layouts=(
        Layout("trainIds beside", _cityscapes("labelTrainIds"), _TRAINIDS),  # made by cityscapesscripts
        Layout("official", _cityscapes("labelIds"), mapped(CITYSCAPES_IDS, range(34)),
               ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")),
    ),
    size=(1024, 2048),
    resize=(512, 1024),
    evaluation="val",
    counts={"train": 2975, "val": 500, "test": 1525},
    licence="its own: non-commercial, registration",
    source="https://www.cityscapes-dataset.com/downloads/",
    **_CLASSES,
)  # fmt: skip

BDD100K = DatasetRecord(
    title="BDD100K semantic segmentation (10k)",
    folders=("bdd100k", "BDD100K", "bdd"),
    layouts=(
        Layout(
            "images/10k",
            _three("images/10k/{split}/{stem}.jpg", "labels/sem_seg/masks/{split}/{stem}.png"),
            _TRAINIDS,
            ("bdd100k_images_10k.zip", "bdd100k_sem_seg_labels_trainval.zip"),
        ),
        Layout(
            "seg (first release)",
            _three("seg/images/{split}/{stem}.jpg", "seg/labels/{split}/{stem}_train_id.png"),
            _TRAINIDS,
            ("bdd100k_seg.zip",),
        ),
    ),
    size=(720, 1280),
    resize=(720, 1280),
    evaluation="val",
    counts={"train": 7000, "val": 1000, "test": 2000},
    licence="its own: education, research and not-for-profit",
    source="http://bdd-data.berkeley.edu/ (10K Images, Segmentation)",
    **_CLASSES,
)

_MAPILLARY = {"train": "training", "val": "validation"}
_MAPILLARY_TEST = Files("testing/images/{stem}.jpg")


def _mapillary(label: str) -> dict[Any, Files]:
    splits = {
        split: Files(f"{folder}/images/{{stem}}.jpg", label.format(split=split, folder=folder))
        for split, folder in _MAPILLARY.items()
    }
    return splits | {"test": _MAPILLARY_TEST}


MAPILLARY = DatasetRecord(
    title="Mapillary Vistas v1.2",
    folders=("mapillary", "Mapillary", "mapillary_vistas"),
    layouts=(
        Layout("trainIds", _mapillary("cityscapes_trainIdLabel/{split}/label/{{stem}}.png"), _TRAINIDS),
        Layout("v1.2 archive", _mapillary("{folder}/labels/{{stem}}.png"), mapped(MAPILLARY_IDS, range(66)),
               ("mapillary-vistas-dataset_public_v1.2.zip",)),
        Layout("v2.0 archive", _mapillary("{folder}/v1.2/labels/{{stem}}.png"), mapped(MAPILLARY_IDS, range(66)),
               ("mapillary-vistas-dataset_public_v2.0.zip",)),
    ),
    size=None,
    resize=(512, 1024),
    evaluation="val",
    counts={"train": 18000, "val": 2000, "test": 5000},
    licence="CC BY-NC-SA 4.0 (research edition)",
    source="https://www.mapillary.com/dataset/vistas",
    note="the papers score mapillary_half",
    **_CLASSES,
)  # fmt: skip

MAPILLARY_HALF = DatasetRecord(
    title="Mapillary Vistas v1.2, validation images at half size",
    folders=MAPILLARY.folders,
    layouts=(Layout("prepared", {"val": Files("half/val_img/{stem}.{ext}", "half/val_label/{stem}.png")}, _TRAINIDS),),
    size=None,
    resize=(512, 1024),
    evaluation="val",
    counts={"val": 2000},
    licence=MAPILLARY.licence,
    source=MAPILLARY.source,
    raw=MAPILLARY.layouts,
    **_CLASSES,
)

_CONDITIONS = ("night", "snow", "fog", "rain")


def _acdc(kind: str) -> dict[Any, Files]:
    label = f"gt/{{subset}}/{{split}}/{{sequence}}/{{stem}}_gt_{kind}.png"
    return _three("rgb_anon/{subset}/{split}/{sequence}/{stem}_rgb_anon.png", label)


_ACDC_COUNTS = {"train": 1600, "val": 406, "test": 2000}  # 4,006 in all
_ACDC_COUNTS |= {
    f"{name}:{split}": count for name in _CONDITIONS for split, count in (("train", 400), ("val", 100), ("test", 500))
}
_ACDC_COUNTS |= {"night:val": 106}  # the parts [know], their sum is checked
ACDC = DatasetRecord(
    title="ACDC",
    folders=("acdc", "ACDC"),
    layouts=(
        Layout("official", _acdc("labelTrainIds"), _TRAINIDS, ("rgb_anon_trainvaltest.zip", "gt_trainval.zip")),
        Layout("labelIds", _acdc("labelIds"), mapped(CITYSCAPES_IDS, range(34)),
               ("rgb_anon_trainvaltest.zip", "gt_trainval.zip")),
    ),
    size=(1080, 1920),
    resize=(540, 960),
    evaluation="val",
    counts=_ACDC_COUNTS,
    subsets=_CONDITIONS,
    licence="its own: non-commercial, registration",
    source="https://acdc.vision.ee.ethz.ch/",
    **_CLASSES,
)  # fmt: skip
