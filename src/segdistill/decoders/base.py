"""What every decoder offers."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from segdistill.types import LossTerms

Maps = tuple[Float[Tensor, "b _c _h _w"], ...]
"""One map per tap of the encoder, shallow to deep: of a plain ViT all on the patch grid, else each on its own."""


class Decoder(nn.Module):
    """Maps of an encoder's taps -> a loss on labels, and class scores per pixel.

    Built as ``Decoder(config, channels, strides, num_classes)``: ``channels`` and ``strides`` (pixels per cell) of the
    taps.
    """

    strides: tuple[int, ...]
    num_classes: int

    def loss(self, maps: Maps, labels: Int[Tensor, "b h w"]) -> LossTerms:
        """Loss terms against class indices (int64, 255 where there is none); their sum is what is optimised."""
        raise NotImplementedError

    def scores(self, maps: Maps, size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """Class scores for images of ``size`` (h, w) pixels; differentiable. The argmax is the prediction."""
        raise NotImplementedError

    def forward(self, maps: Maps, size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """:meth:`scores`."""
        return self.scores(maps, size)
