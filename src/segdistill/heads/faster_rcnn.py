"""Faster R-CNN (Ren et al., NeurIPS 2015) on a feature pyramid: the detector of GKD's Table 10.

The parts of torchvision. Maps of one stride, those of a plain ViT, become a simple feature pyramid (Li et al.,
"Exploring Plain Vision Transformer Backbones for Object Detection", ECCV 2022): the last map after the final norm,
enlarged or pooled to the strides 4 to 32. Maps of the strides 4 to 32 become a feature pyramid network (Lin et al.,
CVPR 2017). Both have a fifth level of stride 64, of every second cell.

The defaults are those of mmdetection's Pascal VOC recipe, except for what is torchvision's: smooth L1 with beta 1/9 in
both box losses, and boxes regressed for each class. Table 10 does not name its pyramid.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from timm.layers import LayerNorm2d
from torch import Tensor, nn, tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from segdistill.config import UserError
from segdistill.heads.base import Head, HeadConfig, Maps
from segdistill.heads.pyramid import STRIDES, level_sizes
from segdistill.ops import full_precision, resize
from segdistill.types import LossTerms

SIDES = (*STRIDES, 64)
"""Pixels per cell of the levels."""

Side = Annotated[float, Field(ge=1, le=2**14)]
Found = tuple[Float[Tensor, "_n 4"], Float[Tensor, " _n"], Int[Tensor, " _n"]]
"""Boxes of one image, their scores and classes, by descending score."""


@dataclass(frozen=True)
class Pyramid:
    """The levels, fine to coarse, in float32. ``size``: pixels (h, w) that they cover; ``image``: of the images.

    The two differ if maps were resized because no level has their stride: boxes are then scaled.
    """

    levels: list[Tensor]
    size: tuple[int, int]
    image: tuple[int, int]

    @property
    def scale(self) -> Float[Tensor, " 4"]:
        """A box in the pyramid divided by the same box in the image."""
        down, across = (own / given for own, given in zip(self.size, self.image, strict=True))
        return tensor([across, down, across, down], device=self.levels[0].device)

    def first(self, count: int) -> tuple[OrderedDict[str, Tensor], ImageList]:
        """The levels of the first ``count`` images as torchvision takes them."""
        named = OrderedDict((str(number), level[:count]) for number, level in enumerate(self.levels))
        pixels = self.levels[0].new_empty((count, 0, *self.size))  # only its shape is read
        return named, ImageList(pixels, [self.size] * count)


class Anchors(AnchorGenerator):
    """Anchors at the strides of the levels, whatever the images' size; torchvision's rounds the quotient."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The anchors (N, 4) of each image."""
        like = feature_maps[0]
        self.set_cell_anchors(like.dtype, like.device)
        strides = [[tensor(side, device=like.device)] * 2 for side in SIDES]
        grids = [list(level.shape[-2:]) for level in feature_maps]
        found = torch.cat(self.grid_anchors(grids, strides))
        return [found] * len(image_list.image_sizes)


class FasterRCNN(Head):
    """Maps of the taps -> boxes; :meth:`decode` returns a :class:`Pyramid`.

    Region proposals and boxes are computed in float32. Their samples are drawn from torch's global generator.
    """

    tasks = ("detection",)
    has_logits = False

    class Config(HeadConfig):
        """``width``: channels of the levels; ``hidden``: of the two layers that see a proposal's 7 x 7 cells."""

        width: int = Field(256, ge=1, le=8192)
        hidden: int = Field(1024, ge=1, le=2**16)
        anchors: tuple[Side, Side, Side, Side, Side] = Field(
            (32, 64, 128, 256, 512), description="side of the square anchor of each level (strides 4 to 64), pixels"
        )
        proposals: int = Field(1000, ge=1, le=2**16, description="regions of an image that are classified")
        region_samples: int = Field(256, ge=1, le=2**16, description="anchors of an image in the loss")
        box_samples: int = Field(512, ge=1, le=2**16, description="regions of an image in the loss")
        least_score: float = Field(0.05, ge=0, lt=1, description="boxes with a lower score are not predicted")
        nms: float = Field(0.5, gt=0, le=1, description="of boxes of a class with a larger IoU the best one is kept")
        most: int = Field(100, ge=1, le=2**16, description="most boxes of an image")

    def __init__(self, config: Config, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.config, self.strides, self.num_classes = config, strides, num_classes
        self.neck = neck_of(channels, strides, config.width)
        anchors, ratios = Anchors(tuple((side,) for side in config.anchors), ((0.5, 1.0, 2.0),) * 5), 3
        self.regions = RegionProposalNetwork(
            anchors, RPNHead(config.width, ratios), 0.7, 0.3, config.region_samples, 0.5,
            {"training": 2 * config.proposals, "testing": config.proposals},
            {"training": config.proposals, "testing": config.proposals}, 0.7,
        )  # fmt: skip
        self.boxes = RoIHeads(
            MultiScaleRoIAlign([str(number) for number in range(len(STRIDES))], 7, 2),
            TwoMLPHead(config.width * 7 * 7, config.hidden),
            FastRCNNPredictor(config.hidden, num_classes + 1),  # 0: background
            0.5, 0.5, config.box_samples, 0.25, None, config.least_score, config.nms, config.most,
        )  # fmt: skip

    @staticmethod
    def taps_of(taps: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
        """The last map after the final norm, if all have one stride."""
        return (-1,) if len(set(strides)) == 1 else taps

    def decode(self, maps: Maps) -> Pyramid:
        """The levels of the pyramid."""
        [image] = level_sizes(maps[-1:], self.strides[-1:], (1,))
        levels, size = self.neck(maps, image)
        return Pyramid([level.float() for level in levels], size, image)

    def box_loss(
        self,
        decoded: Pyramid,
        boxes: Sequence[Float[Tensor, "_n 4"]],
        classes: Sequence[Int[Tensor, " _n"]],
    ) -> LossTerms:
        """The loss terms against the boxes of the first decoded images; any further images have none.

        ``objectness`` and ``region``: anchors; ``class`` and ``box``: regions.
        """
        scale = decoded.scale
        targets: Any = [
            {"boxes": (own * scale).float(), "labels": kinds + 1} for own, kinds in zip(boxes, classes, strict=True)
        ]
        with full_precision(decoded.levels[0]):
            levels, images = decoded.first(len(boxes))
            self.regions.train()  # these parts have no other mode than whether they compute losses
            self.boxes.train()
            regions, first = self.regions(images, levels, targets)
            _, second = self.boxes(levels, regions, images.image_sizes, targets)
        return {
            "objectness": first["loss_objectness"],
            "region": first["loss_rpn_box_reg"],
            "class": second["loss_classifier"],
            "box": second["loss_box_reg"],
        }

    def found(self, decoded: Pyramid) -> list[Found]:
        """The boxes of every image, in its own pixels."""
        with full_precision(decoded.levels[0]):
            levels, images = decoded.first(len(decoded.levels[0]))
            self.regions.eval()
            self.boxes.eval()
            regions, _ = self.regions(images, levels)
            results, _ = self.boxes(levels, regions, images.image_sizes)
        return [(each["boxes"] / decoded.scale, each["scores"], each["labels"] - 1) for each in results]


class SimplePyramid(nn.Module):
    """The last map at the strides 4 to 32: transposed convolutions enlarge it, maxima shrink it.

    As in ViTDet, enlarging by 2 halves the channels; every level gets a 1 x 1 and a 3 x 3 convolution with layer norms.
    """

    def __init__(self, channels: int, stride: int, width: int) -> None:
        super().__init__()
        self.stride = stride
        self.base = min(STRIDES, key=lambda side: abs(math.log2(side / stride)))
        """The level whose stride is nearest to the map's, which is resized to it."""
        self.branches = nn.ModuleList(self._branch(channels, side, width) for side in STRIDES)

    def _branch(self, channels: int, side: int, width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        steps = round(math.log2(self.base / side))
        for step in range(steps):
            layers += [LayerNorm2d(channels), nn.GELU()] if step else []
            layers.append(nn.ConvTranspose2d(channels, max(1, channels // 2), 2, stride=2))
            channels = max(1, channels // 2)
        layers += [nn.MaxPool2d(2, ceil_mode=True) for _ in range(-steps)]
        layers += [nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width)]
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width)]
        return nn.Sequential(*layers)

    def forward(self, maps: Maps, image: tuple[int, int]) -> tuple[list[Tensor], tuple[int, int]]:
        """The levels, and the pixels that they cover."""
        features, size = maps[-1], image
        if self.base != self.stride:
            [grid] = level_sizes(maps[-1:], (self.stride,), (self.base,))
            features, size = resize(features, grid), (grid[0] * self.base, grid[1] * self.base)
        levels = [branch(features) for branch in self.branches]
        return [*levels, _halved(levels[-1])], size


class Laterals(nn.Module):
    """A feature pyramid network over maps of the strides 4 to 32."""

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.network = FeaturePyramidNetwork(list(channels), width)

    def forward(self, maps: Maps, image: tuple[int, int]) -> tuple[list[Tensor], tuple[int, int]]:
        """The levels, and the pixels that they cover."""
        named = OrderedDict((str(number), features) for number, features in enumerate(maps))
        levels = list(self.network(named).values())
        return [*levels, _halved(levels[-1])], image


def neck_of(channels: tuple[int, ...], strides: tuple[int, ...], width: int) -> SimplePyramid | Laterals:
    """The pyramid for maps of these strides; a :class:`UserError` if there is none."""
    if len(set(strides)) == 1 and 2 < strides[0] < 64:
        return SimplePyramid(channels[-1], strides[0], width)
    if strides == STRIDES:
        return Laterals(channels, width)
    raise UserError(
        f"faster_rcnn needs maps of one stride from 3 to 63 pixels, or of the strides {', '.join(map(str, STRIDES))}; "
        f"this encoder has {', '.join(map(str, strides))}: choose another one"
    )


def _halved(level: Tensor) -> Tensor:
    """Every second cell of a level."""
    return F.max_pool2d(level, 1, stride=2)
