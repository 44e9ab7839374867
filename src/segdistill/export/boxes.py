"""A detector as it is exported: which boxes remain is decided inside the graph, in tensors of fixed sizes.

torchvision's Faster R-CNN keeps as many boxes as pass its thresholds. A graph has no such lengths: here every step
keeps all of its candidates, and those that are left out have a negative score. The boxes that remain are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, library
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import nms, roi_align
from torchvision.ops.poolers import LevelMapper

from segdistill.export.graph import Graph, numbers
from segdistill.heads.faster_rcnn import SIDES, FasterRCNN, Pyramid
from segdistill.heads.pyramid import STRIDES

GONE = -1.0  # the score of a candidate that is left out
SMALL = 1e-3, 1e-2  # pixels: least sides of regions and of boxes in torchvision


class BoxGraph(Graph):
    """A detector as it is exported.

    ``boxes`` (N, M, 4) float32: left, top, right and bottom in pixels of the image; ``scores`` (N, M) float32, by
    descending score; ``labels`` (N, M) int64: class indices. M is the head's ``most``; rows beyond the boxes that were
    found have the score 0.
    """

    smallest = 2 * SIDES[-1]

    def forward(  # type: ignore[override]
        self, image: UInt8[Tensor, "n h w 3"]
    ) -> tuple[Float[Tensor, "n m 4"], Float[Tensor, "n m"], Int[Tensor, "n m"]]:
        """The boxes of every image."""
        seen = image.permute(0, 3, 1, 2).float() / 255.0
        if self.size is not None:
            seen = F.interpolate(seen, size=self.size, mode="bilinear", align_corners=False)
        maps, _ = self._maps(seen)
        head: Any = self.head
        pyramid = head.decode(maps)
        regions, usable = _regions(head, pyramid)
        boxes, scores, labels = _boxes(head, pyramid, regions, usable)
        shown, whole = (_corner(*sides) for sides in (seen.shape[2:], image.shape[1:3]))
        places = _inside(boxes * _corner(*pyramid.image) / _corner(*pyramid.size), shown)
        scores = scores.masked_fill(~_larger(places, 0.0), GONE).clamp(min=0)
        scores, order = scores.topk(scores.shape[1], dim=1)  # boxes in the padding are gone
        places = places.gather(1, order.unsqueeze(-1).expand(-1, -1, 4))
        return places * whole / shown, scores, labels.gather(1, order)


def _regions(head: FasterRCNN, pyramid: Pyramid) -> tuple[Float[Tensor, "n p 4"], Bool[Tensor, "n p"]]:
    """As torchvision's ``RegionProposalNetwork``: regions of every image, in the pyramid's pixels, and which exist."""
    network, count = head.regions, pyramid.levels[0].shape[0]
    most = network.pre_nms_top_n()
    one = ImageList(pyramid.levels[0].new_empty((1, 0, *pyramid.size)), [pyramid.size])
    anchors, start = network.anchor_generator(one, [level[:1] for level in pyramid.levels])[0], 0
    places, shares = [], []
    for logits, shifts in zip(*network.head(pyramid.levels), strict=True):
        kinds, rows, columns = logits.shape[1:]
        mine = anchors.narrow(0, start, rows * columns * kinds)
        start = start + rows * columns * kinds
        own = logits.permute(0, 2, 3, 1).reshape(count, -1)
        moves = shifts.reshape(count, kinds, 4, rows, columns).permute(0, 3, 4, 1, 2).reshape(count, -1, 4)
        filled = torch.cat([own, own.new_full((count, most), -torch.inf)], dim=1)  # a level may have fewer cells
        values, index = filled.topk(most, dim=1)
        index = index.clamp(max=rows * columns * kinds - 1)
        picked = moves.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        boxes = network.box_coder.decode_single(picked.flatten(0, 1), mine[index.flatten()]).reshape(count, most, 4)
        boxes = _inside(boxes, _corner(*pyramid.size))
        places.append(boxes)
        usable = _larger(boxes, SMALL[0]) & values.isfinite()
        scores = values.sigmoid().masked_fill(~usable, GONE)
        shares.append(scores.masked_fill(~_kept(boxes, scores, network.nms_thresh, GONE / 2), GONE))
    scores, index = torch.cat(shares, dim=1).topk(network.post_nms_top_n(), dim=1)
    boxes = torch.cat(places, dim=1).gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    return boxes, scores >= 0


def _boxes(
    head: FasterRCNN, pyramid: Pyramid, regions: Float[Tensor, "n p 4"], usable: Bool[Tensor, "n p"]
) -> tuple[Float[Tensor, "n m 4"], Float[Tensor, "n m"], Int[Tensor, "n m"]]:
    """As torchvision's ``RoIHeads``: boxes in the pyramid's pixels, scores (negative: no box) and classes."""
    network, (count, most) = head.boxes, usable.shape
    flat = regions.flatten(0, 1)
    image = torch.arange(count).float().repeat_interleave(most).unsqueeze(1)
    pooled = _pooled(pyramid, torch.cat([image, flat], dim=1), network.box_roi_pool)
    logits, shifts = network.box_predictor(network.box_head(pooled))
    scores = logits.softmax(dim=1)[:, 1:]  # without the background
    boxes = network.box_coder.decode_single(shifts, flat).reshape(flat.shape[0], -1, 4)[:, 1:]
    boxes = _inside(boxes, _corner(*pyramid.size))
    scores = scores.masked_fill(~(_larger(boxes, SMALL[1]) & usable.reshape(-1, 1)), GONE)
    kinds = scores.shape[1]
    boxes = boxes.reshape(count, most, kinds, 4).transpose(1, 2).reshape(count * kinds, most, 4)
    scores = scores.reshape(count, most, kinds).transpose(1, 2).reshape(count * kinds, most)
    kept = _kept(boxes, scores, network.nms_thresh, network.score_thresh)
    ranked = scores.masked_fill(~kept, GONE).reshape(count, kinds * most)
    values, index = ranked.topk(min(network.detections_per_img, kinds * most), dim=1)
    found = boxes.reshape(count, kinds * most, 4).gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
    return found, values, index // most


def _pooled(pyramid: Pyramid, regions: Float[Tensor, "r 5"], pool: Any) -> Float[Tensor, "r c 7 7"]:
    """As torchvision's ``MultiScaleRoIAlign``: every region from the level of its size.

    All levels are read for all regions, which costs little beside the layers that follow.
    """
    levels = LevelMapper(2, 1 + len(STRIDES), pool.canonical_scale, pool.canonical_level)([regions[:, 1:]])
    total = torch.zeros(1)
    for number, side in enumerate(STRIDES):
        cells = roi_align(pyramid.levels[number], regions, pool.output_size, 1 / side, pool.sampling_ratio)
        total = total + cells * (levels == number).reshape(-1, 1, 1, 1)
    return total


def _corner(height: Any, width: Any) -> Float[Tensor, 4]:
    """(width, height, width, height), of sizes that may be symbols."""
    return numbers([width, height, width, height]).float()


def _inside(boxes: Float[Tensor, "*n 4"], corner: Float[Tensor, 4]) -> Float[Tensor, "*n 4"]:
    return torch.minimum(boxes.clamp(min=0), corner)


def _larger(boxes: Float[Tensor, "*n 4"], least: float) -> Bool[Tensor, "*n"]:
    """Whether both sides of a box have at least ``least`` pixels, and more than none."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return ((sides >= least) & (sides > 0)).all(dim=-1)


@library.custom_op(
    "segdistill::kept", mutates_args=(), schema="(Tensor boxes, Tensor scores, float iou, float least) -> Tensor"
)
def _kept(boxes: Tensor, scores: Tensor, iou: float, least: float) -> Tensor:
    """Which boxes (B, P, 4) of each row score more than ``least`` and remain after suppression; (B, P) bool."""
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    for row, (places, values) in enumerate(zip(boxes, scores, strict=True)):
        usable = (values > least).nonzero()[:, 0]
        kept[row, usable[nms(places[usable], values[usable], iou)]] = True
    return kept


@_kept.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float, least: float) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What torch's exporter does not know: :func:`_kept` as ``NonMaxSuppression``."""
    from onnx import TensorProto
    from onnxscript import BOOL, FLOAT, opset20

    op: Any = opset20

    def kept(boxes: FLOAT, scores: FLOAT, iou: float, least: float) -> BOOL:
        limits = (op.Constant(value_floats=[value]) for value in (iou, least))
        most = op.Shape(scores, start=1, end=2)
        found = op.NonMaxSuppression(boxes, op.Unsqueeze(scores, [1]), most, *limits)  # (n, 3): row, 0, box
        places = op.Gather(found, [0, 2], axis=1)
        ones = op.Expand(op.Constant(value_floats=[1.0]), op.Shape(found, start=0, end=1))
        return op.Cast(op.ScatterND(op.ConstantOfShape(op.Shape(scores)), places, ones), to=TensorProto.BOOL)

    return {torch.ops.segdistill.kept.default: kept}
