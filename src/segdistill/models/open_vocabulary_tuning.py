"""Adaptation of an open-vocabulary teacher to labelled images (spec 2.3): settings, what is trained, losses.

Batches have the keys of ``data/targets.py``. Legend: B batch, N objects, S side of the segmenter's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor
from torchvision.ops import box_convert, sigmoid_focal_loss

from segdistill.config import Config
from segdistill.data.targets import objects_of
from segdistill.models.box_segmenter import BoxSegmenter
from segdistill.models.text_detector import TextDetector
from segdistill.objects import Objects, boxes_of
from segdistill.ops import resize
from segdistill.types import Batch, LossTerms

Tuned = Literal["detector", "segmenter"]
TERMS = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
"""Our terms and their names in transformers."""
CLASS_WEIGHT = 2.0
"""Weight of the class term in transformers."""


class DetectorTuning(Config):
    """The authors' settings for 1,000 steps of 8 images on Cityscapes. AdamW; the text encoder is frozen.

    ``milestones``: shares of the steps after which the learning rate falls by ``factor``. ``auxiliary``: the loss also
    reads every layer of the decoder, as in MMDetection.
    """

    lr: float = Field(5e-5, gt=0, le=1)
    backbone_lr_scale: float = Field(0.1, ge=0, le=1000)
    weight_decay: float = Field(0.01, ge=0, le=1)
    clip: float | None = Field(0.1, gt=0, le=1e6, description="largest gradient norm; None: no clipping")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((0.7, 0.9))
    factor: float = Field(0.1, gt=0, le=1)
    auxiliary: bool = True

    @model_validator(mode="after")
    def _milestones_in_order(self) -> DetectorTuning:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError("milestones are shares of the steps between 0 and 1, in order")
        return self

    def schedule(self) -> Callable[[int, int], float]:
        """(step, steps) -> learning rate: constant between the milestones."""

        def lr(step: int, steps: int) -> float:
            return self.lr * self.factor ** sum(step >= each * steps for each in self.milestones)

        return lr


class SegmenterTuning(Config):
    """The authors' settings for 50 epochs with one image per step. AdamW on prompt encoder and mask decoder.

    ``most``: objects of an image that are trained on, the largest ones (ours: limits memory).
    """

    lr: float = Field(5e-6, gt=0, le=1)
    weight_decay: float = Field(1e-4, ge=0, le=1)
    power: float = Field(1.0, ge=0, le=100)
    clip: float | None = Field(None, gt=0, le=1e6, description="largest gradient norm; None: no clipping")
    focal_weight: float = Field(20.0, ge=0, le=1e6)
    dice_weight: float = Field(1.0, ge=0, le=1e6)
    most: int = Field(64, ge=1, le=10**4)

    def schedule(self) -> Callable[[int, int], float]:
        """(step, steps) -> learning rate: ``lr * (1 - step / steps) ** power``."""
        return lambda step, steps: self.lr * (1 - step / steps) ** self.power


def select(detector: Any, segmenter: Any, part: Tuned | None) -> None:
    """Enable gradients for the trainable parameters of ``part`` only (None: of nothing)."""
    for each in (detector, segmenter):
        if each is not None:
            each.requires_grad_(False)
    if part == "detector":
        detector.network.requires_grad_(True)
        detector.network.model.text_backbone.requires_grad_(False)
    elif part == "segmenter":
        segmenter.network.prompt_encoder.requires_grad_(True)
        segmenter.network.mask_decoder.requires_grad_(True)


def set_mode(detector: Any, segmenter: Any, part: Tuned | None) -> None:
    """Training mode for what is trained, evaluation mode for the rest."""
    for each in (detector, segmenter):
        if each is not None:
            each.eval()
    if part == "detector":
        detector.train()
        detector.network.model.text_backbone.eval()
    elif part == "segmenter":
        segmenter.network.prompt_encoder.train()
        segmenter.network.mask_decoder.train()


def detector_groups(detector: TextDetector, tuning: DetectorTuning) -> list[dict[str, Any]]:
    """Parameter groups with ``weight_decay`` and ``lr_scale``: the image backbone, and the rest."""
    own: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in detector.network.named_parameters():
        if parameter.requires_grad:
            own[name.startswith("model.backbone.")].append(parameter)
    return [
        {"params": own[True], "weight_decay": tuning.weight_decay, "lr_scale": tuning.backbone_lr_scale},
        {"params": own[False], "weight_decay": tuning.weight_decay, "lr_scale": 1.0},
    ]


def segmenter_groups(segmenter: BoxSegmenter, tuning: SegmenterTuning) -> list[dict[str, Any]]:
    """One parameter group."""
    trained = [parameter for parameter in segmenter.parameters() if parameter.requires_grad]
    return [{"params": trained, "weight_decay": tuning.weight_decay, "lr_scale": 1.0}]


def detector_loss(detector: TextDetector, batch: Batch, *, auxiliary: bool) -> LossTerms:
    """transformers' set loss of the detector, averaged over the chunks of the prompt: class, box and GIoU terms.

    Crowds and objects without pixels are left out. A class is trained on its first phrase. In transformers the first
    stage's terms (``_enc``) do not reach the heads that propose boxes: these stay as they are.
    """
    images = batch["image"].float() / 255.0
    prompt, config = detector.prompt, detector.network.config
    weights = {"box": config.bbox_loss_coefficient, "giou": config.giou_loss_coefficient, "class": CLASS_WEIGHT}
    pixels = detector.pixels(images)
    objects = [objects_of(batch, row) for row in range(len(images))]
    terms = {name: images.new_zeros(()) for name in TERMS}
    for chunk in prompt.chunks:
        places = {kind: chunk.phrases.index(number) for kind in range(len(prompt.classes))
                  if (number := prompt.phrase_of(kind)) in chunk.phrases}  # fmt: skip
        labels = [_labels(each, places, images.device) for each in objects]
        before, config.auxiliary_loss = config.auxiliary_loss, auxiliary
        try:
            found = detector.run(pixels, chunk, labels=labels).loss_dict
        finally:
            config.auxiliary_loss = before
        for name, key in TERMS.items():
            own = [value for each, value in found.items() if each == key or each.startswith(key + "_")]
            terms[name] = terms[name] + weights[name] * torch.stack(own).sum() / len(prompt.chunks)
    return terms


def _labels(objects: Objects, places: dict[int, int], device: torch.device) -> dict[str, Tensor]:
    """Phrase of the chunk and box (centre x, y, width, height as shares) of every object of its classes."""
    boxes, _ = annotated_boxes(objects)
    kinds = objects.classes.tolist()
    kept = [(places[kinds[number]], box) for number, box in boxes.items() if kinds[number] in places]
    corners = torch.tensor([box for _, box in kept], device=device).reshape(-1, 4)
    return {
        "class_labels": torch.tensor([place for place, _ in kept], dtype=torch.long, device=device),
        "boxes": box_convert(corners, "xyxy", "cxcywh"),
    }


def annotated_boxes(objects: Objects) -> tuple[dict[int, tuple[float, ...]], dict[int, int]]:
    """Box (x1, y1, x2, y2 as shares of the image's sides) and layer of every object, but not of crowds and of objects
    without pixels.
    """
    height, width = objects.size
    boxes, layers = {}, {}
    for layer, ids in enumerate(objects.ids):
        for number, box in enumerate(boxes_of(ids, len(objects.classes))):
            if box is not None and not objects.crowd[number]:
                top, left, bottom, right = box
                boxes[number] = (left / width, top / height, right / width, bottom / height)
                layers[number] = layer
    return boxes, layers


def segmenter_loss(segmenter: BoxSegmenter, batch: Batch, tuning: SegmenterTuning) -> LossTerms:
    """Sigmoid focal loss and dice of the masks for annotated boxes, on S x S pixels, averaged over all objects.

    Crowds and objects without pixels are left out; pixels without annotation do not count.
    """
    images = batch["image"].float() / 255.0
    chosen = [_largest(objects_of(batch, row), tuning.most) for row in range(len(images))]
    count = sum(len(boxes) for boxes, _, _ in chosen)
    levels = segmenter.embed(images)
    focal, dice = images.new_zeros(()), images.new_zeros(())
    for row, (boxes, masks, void) in enumerate(chosen):
        if len(boxes):
            logits, _ = segmenter.masks(levels, row, boxes.to(images.device))
            size = (segmenter.side, segmenter.side)
            logits = resize(logits[:, None].float(), size)[:, 0]
            truth = _resized(masks, size).to(images.device)
            counted = ~_resized(void[None], size).to(images.device).bool()
            focal = focal + sigmoid_focal(logits, truth, counted).sum() / count
            dice = dice + dice_loss(logits, truth, counted).sum() / count
    if not count:  # a zero with a graph
        focal = sum(each.sum() for each in segmenter.parameters() if each.requires_grad) * focal
    return {"focal": tuning.focal_weight * focal, "dice": tuning.dice_weight * dice}


def _largest(objects: Objects, most: int) -> tuple[Float[Tensor, "n 4"], Bool[Tensor, "n h w"], Bool[Tensor, "h w"]]:
    """Boxes and masks of the largest objects, and the pixels without annotation."""
    boxes, layers = annotated_boxes(objects)
    areas = objects.areas()
    numbers = sorted(boxes, key=lambda number: -areas[number])[:most]
    masks = [objects.ids[layers[number]] == number + 1 for number in numbers]
    void = np.zeros(objects.size, bool) if objects.void is None else objects.void
    return (
        torch.tensor([boxes[number] for number in numbers], dtype=torch.float32).reshape(-1, 4),
        torch.tensor(np.stack(masks) if masks else np.zeros((0, *objects.size), bool)),
        torch.tensor(void),
    )


def _resized(masks: Bool[Tensor, "n h w"], size: tuple[int, int]) -> Float[Tensor, "n _h _w"]:
    return F.interpolate(masks[:, None].float(), size, mode="nearest-exact")[:, 0]


def sigmoid_focal(
    logits: Float[Tensor, "n h w"], truth: Float[Tensor, "n h w"], counted: Bool[Tensor, "1 h w"]
) -> Float[Tensor, " n"]:
    """Lin et al., Focal Loss (arXiv 1708.02002), the mean over the counted pixels of each mask."""
    loss = sigmoid_focal_loss(logits, truth, alpha=0.25, gamma=2) * counted
    return loss.sum(dim=(1, 2)) / counted.sum().clamp(min=1)


def dice_loss(
    logits: Float[Tensor, "n h w"], truth: Float[Tensor, "n h w"], counted: Bool[Tensor, "1 h w"]
) -> Float[Tensor, " n"]:
    """One minus the Dice coefficient of each mask with probabilities, smoothed by one pixel (Mask2Former, SAM)."""
    chance, truth = logits.sigmoid() * counted, truth * counted
    shared = (chance * truth).sum(dim=(1, 2))
    return 1 - (2 * shared + 1) / (chance.sum(dim=(1, 2)) + truth.sum(dim=(1, 2)) + 1)
