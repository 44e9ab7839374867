"""What every head offers."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from segdistill.config import Config
from segdistill.types import LossTerms
from segdistill.weights import LoadReport

Maps = tuple[Float[Tensor, "b _c _h _w"], ...]
"""One map per tap of the encoder, shallow to deep: of a plain ViT all on the patch grid, else each on its own."""


class HeadConfig(Config):
    """What the settings of all heads have."""

    weights: str | None = Field(
        None,
        description="a task checkpoint with decode_head.* (.pth, .safetensors), a head.safetensors or a task "
        "stage's folder; None: fresh",
    )


class Head(nn.Module):
    """Maps of an encoder's taps -> a loss on labels, and class scores per pixel.

    Built as ``Head(config, channels, strides, num_classes)``: ``channels`` and ``strides`` (pixels per cell) of the
    taps. A head owns :meth:`decode`, the one pass of its network, and what is read from its outcome:
    :meth:`loss_of`, :meth:`scores_of` and :meth:`logits_of`. ``scores_are_logits``: whether the softmax of the scores
    is the probability of a class.
    """

    task: str = "semantic"  # of TASKS: what its outcome and its loss are for
    scores_are_logits: bool = True
    undecayed: tuple[str, ...] = ()  # prefixes of parameters without weight decay, beside norms
    strides: tuple[int, ...]
    num_classes: int
    loaded: LoadReport | None = None  # what became of the keys of the file that filled it

    def decode(self, maps: Maps) -> Any:
        """What the network makes of the maps, in the head's own form."""
        raise NotImplementedError

    def loss_of(self, decoded: Any, labels: Int[Tensor, "_b h w"]) -> LossTerms:
        """Loss terms against class indices (int64, 255 where there is none); their sum is what is optimised.

        The labels are those of the first decoded images; any further ones have none.
        """
        raise NotImplementedError

    def scores_of(self, decoded: Any, size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """Class scores for images of ``size`` (h, w) pixels; differentiable. The argmax is the prediction."""
        raise NotImplementedError

    def logits_of(self, decoded: Any) -> Float[Tensor, "b k _h _w"]:
        """Class logits at the head's own resolution: their softmax over the classes is its word on a cell."""
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
    """The first ``count`` rows; the tensor itself where these are all, since a slice's gradient is a copy."""
    return rows if len(rows) == count else rows[:count]
