"""Augmentation of images with objects, drawn from torch's global generator. Legend: H W pixels, L layers, N objects.

Works on the layers of object ids and only inside the crop: the cost grows with the crop's pixels and the layers, not
with the number of objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from torch import Tensor

from segdistill.config import Config, Range
from segdistill.data.dataset import Sample
from segdistill.data.photometric import distort, draw_distortion
from segdistill.data.targets import object_targets
from segdistill.data.transforms import MEAN_COLOR, to_tensor
from segdistill.objects import Mask, Objects


class ObjectAugment(Config):
    """Augmentation of instance stages: random scale, crop, flip and the distortion of
    :mod:`segdistill.data.photometric`. Images are padded with the mean colour at the right and at the bottom.
    """

    scale: Range = Field((0.5, 2.0), description="range of the short side relative to the crop's")
    flip: float = Field(0.5, ge=0, le=1)
    photometric: bool = True


@dataclass(frozen=True)
class Window:
    """A crop in the resized image, all (height, width) in pixels: ``source`` the image as read, ``resized`` its size
    after the resize, ``corner`` (top, left) and ``size`` the part that is cut out.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The crop of (H, W, 3), bilinear with antialiasing, as if the whole image had been resized.

        Only the source pixels below the crop and the filter's support around them are read.
        """
        low, high, box = [], [], []
        for side, resized, start, length in zip(self.source, self.resized, self.corner, self.size, strict=True):
            ratio = side / resized
            support = int(max(1.0, ratio)) + 2
            low.append(max(0, int(start * ratio) - support))
            high.append(min(side, int((start + length) * ratio) + 1 + support))
            box.append((start * ratio - low[-1], min((start + length) * ratio, side) - low[-1]))
        (top, left), (bottom, right), (rows, columns) = low, high, box
        part = Image.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
        bounds = (columns[0], rows[0], columns[1], rows[1])
        return np.array(part.resize(self.size[::-1], Image.Resampling.BILINEAR, box=bounds))

    def nearest(self, values: NDArray[Any]) -> NDArray[Any]:
        """The crop of (..., H, W): at each pixel the value of the source pixel below its centre."""
        rows, columns = (
            ((2 * np.arange(start, start + length) + 1) * side // (2 * resized))
            for side, resized, start, length in zip(self.source, self.resized, self.corner, self.size, strict=True)
        )
        return values[..., rows[:, None], columns]


class ObjectTransform:
    """Sample with objects -> a random crop: ``image`` (3, H, W) uint8 and the keys of
    :func:`segdistill.data.targets.object_targets`.

    Objects and layers without pixels in the crop are removed. Padding is void.
    """

    def __init__(self, config: ObjectAugment, size: tuple[int, int]) -> None:
        self.config, self.size = config, size

    def __call__(self, sample: Sample) -> dict[str, Tensor]:
        assert sample.objects is not None, "the stage checks that its domains have objects"
        window = self._window(sample.objects.size)
        image = window.image(sample.image)
        objects = cropped(sample.objects, window)
        ids, void = objects.ids, objects.void
        if torch.rand(()).item() < self.config.flip:
            image, ids = image[:, ::-1], ids[..., ::-1]
            void = None if void is None else void[:, ::-1]
        pixels = finished(image, self.size, distorted=self.config.photometric)
        return {"image": pixels} | object_targets(self._padded(Objects(ids, objects.classes, objects.crowd, void)))

    def _window(self, source: tuple[int, int]) -> Window:
        low, high = self.config.scale
        factor = low + (high - low) * torch.rand(()).item()
        return random_window(source, factor * min(self.size) / min(source), self.size)

    def _padded(self, objects: Objects) -> Objects:
        """Without object and void beyond the image."""
        h, w = objects.size
        ids = np.zeros((len(objects.ids), *self.size), np.int32)
        ids[:, :h, :w] = objects.ids
        void = np.ones(self.size, bool)
        void[:h, :w] = False if objects.void is None else objects.void
        return Objects(ids, objects.classes, objects.crowd, void)


def random_window(source: tuple[int, int], ratio: float, size: tuple[int, int]) -> Window:
    """A random window of at most ``size`` in the image of size ``source``, resized by ``ratio``."""
    h, w = (max(1, round(side * ratio)) for side in source)
    top = int(torch.randint(max(1, h - size[0] + 1), ()).item())
    left = int(torch.randint(max(1, w - size[1] + 1), ()).item())
    return Window(source, (h, w), (top, left), (min(h, size[0]), min(w, size[1])))


def finished(image: NDArray[np.uint8], size: tuple[int, int], *, distorted: bool) -> Tensor:
    """The crop (h, w, 3) as (3, H, W) of ``size``: distorted if asked for, then padded with the mean colour."""
    pixels = to_tensor(image)
    if distorted:
        pixels = distort(pixels, draw_distortion())
    padded = torch.tensor(MEAN_COLOR, dtype=torch.uint8)[:, None, None].repeat(1, *size)
    padded[:, : image.shape[0], : image.shape[1]] = pixels
    return padded


def cropped(objects: Objects, window: Window) -> Objects:
    """The objects with pixels in ``window``, numbered in their order, in as many layers as they need (at least one)."""
    void: Mask | None = None if objects.void is None else window.nearest(objects.void)
    return compact(Objects(window.nearest(objects.ids), objects.classes, objects.crowd, void))


def compact(objects: Objects) -> Objects:
    """Without the objects that have no pixels, and without empty layers but one."""
    kept = objects.areas() > 0
    numbers = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)
    filled = np.flatnonzero(objects.ids.any(axis=(1, 2)))
    layers = filled if len(filled) else [0]
    return Objects(numbers[objects.ids[layers]], objects.classes[kept], objects.crowd[kept], objects.void)
