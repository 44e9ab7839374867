"""Encoder and head as one network, with ``loss(batch)`` for training and ``predict(images)`` for inference."""

from segdistill.models.faster_rcnn import Detector
from segdistill.models.hrda import HRDA
from segdistill.models.inherit import check_heads, inherit_head
from segdistill.models.instance import InstanceSegmenter
from segdistill.models.model import Finder, Model
from segdistill.models.segmenter import Segmenter, Window, as_segmenter, positions
from segdistill.models.view import View, fit, prepare

__all__ = [
    "HRDA",
    "Detector",
    "Finder",
    "InstanceSegmenter",
    "Model",
    "Segmenter",
    "View",
    "Window",
    "as_segmenter",
    "check_heads",
    "fit",
    "inherit_head",
    "positions",
    "prepare",
]
