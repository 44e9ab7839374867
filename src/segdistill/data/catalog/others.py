"""Aerial and surgical images, everyday photographs, and images without labels (spec D.1, D.4, D.5)."""

from __future__ import annotations

from typing import Any

from segdistill.data.catalog.classes import (
    ADE,
    ADE_COLORS,
    AERIAL,
    AERIAL_COLORS,
    AERIAL_TABLE,
    CAMVID,
    CAMVID_COLORS,
    CAMVID_TABLE,
    ENDOVIS,
    ENDOVIS_COLORS,
    VOC,
    VOC_COLORS,
)
from segdistill.data.catalog.record import DatasetRecord, Encoding, Files, Layout, shifted, trainids

_AERIAL: Any = {
    "classes": AERIAL, "colors": AERIAL_COLORS, "size": (512, 512), "resize": (512, 512), "evaluation": "val",
}  # fmt: skip
POTSDAM_TILES = {
    "train": ("2_10 2_11 2_12 3_10 3_11 3_12 4_10 4_11 4_12 5_10 5_11 5_12 "
              "6_10 6_11 6_12 6_7 6_8 6_9 7_10 7_11 7_12 7_7 7_8 7_9"),
    "val": "5_15 6_15 6_13 3_13 4_14 6_14 5_14 2_13 4_15 2_14 5_13 4_13 3_14 7_13",
}  # fmt: skip
VAIHINGEN_TILES = {
    "train": ("area1 area11 area13 area15 area17 area21 area23 area26 area28 area3 area30 area32 area34 area37 "
              "area5 area7"),
    "val": ("area6 area24 area35 area16 area14 area22 area10 area4 area2 area20 area8 area31 area33 area27 area38 "
            "area12 area29"),
}  # fmt: skip
_TILE_COLORS = Encoding(colors=AERIAL_TABLE)


def _tiles(title: str, tiles: dict[str, str], images: str, labels: str, archives: tuple[str, ...]) -> Layout:
    splits: Any = {split: Files(images, labels, members=tuple(names.split())) for split, names in tiles.items()}
    return Layout(title, splits, _TILE_COLORS, archives)


def _clips(above: str = "") -> tuple[Layout, ...]:
    """512 x 512 clips with ids as written by the usual converter: 0 is ignored, 1-6 are the classes."""
    splits: Any = {
        split: Files(f"{above}img_dir/{split}/{{stem}}.png", f"{above}ann_dir/{split}/{{stem}}.png")
        for split in ("train", "val")
    }
    return (Layout("clips", splits, shifted(len(AERIAL))),)


def _potsdam(kind: str, ortho: str) -> DatasetRecord:
    return DatasetRecord(
        title=f"ISPRS Potsdam, {kind}",
        folders=("potsdam", "Potsdam"),
        layouts=_clips(f"{kind}/"),
        counts={"train": 3456, "val": 2016},
        licence="ISPRS terms: research, registration",
        source="https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-potsdam.aspx",
        raw=tuple(  # 24 and 14 tiles of 6000 x 6000 pixels; one folder per archive, or none
            _tiles(
                f"{labels}{', flat' if flat else ''}",
                POTSDAM_TILES,
                f"{'' if flat else f'{ortho}/'}top_potsdam_{{tile}}_{kind}.tif",
                f"{'' if flat else f'{labels}/'}top_potsdam_{{tile}}_label_noBoundary.tif",
                (f"{ortho}.zip", f"{labels}.zip"),
            )
            for labels in ("5_Labels_all_noBoundary", "5_Labels_for_participants_no_Boundary")
            for flat in (False, True)
        ),
        note="as a source it does not count towards the mean of the targets (spec A.9)" if kind == "RGB" else "",
        **_AERIAL,
    )


POTSDAM_RGB = _potsdam("RGB", "2_Ortho_RGB")
POTSDAM_IRRG = _potsdam("IRRG", "3_Ortho_IRRG")

VAIHINGEN = _VAIHINGEN, _ERODED = (
    "ISPRS_semantic_labeling_Vaihingen",
    "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE",
)
VAIHINGEN_IRRG = DatasetRecord(
    title="ISPRS Vaihingen, IRRG",
    folders=("vaihingen", "Vaihingen"),
    layouts=_clips(),
    counts={"train": 344, "val": 398},
    licence="ISPRS terms: research, registration",
    source="https://www.isprs.org/education/benchmarks/UrbanSemLab/2d-sem-label-vaihingen.aspx",
    raw=(
        _tiles(  # unpacked folders have the names of the archives [know]
            "official",
            VAIHINGEN_TILES,
            f"{_VAIHINGEN}/top/top_mosaic_09cm_{{tile}}.tif",
            f"{_ERODED}/top_mosaic_09cm_{{tile}}_noBoundary.tif",
            (f"{_VAIHINGEN}.zip", f"{_ERODED}.zip"),
        ),
        _tiles(  # inside the archives, or both unpacked in one folder
            "in archives",
            VAIHINGEN_TILES,
            "top/top_mosaic_09cm_{tile}.tif",
            "top_mosaic_09cm_{tile}_noBoundary.tif",
            (f"{_VAIHINGEN}.zip", f"{_ERODED}.zip"),
        ),
    ),
    **_AERIAL,
)

_ENDOVIS_RELEASES: Any = {"train": "release_1", "val": "release_2"}  # sequences 1-4, and 5-7 as the unseen target
ENDOVIS18 = DatasetRecord(
    title="EndoVis 2018 robotic scene segmentation",
    folders=("endovis2018", "endovis18", "EndoVis2018"),
    layouts=(
        Layout(
            "flat",  # the encoding of the authors' flat files is not known (spec G.9): ids
            {
                split: Files(
                    f"miccai_challenge_{release}/images/{{stem}}.png", f"miccai_challenge_{release}/labels/{{stem}}.png"
                )
                for split, release in _ENDOVIS_RELEASES.items()
            },
            trainids(len(ENDOVIS)),
        ),
        *(
            Layout(
                f"official ({above.format('N')})",  # folder names [know]
                {
                    split: Files(
                        f"{above.format(release[-1])}/{{sequence}}/left_frames/{{stem}}.png",
                        f"{above.format(release[-1])}/{{sequence}}/labels/{{stem}}.png",
                    )
                    for split, release in _ENDOVIS_RELEASES.items()
                },
                Encoding(colors={color: i for i, color in enumerate(ENDOVIS_COLORS)}),
                tuple(f"{above.format(number)}.zip" for number in (1, 2)),
            )
            for above in ("miccai_challenge_2018_release_{}", "miccai_challenge_release_{}")
        ),
    ),
    classes=ENDOVIS,
    colors=ENDOVIS_COLORS,
    size=(1024, 1280),
    resize=(1024, 1280),
    evaluation="val",
    counts={"train": 596, "val": 447},  # 149 frames per sequence [know]
    licence="CC BY-NC-SA 4.0, challenge registration",
    source="https://endovissub2018-roboticscenesegmentation.grand-challenge.org/",
    note="corrected labels of sequences 1 and 4 are reported to lie in a folder 'repairs': put them in place first",
    splits_apart=True,  # other operations: the papers' source and target
)

VOC2012 = DatasetRecord(
    title="Pascal VOC 2012 segmentation",
    folders=("VOCdevkit/VOC2012", "VOC2012", "voc2012"),
    layouts=(
        Layout(
            "official",
            {
                split: Files(
                    "JPEGImages/{stem}.jpg", "SegmentationClass/{stem}.png", f"ImageSets/Segmentation/{split}.txt"
                )
                for split in ("train", "val")
            },
            trainids(len(VOC)),  # palettised; 255 is the border
            ("VOCtrainval_11-May-2012.tar",),
        ),
    ),
    classes=VOC,
    colors=VOC_COLORS,
    size=None,
    evaluation="val",
    counts={"train": 1464, "val": 1449},
    licence="the photographs keep their Flickr terms: research",
    source="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)

ADE20K = DatasetRecord(
    title="ADE20K scene parsing (150 classes)",
    folders=("ADEChallengeData2016", "ade/ADEChallengeData2016", "ade20k"),
    layouts=(
        Layout(
            "official",
            {
                "train": Files("images/training/{stem}.jpg", "annotations/training/{stem}.png"),
                "val": Files("images/validation/{stem}.jpg", "annotations/validation/{stem}.png"),
            },
            shifted(len(ADE)),
            ("ADEChallengeData2016.zip",),
        ),
    ),
    classes=ADE,
    colors=ADE_COLORS,
    size=None,
    evaluation="val",
    counts={"train": 20210, "val": 2000},
    licence="images: research and education; annotations: BSD 3-clause",
    source="http://sceneparsing.csail.mit.edu/",
)

_CAMVID_SPLITS: Any = ("train", "val", "test")
CAMVID_RECORD = DatasetRecord(
    title="CamVid (11 classes)",
    folders=("camvid", "CamVid"),
    layouts=(
        Layout(
            "colours",
            {split: Files(f"{split}/{{stem}}.png", f"{split}_labels/{{stem}}_L.png") for split in _CAMVID_SPLITS},
            Encoding(colors=CAMVID_TABLE),
        ),
        Layout(
            "annot",  # 11 is unlabelled
            {split: Files(f"{split}/{{stem}}.png", f"{split}annot/{{stem}}.png") for split in _CAMVID_SPLITS},
            trainids(len(CAMVID), ignored=(11, 255)),
        ),
    ),
    classes=CAMVID,
    colors=CAMVID_COLORS,
    size=(720, 960),
    evaluation="test",
    counts={"train": 367, "val": 101, "test": 233},  # [know]
    licence="none stated: research",
    source="http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/",
    note="another division, of 369, 100 and 232 images, is in use too",
)

IMAGENET = DatasetRecord(
    title="ImageNet-1k, or any folder or archive of images, without labels",
    folders=("imagenet", "ImageNet", "imagenet1k", "ILSVRC/Data/CLS-LOC"),
    layouts=(
        Layout("official", {"train": Files("train/{path}.{ext}"), "val": Files("val/{path}.{ext}")}, None),
        Layout("any", {"train": Files("{path}.{ext}")}, None),
    ),
    classes=(),
    colors=(),
    size=None,
    counts={"train": 1281167, "val": 50000},
    licence="its own: non-commercial research, registration",
    source="https://www.image-net.org/download.php",
    note="ILSVRC2012_img_train.tar is a tar of tars: unpack it once",
)
