"""Types passed between parts. Legend: B batch, N tokens, C channels, K classes, H W pixels, h w grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Batch = dict[str, Tensor]
"""One step's samples: ``image`` (B, 3, H, W) uint8 and, under the task's own keys, their targets."""

LossTerms = dict[str, Tensor]
"""Named scalar terms, already weighted; their sum is optimised."""


@dataclass(frozen=True)
class Features:
    """Output of an encoder for a batch: patch tokens of the requested taps, in their order.

    The tap ``-1`` is the output of the last block *after* the final norm; any other tap is a raw block output.
    A plain ViT has one grid for all taps, a hierarchical network one per tap.
    """

    tokens: tuple[Float[Tensor, "b _n _c"], ...]
    cls: Float[Tensor, "b _c"] | None
    grid: tuple[int, int]  # (h, w) of the last tap
    grids: tuple[tuple[int, int], ...] = ()  # (h, w) of each tap, n = h * w; empty: all taps are on `grid`

    def __post_init__(self) -> None:
        if not self.grids:
            object.__setattr__(self, "grids", (self.grid,) * len(self.tokens))
        assert len(self.grids) == len(self.tokens), (len(self.grids), len(self.tokens))

    def part(self, *, rows: slice | list[int] = slice(None), taps: slice = slice(None)) -> Features:
        """The features of the given images (``rows``) and taps."""
        grids = self.grids[taps]
        return Features(
            tokens=tuple(tokens[rows] for tokens in self.tokens[taps]),
            cls=None if self.cls is None else self.cls[rows],
            grid=grids[-1] if grids else self.grid,
            grids=grids,
        )

    def blank(self, count: int = 1) -> Features:
        """Zeros of the same shapes for ``count`` images, without a CLS token."""
        tokens = tuple(torch.zeros(count, *tokens.shape[1:]) for tokens in self.tokens)
        return Features(tokens=tokens, cls=None, grid=self.grid, grids=self.grids)


@dataclass(frozen=True)
class FeatureSpec:
    """Widths of an encoder's requested taps and of its CLS token (None: it has none)."""

    channels: tuple[int, ...]
    cls_channels: int | None
    depth: int  # number of blocks: taps are 0-based block indices below it


@dataclass(frozen=True)
class Needs:
    """The inputs of a method, which the stage supplies."""

    taps: tuple[int, ...] = (-1,)  # of the student
    teacher_taps: tuple[int, ...] | None = None  # None: the same blocks as the student's
    plain: bool = True  # the student's features of whole images; False: the student runs on masked samples only
    masked: bool = False  # student features with some patch tokens replaced by the mask token
    logits: bool = False  # class logits of both heads, at one size; only in task stages

    @property
    def of_teacher(self) -> tuple[int, ...]:
        """The teacher's taps."""
        return self.taps if self.teacher_taps is None else self.teacher_taps


@dataclass(frozen=True)
class Mask:
    """Which student tokens are hidden. Samples that are not listed are not masked and not run a second time."""

    samples: Tensor  # (M,) int64 indices into the batch of the masked samples
    tokens: Tensor  # (M, N) bool, True = hidden; N cells of the student's final grid, that of the tap -1


@dataclass(frozen=True)
class Views:
    """A method's inputs from one network.

    ``masked`` holds only the M masked samples (``mask.samples`` of the batch); use the plain tokens for the others.
    If nothing needs the plain view, ``plain`` has a grid but no taps and no CLS token.
    ``logits`` are those of the plain images, before any upsampling (see ``heads.base.Head.logits_of``).
    """

    plain: Features
    masked: Features | None = None
    mask: Mask | None = None
    logits: Float[Tensor, "b k _h _w"] | None = None
