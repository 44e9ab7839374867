"""Augmentation of one sample, drawn from torch's global generator, which the loader seeds per (stage, step, slot)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from segdistill.config import Config, Range, Shares
from segdistill.data.catalog.record import IGNORE
from segdistill.data.dataset import Sample
from segdistill.data.photometric import distort, draw_distortion
from segdistill.data.randaugment import RandAugment

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""ImageNet's statistics for pixels in [0, 1], with which the authors normalise the images of every network."""
MEAN_COLOR = (124, 116, 104)
"""The same mean as a colour: a zero after the authors' normalisation."""


class DistillAugment(Config):
    """Augmentation of distillation stages (spec A.7: timm's ``create_transform``, the same crop for both networks).

    Random erasing draws Gaussian noise on pixels normalised with ImageNet's statistics, as the authors' code does. The
    result is stored in 8 bits: noise beyond black or white (5 % of it) is clipped.
    """

    crop_scale: Shares = Field((0.08, 1.0), description="area of the random crop")
    crop_ratio: Range = (3 / 4, 4 / 3)
    keep_aspect: bool = Field(False, description="ours: multiply crop_ratio by the image's own width / height")
    flip: float = Field(0.5, ge=0, le=1)
    rand_augment: RandAugment | None = Field("rand-m9-mstd0.5-inc1", description="timm's RandAugment string; None: off")
    erase: float = Field(0.25, ge=0, le=1)


class TaskAugment(Config):
    """Augmentation of task stages (spec A.10). After the distortion of :mod:`segdistill.data.photometric`, images are
    padded with the mean colour at the right and at the bottom.
    """

    scale: Range = Field((0.5, 2.0), description="range of the short side relative to the crop's")
    max_share: float = Field(0.75, gt=0, le=1, description="a crop in which one class has a larger share is redrawn")
    tries: int = Field(10, ge=1, le=1000)
    flip: float = Field(0.5, ge=0, le=1)
    photometric: bool = True


class DistillTransform:
    """Image -> (3, H, W) uint8 crop of the given size; drops the label."""

    def __init__(self, config: DistillAugment, size: tuple[int, int]) -> None:
        aspect = size[1] / size[0] if config.keep_aspect else 1.0
        low, high = config.crop_ratio
        self.crop = v2.RandomResizedCrop(
            size,
            scale=config.crop_scale,
            ratio=(low * aspect, high * aspect),
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        self.flip = v2.RandomHorizontalFlip(config.flip)
        self.erase = v2.RandomErasing(p=config.erase, value="random") if config.erase else None  # type: ignore[arg-type]
        self.rand_augment: Any = None
        if config.rand_augment:
            from timm.data.auto_augment import rand_augment_transform

            fill = {"translate_const": int(size[0] * 0.45), "img_mean": MEAN_COLOR}
            self.rand_augment = rand_augment_transform(config.rand_augment, fill)
            for operation in self.rand_augment.ops:
                if operation.name.startswith("Posterize"):
                    operation.aug_fn = _posterize

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        image = self.flip(self.crop(_view(sample.image)))
        if self.rand_augment is not None:
            image = self._augment(image)
        return {"image": self._erased(image).contiguous()}

    def drawn(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Top, left, height, width of a random crop of an image of ``size``, and whether it is flipped (0 or 1).

        The numbers are drawn as :meth:`__call__` draws them.
        """
        box = self.crop.make_params([torch.empty(3, *size, device="meta")])
        return box["top"], box["left"], box["height"], box["width"], int(torch.rand(1) < self.flip.p)

    def cut(self, image: Tensor, crop: Sequence[int]) -> Tensor:
        """Apply a crop from :meth:`drawn` to an image (3, H, W) uint8 on any device."""
        *box, flipped = crop
        crop_size, bicubic = list(self.crop.size), v2.InterpolationMode.BICUBIC
        found = v2.functional.resized_crop(image, *box, size=crop_size, interpolation=bicubic, antialias=True)
        return v2.functional.horizontal_flip(found) if flipped else found

    def _erased(self, image: Tensor) -> Tensor:
        """Random erasing; an image that is left alone is not normalised and stored anew, which takes time."""
        if self.erase is None or torch.rand(1) >= self.erase.p:  # the draw that RandomErasing itself begins with
            return image
        normalized = v2.functional.normalize(image.float() / 255.0, MEAN, STD)
        return _pixels(self.erase.transform(normalized, self.erase.make_params([normalized])))

    def _augment(self, image: Tensor) -> Tensor:
        """Seeds Python's and NumPy's generators, used by timm's RandAugment, from torch's, and restores them."""
        state, numpy_state = random.getstate(), np.random.get_state()
        seed = int(torch.randint(2**31, ()).item())
        random.seed(seed)
        np.random.seed(seed)
        try:
            picture = self.rand_augment(Image.fromarray(image.permute(1, 2, 0).numpy()))
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


class TaskTransform:
    """Image and label -> a random crop of both: (3, H, W) uint8 and (H, W) int64, 255 where unlabelled."""

    def __init__(self, config: TaskAugment, size: tuple[int, int]) -> None:
        self.config, self.size = config, size
        self.flip = v2.RandomHorizontalFlip(config.flip)

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        assert sample.label is not None, "the task stage checks that its domains are labelled"
        image = tv_tensors.Image(to_tensor(sample.image))
        label = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(sample.label))[None])
        image, label = self._scale(image, label)
        image, label = self._crop(image, label)
        image, label = self.flip(image, label)
        image, label = image.as_subclass(Tensor), label.as_subclass(Tensor)
        if self.config.photometric:
            image = distort(image, draw_distortion())
        image = self._pad(image, torch.tensor(MEAN_COLOR))
        return {"image": image, "label": self._pad(label, torch.tensor([IGNORE]))[0].long()}

    def _scale(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.config.scale
        factor = low + (high - low) * torch.rand(()).item()
        short, crop_short = min(image.shape[-2:]), min(self.size)
        ratio = factor * crop_short / short
        h, w = (max(1, round(side * ratio)) for side in image.shape[-2:])
        resized = v2.functional.resize(image, [h, w], interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
        return resized, v2.functional.resize(label, [h, w], interpolation=v2.InterpolationMode.NEAREST)

    def _crop(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        h, w = image.shape[-2:]
        top = left = 0
        for _ in range(self.config.tries):
            top = int(torch.randint(max(1, h - self.size[0] + 1), ()).item())
            left = int(torch.randint(max(1, w - self.size[1] + 1), ()).item())
            if _balanced(label[..., top : top + self.size[0], left : left + self.size[1]], self.config.max_share):
                break
        box = slice(top, top + self.size[0]), slice(left, left + self.size[1])
        return tv_tensors.Image(image[..., *box]), tv_tensors.Mask(label[..., *box])

    def _pad(self, pixels: Tensor, fill: Tensor) -> Tensor:
        """``pixels`` (C, h, w) padded to the crop's size at the right and at the bottom; ``fill`` has C values."""
        h, w = pixels.shape[-2:]
        if (h, w) == self.size:
            return pixels
        padded = fill.to(pixels.dtype)[:, None, None].repeat(1, *self.size)
        padded[..., :h, :w] = pixels
        return padded


def _balanced(label: Tensor, max_share: float) -> bool:
    """More than one class, each of them below ``max_share`` of the labelled pixels."""
    counts = torch.bincount(label.flatten().long(), minlength=IGNORE + 1)[:IGNORE]
    return int((counts > 0).sum()) > 1 and counts.max().item() < max_share * max(1, int(counts.sum()))


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's posterize, extended to 0 bits: black, as in Pillow before version 13, which refuses 0."""
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def _pixels(normalized: Tensor) -> Tensor:
    """(3, H, W) normalised floats as uint8."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return ((normalized * std + mean) * 255.0).round().clamp(0, 255).to(torch.uint8)


def to_tensor(image: Any) -> Tensor:
    """(H, W, 3) array -> (3, H, W) uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _view(image: Any) -> Tensor:
    """(H, W, 3) array -> (3, H, W) uint8 tensor of the same memory, which torchvision resizes fastest."""
    return torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)
