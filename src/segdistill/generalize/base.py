"""The interface of generalisation baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from segdistill.types import Features, LossTerms

Loss = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [0, 1] -> the task loss against the batch's labels, network in evaluation mode."""


@dataclass(frozen=True)
class Wants:
    """What the stage supplies besides images and labels."""

    stem: bool = False  # it alters the encoder's early map
    reference: bool = False  # features of the encoder as it was when the stage began, frozen
    styles: bool = False  # unlabelled style images, as many as labelled ones
    logits: bool = False  # class logits of the head


@dataclass(frozen=True)
class Facts:
    """The classes, and the channels of the head's taps and of the early map (None: nothing alters it)."""

    names: tuple[str, ...]
    channels: tuple[int, ...]
    stem_channels: int | None = None


@dataclass(frozen=True)
class Seen:
    """One step's results. Rows of ``features`` and ``logits``: the images, then each further view of all of them."""

    labels: Int[Tensor, "b h w"]  # 255: ignored
    features: Features  # the head's taps
    reference: Features | None = None  # of the images, without further views
    logits: Float[Tensor, "n k _h _w"] | None = None  # before upsampling
    styles: Features | None = None  # of the style images, by the trained encoder
    progress: float = 0.0  # share of the stage's steps that are done


class Generalizer(nn.Module):
    """A baseline with ``Config``, built as ``Generalizer(config, facts)``; it changes views, features or the loss.

    ``views``: views of every image that the head learns from, the image itself first. A further view comes from
    :meth:`restyle` (an image) or, with ``Wants.stem``, from :meth:`alter`. ``passes``: forward and backward passes per
    image, for cost estimates. Its parameters are not trained; its buffers are saved in checkpoints.
    """

    Config: ClassVar[Any]
    wants: ClassVar[Wants] = Wants()
    views: int = 1
    passes: int = 1

    @classmethod
    def wants_for(cls, config: Any) -> Wants:
        """What it needs with these settings; by default ``wants``."""
        del config
        return cls.wants

    def weights(self) -> tuple[float, ...] | None:
        """Weight of each view's task loss; None: one loss over all views, as over a larger batch."""
        return None

    def restyle(
        self, images: Float[Tensor, "b 3 h w"], styles: Float[Tensor, "b 3 h w"] | None, loss: Loss
    ) -> Float[Tensor, "b 3 h w"] | None:
        """A second view of the images in [0, 1], constant; None: it makes none."""
        del images, styles, loss

    def alter(self, early: Float[Tensor, "b c h w"]) -> Float[Tensor, "_n c h w"]:
        """The early map that the encoder goes on with: the given rows, then those of the further view."""
        return early

    def due(self, step: int, steps: int) -> bool:
        """Whether :meth:`renew` must be called before this step."""
        del step, steps
        return False

    def style_of(self, early: Float[Tensor, "b c h w"]) -> Float[Tensor, "b _d"]:
        """What :meth:`renew` reads of each source image's early map."""
        raise NotImplementedError

    def renew(self, styles: Float[Tensor, "n d"]) -> None:
        """Update the buffers from the :meth:`style_of` all source images; the same in every process."""
        raise NotImplementedError

    def least(self) -> int:
        """Fewest styles that :meth:`renew` accepts."""
        return 0

    def terms(self, seen: Seen) -> LossTerms:
        """Weighted loss terms besides the task's."""
        del seen
        return {}
