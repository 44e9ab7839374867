"""The interface of heads."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from segdistill.config import Config
from segdistill.ops import resize
from segdistill.types import LossTerms
from segdistill.weights import LoadReport

Maps = tuple[Float[Tensor, "b _c _h _w"], ...]
"""One map per tap of the encoder, shallow to deep: all on the patch grid (plain ViT), or each on its own grid."""


class HeadConfig(Config):
    """Settings shared by all heads."""

    weights: str | None = Field(
        None,
        description="a task checkpoint with decode_head.* (.pth, .safetensors), a head.safetensors or a task "
        "stage's folder; None: fresh",
    )


class Head(nn.Module):
    """Maps of an encoder's taps -> a loss on labels, and class scores per pixel.

    Built as ``Head(config, channels, strides, num_classes)``: ``channels`` and ``strides`` (pixels per cell) of the
    taps. :meth:`decode` is the forward pass; :meth:`loss_of`, :meth:`scores_of` and :meth:`logits_of` read its output.
    ``scores_are_logits``: whether the softmax of the scores gives class probabilities. ``has_logits``: whether it has
    class logits for methods that compare them; heads for detection have their own loss and neither scores nor logits.
    """

    tasks: tuple[str, ...] = ("semantic",)  # keys of TASKS
    scores_are_logits: bool = True
    has_logits: bool = True
    undecayed: tuple[str, ...] = ()  # prefixes of parameters without weight decay, besides norms
    strides: tuple[int, ...]
    num_classes: int
    loaded: LoadReport | None = None  # how the keys of the weight file were used

    @staticmethod
    def taps_of(taps: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
        """The taps that the head reads of an encoder whose record has ``taps`` with these ``strides``: all of them."""
        del strides
        return taps

    @staticmethod
    def check_batch(images: int) -> None:
        """Raise a :class:`UserError` if the head cannot train on a step of that many images, of all processes."""
        del images

    def readers(self) -> list[nn.Conv2d]:
        """Its first layers, if these are 1x1 convolutions on the taps' maps, one per level; else none."""
        return []

    def decode(self, maps: Maps) -> Any:
        """The network's output for the maps, in the head's own format."""
        raise NotImplementedError

    def loss_of(self, decoded: Any, labels: Int[Tensor, "_b h w"]) -> LossTerms:
        """Loss terms against class indices (int64, 255: ignored); their sum is optimised.

        The labels belong to the first decoded images; any further images have none.
        """
        raise NotImplementedError

    def scores_of(self, decoded: Any, size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """Class scores for images of ``size`` (h, w) pixels; differentiable. The argmax is the prediction.

        By default the logits, resized.
        """
        return resize(self.logits_of(decoded), size)

    def logits_of(self, decoded: Any) -> Float[Tensor, "b k _h _w"]:
        """Class logits at the head's own resolution; their softmax gives per-cell class probabilities."""
        raise NotImplementedError

    def loss(self, maps: Maps, labels: Int[Tensor, "b h w"]) -> LossTerms:
        """:meth:`loss_of` the decoded maps."""
        return self.loss_of(self.decode(maps), labels)

    def scores(self, maps: Maps, size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """:meth:`scores_of` the decoded maps."""
        return self.scores_of(self.decode(maps), size)

    def forward(self, maps: Maps, size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """:meth:`scores`."""
        return self.scores(maps, size)


def first(rows: Tensor, count: int) -> Tensor:
    """The first ``count`` rows; the tensor itself if it has no more, which saves copying its gradient."""
    return rows if len(rows) == count else rows[:count]
