"""What the parts hand to each other. Legend: B batch, N tokens, C channels, K classes, H W pixels, h w grid."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

Batch = dict[str, Tensor]
"""One step's samples: ``image`` (B, 3, H, W) uint8 and, under the task's own keys, their targets."""

LossTerms = dict[str, Tensor]
"""Named scalar terms, already weighted; their sum is what is optimised."""


@dataclass(frozen=True)
class Features:
    """What an encoder says about a batch: patch tokens of the requested taps, in their order.

    The tap ``-1`` is the output of the last block *after* the final norm; any other tap is a raw block output.
    A plain ViT has one grid for all taps, a hierarchical network one per tap.
    """

    tokens: tuple[Float[Tensor, "b _n _c"], ...]
    cls: Float[Tensor, "b _c"] | None
    grid: tuple[int, int]  # (h, w) of the last tap given here
    grids: tuple[tuple[int, int], ...] = ()  # (h, w) of each tap, n = h * w; left out: all taps are on `grid`

    def __post_init__(self) -> None:
        if not self.grids:
            object.__setattr__(self, "grids", (self.grid,) * len(self.tokens))
        assert len(self.grids) == len(self.tokens), (len(self.grids), len(self.tokens))

    def part(self, *, rows: slice = slice(None), taps: slice = slice(None)) -> Features:
        """The features of some images (``rows``) and of some taps."""
        grids = self.grids[taps]
        return Features(
            tokens=tuple(tokens[rows] for tokens in self.tokens[taps]),
            cls=None if self.cls is None else self.cls[rows],
            grid=grids[-1] if grids else self.grid,
            grids=grids,
        )


@dataclass(frozen=True)
class FeatureSpec:
    """Widths of an encoder's taps (one per requested tap) and of its CLS token (None: it has none)."""

    channels: tuple[int, ...]
    cls_channels: int | None
    depth: int  # number of blocks: taps are 0-based block indices below it


@dataclass(frozen=True)
class Needs:
    """What a method wants to be given; the stage supplies it."""

    taps: tuple[int, ...] = (-1,)
    plain: bool = True  # the student's view of the whole image; without it the student runs on masked samples alone
    masked: bool = False  # a student view in which some patch tokens are replaced by the mask token
    logits: bool = False  # class logits of both networks' heads, at one size; a task stage alone has them


@dataclass(frozen=True)
class Mask:
    """Which student tokens are hidden. Samples that are not listed stay whole and are not run a second time."""

    samples: Tensor  # (M,) int64 indices into the batch of the masked samples
    tokens: Tensor  # (M, N) bool, True = hidden; N cells of the student's final grid, that of the tap -1


@dataclass(frozen=True)
class Views:
    """What a method gets for one network.

    ``masked`` holds only the M masked samples (``mask.samples`` of the batch); the plain tokens serve the others.
    Where a method does not need the plain view and nothing else made the stage run it, ``plain`` is empty: it has a
    grid, but no taps and no CLS token.
    ``logits`` are of the plain images, before any upsampling (see ``heads.base.Head.logits_of``).
    """

    plain: Features
    masked: Features | None = None
    mask: Mask | None = None
    logits: Float[Tensor, "b k _h _w"] | None = None
