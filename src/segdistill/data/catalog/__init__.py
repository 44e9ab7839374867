"""The table of data sets. To add one, add a record."""

from __future__ import annotations

from segdistill.data.catalog.boxes import VOC2007_BOXES, VOC2012_BOXES
from segdistill.data.catalog.driving import (
    ACDC,
    BDD100K,
    CITYSCAPES,
    GTAV,
    MAPILLARY,
    MAPILLARY_HALF,
    SYNTHIA,
    URBANSYN,
)
from segdistill.data.catalog.others import (
    ADE20K,
    CAMVID_RECORD,
    ENDOVIS18,
    IMAGENET,
    POTSDAM_IRRG,
    POTSDAM_RGB,
    VAIHINGEN_IRRG,
    VOC2012,
)
from segdistill.data.catalog.record import IGNORE, RGB, DatasetRecord, Encoding, Files, Layout, ObjectNumbers
from segdistill.data.catalog.things import (
    ADE20K_INSTANCES,
    CITYSCAPES_INSTANCES,
    COCO_INSTANCES,
    MAPILLARY_INSTANCES,
    SYNTHIA_INSTANCES,
)

__all__ = ["DATASETS", "IGNORE", "RGB", "DatasetRecord", "Encoding", "Files", "Layout", "ObjectNumbers"]

DATASETS: dict[str, DatasetRecord] = {
    "gtav": GTAV,
    "synthia": SYNTHIA,
    "urbansyn": URBANSYN,
    "cityscapes": CITYSCAPES,
    "bdd100k": BDD100K,
    "mapillary": MAPILLARY,
    "mapillary_half": MAPILLARY_HALF,
    "acdc": ACDC,
    "potsdam_rgb": POTSDAM_RGB,
    "potsdam_irrg": POTSDAM_IRRG,
    "vaihingen_irrg": VAIHINGEN_IRRG,
    "endovis18": ENDOVIS18,
    "voc2012": VOC2012,
    "ade20k": ADE20K,
    "camvid": CAMVID_RECORD,
    "imagenet": IMAGENET,
    "cityscapes_instances": CITYSCAPES_INSTANCES,
    "synthia_instances": SYNTHIA_INSTANCES,
    "mapillary_instances": MAPILLARY_INSTANCES,
    "ade20k_instances": ADE20K_INSTANCES,
    "coco_instances": COCO_INSTANCES,
    "voc2007_boxes": VOC2007_BOXES,
    "voc2012_boxes": VOC2012_BOXES,
}
