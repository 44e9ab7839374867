"""Semantic segmentation: class scores, class maps, sliding windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from segdistill.config import Config, Size, UserError
from segdistill.criteria import presence_loss
from segdistill.models.bands import Strip, decide, enlarge
from segdistill.models.model import Model, need_floats
from segdistill.types import Batch, LossTerms


class Window(Config):
    """Sliding-window inference (spec A.11): ``size`` and ``stride`` in pixels (h, w), ``batch`` windows at a time."""

    size: Size = (512, 512)
    stride: Size = (341, 341)
    batch: int = Field(4, ge=1, le=2**16)

    @model_validator(mode="after")
    def _covers(self) -> Window:
        if any(step > side for side, step in zip(self.size, self.stride, strict=True)):
            raise ValueError(f"stride {self.stride} must be at least 1 and at most the size {self.size}")
        return self


def positions(length: int, size: int, stride: int) -> list[int]:
    """Start positions of the windows along one side; the last window is shifted back to end at the border."""
    count = max(length - size + stride - 1, 0) // stride + 1
    return [min(i * stride, max(length - size, 0)) for i in range(count)]


class Segmenter(Model):
    """A segmentation model with ``num_classes`` classes, whose head reads the encoder's ``taps``.

    Images are RGB in [0, 1], (B, 3, H, W), of any size; what is predicted for padding is cropped.
    """

    def loss_of(self, decoded: Any, batch: Batch) -> LossTerms:
        """The head's loss terms against ``batch["label"]``: class indices, 255 = ignored."""
        return self.head.loss_of(decoded, batch["label"])

    def presence_loss(self, logits: Float[Tensor, "b k"], batch: Batch) -> Tensor:
        """See :func:`segdistill.criteria.presence_loss`."""
        return presence_loss(logits, batch["label"])

    def scores(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """Class scores per pixel in one pass over the whole image; differentiable."""
        height, width = images.shape[-2:]
        decoded, size = self.decoded(images)
        return self.head.scores_of(decoded, size)[..., :height, :width]

    def window_scores(self, images: Float[Tensor, "b 3 h w"], window: Window) -> Float[Tensor, "b k h w"]:
        """Scores averaged over overlapping windows; float32.

        An image smaller than the window is a single window of its own size.
        """
        return torch.cat([band.clone() for band in self.window_bands(images, window)], dim=2)

    def window_bands(self, images: Float[Tensor, "b 3 h w"], window: Window) -> Iterator[Tensor]:
        """:meth:`window_scores` in bands (B, K, rows, w) from top to bottom, each yielded once it is complete.

        A band is valid until the next one is requested: its memory is used again. Windows of all images are batched
        together. Held are the sums of one row of windows, B x K x V x w float32 values for windows V rows high.
        """
        batch, _, height, width = images.shape
        rows = positions(height, window.size[0], window.stride[0])
        columns = positions(width, window.size[1], window.stride[1])
        high, wide = min(height, window.size[0]), min(width, window.size[1])
        places = [(y, i, x) for y in rows for i in range(batch) for x in columns]
        down, across = (
            _covering(starts, size, length).to(images.device)
            for starts, size, length in ((rows, high, height), (columns, wide, width))
        )
        total = torch.zeros(batch, self.num_classes, high, width, device=images.device)  # rows from `top` on
        for start in range(0, len(places), window.batch):
            chunk = places[start : start + window.batch]
            scores = self.scores(torch.stack([images[i, :, y : y + high, x : x + wide] for y, i, x in chunk]))
            for number, (top, i, x) in enumerate(chunk):
                total[i, :, :, x : x + wide] += scores[number].float()
                ahead = places[start + number + 1 : start + number + 2]
                ready = ahead[0][0] if ahead else height
                if ready > top:
                    yield total[:, :, : ready - top].div_(torch.outer(down[top:ready], across))
                    _move_up(total, ready - top)
            del scores

    @torch.no_grad()
    def strips(
        self, images: Num[Tensor, "b 3 h w"], window: Window | None = None, size: tuple[int, int] | None = None
    ) -> Iterator[Strip]:
        """:meth:`predict` with confidences, a few rows of one image at a time (:func:`.bands.enlarge`)."""
        need_floats(images)
        height, width = images.shape[-2:]
        bands = [self.scores(images)] if window is None else self.window_bands(images, window)
        for image, top, scores in enlarge(bands, (height, width), size or (height, width)):
            yield Strip(image, top, *decide(scores, logits=self.head.scores_are_logits))

    def decided(
        self, images: Num[Tensor, "b 3 h w"], window: Window | None, size: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Classes and confidences (B, H, W) at ``size``, collected from :meth:`strips`."""
        classes = np.empty((len(images), *size), np.uint8)
        confidence = np.empty(classes.shape, np.float32)
        for strip in self.strips(images, window, size):
            rows = slice(strip.top, strip.top + len(strip.classes))
            classes[strip.image, rows] = strip.classes.cpu().numpy()
            confidence[strip.image, rows] = strip.confidence.float().cpu().numpy()
        return classes, confidence

    def predict(
        self, images: Num[Tensor, "b 3 h w"], window: Window | None = None, size: tuple[int, int] | None = None
    ) -> Int[Tensor, "b _p _q"]:
        """Class map (int64) at the images' size, or at ``size``: the *scores* are upsampled before the argmax.

        Scores are enlarged a few rows at a time and, with a window, never held for a whole image. The mode of the model
        is not changed; call ``eval()`` first.
        """
        height, width = size or images.shape[-2:]
        classes = torch.empty(len(images), height, width, dtype=torch.int64, device=images.device)
        for strip in self.strips(images, window, size):
            classes[strip.image, strip.top : strip.top + len(strip.classes)] = strip.classes
        return classes


def as_segmenter(model: Model, what: str) -> Segmenter:
    """``model`` if it predicts class maps, else a :class:`UserError` saying that ``what`` needs them."""
    if not isinstance(model, Segmenter):
        raise UserError(f"{what} needs a model that predicts class maps (task: semantic); this one finds objects")
    return model


def _move_up(total: Float[Tensor, "b k v w"], rows: int) -> None:
    """Drop the first ``rows``, move the others up in place and fill with zeros; copies never overlap."""
    kept = total.shape[2] - rows
    for first in range(0, kept, rows):
        last = min(first + rows, kept)
        total[:, :, first:last] = total[:, :, first + rows : last + rows]
    total[:, :, kept:] = 0


def _covering(starts: list[int], size: int, length: int) -> Float[Tensor, " n"]:
    """How many windows of ``size`` cover each of ``length`` positions."""
    count = torch.zeros(length)
    for start in starts:
        count[start : start + size] += 1
    return count
