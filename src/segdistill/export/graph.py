"""The network that is exported: 8-bit pixels in, classes and confidence or objects out.

``image`` (N, H, W, 3) uint8 RGB, as cameras and image libraries hold it -> ``classes`` (N, H, W) uint8 and
``confidence`` (N, H, W) float32 of the same size. Division by 255, resizing, normalisation, padding, windows and the
enlarging of the scores are inside. Of an instance model instead ``scores`` (N, Q, K) and ``masks`` (N, Q, h, w), see
:class:`ObjectGraph`; of a detector boxes, see :class:`.boxes.BoxGraph`. Two forms:

* ``size`` None: every image is seen at its own size (padded to whole cells by repeating the border, as the
  :class:`~segdistill.segmenter.Segmenter` does). Height and width are free where the network allows it.
* ``size`` (h, w): every image is resized to it, whatever its aspect, and seen at once or through ``window``. Height
  and width of the input are free, those of the network are not.

What no exporter or runtime takes is computed otherwise, to the same values: positions are resampled as in
:mod:`segdistill.weights.resample` by a product with a matrix of cubic weights, ``grid_sample`` is four gathers, and
DINOv3's and Mask2Former's coordinates of cells come from sizes that stay symbols, and DPT's fusion always resizes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from timm.layers import pos_embed_sincos
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from segdistill.config import UserError
from segdistill.encoders import Encoder
from segdistill.heads.base import Maps
from segdistill.models import HRDA, Model
from segdistill.models.segmenter import Window, positions
from segdistill.ops import tokens_to_map
from segdistill.weights.resample import OFFSET

CUBIC = -0.75  # torch's cubic convolution coefficient
SAM_POSITIONS = "segdistill.encoders.walks.resample_abs_pos_embed_nhwc"
SAM_RELATIVE = "timm.models.vision_transformer_sam.get_rel_pos"
ROTATIONS = "timm.layers.pos_embed_sincos._build_grid"
REFERENCE = (
    "transformers.models.mask2former.modeling_mask2former.Mask2FormerPixelDecoderEncoderOnly.get_reference_points"
)
PARTS = "segdistill.heads.mask2former_parts"
RESAMPLED = ("timm.models.vision_transformer.resample_abs_pos_embed", "timm.models.eva.resample_abs_pos_embed")


class Graph(nn.Module):
    """A segmenter as it is exported; see the module's docstring."""

    smallest: ClassVar[int] = 64
    """Least pixels of a side that is free: two cells of the coarsest map."""

    def __init__(self, segmenter: Model, size: tuple[int, int] | None = None, window: Window | None = None) -> None:
        super().__init__()
        if isinstance(segmenter, HRDA):
            raise UserError("a network with two scales cannot be exported: train a daformer head without two_scale")
        self.encoder: Encoder = segmenter.encoder  # type: ignore[assignment]  # of a recipe's model
        self.head, self.taps = segmenter.head, segmenter.taps
        self.size, self.window = size, window
        self.logits = segmenter.head.scores_are_logits
        self.eval().requires_grad_(False)

    def forward(self, image: UInt8[Tensor, "n h w 3"]) -> tuple[UInt8[Tensor, "n h w"], Float[Tensor, "n h w"]]:
        """Classes and confidence of every pixel."""
        height, width = image.shape[1], image.shape[2]
        seen = image.permute(0, 3, 1, 2).float() / 255.0
        if self.size is not None:
            seen = F.interpolate(seen, size=self.size, mode="bilinear", align_corners=False)
        scores = self._scores(seen) if self.window is None else self._windows(seen, self.window)
        if self.size is not None:
            scores = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
        best, classes = scores.max(dim=1)
        if self.logits:
            confidence = 1 / (scores - best.unsqueeze(1)).exp().sum(dim=1)
        else:
            confidence = best / scores.sum(dim=1).clamp(min=torch.finfo(scores.dtype).tiny)
        return classes.to(torch.uint8), confidence

    def _scores(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k h w"]:
        """Scores of whole images, as ``Segmenter.scores``."""
        height, width = images.shape[2], images.shape[3]
        maps, size = self._maps(images)
        scores = self.head.scores(maps, size)
        if self.size is None:
            return _first(_first(scores, 2, height), 3, width)
        return scores[:, :, :height, :width]

    def _maps(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Maps, Any]:
        """The maps of the head's taps for padded images, and the padded size."""
        height, width, cell = images.shape[2], images.shape[3], self.encoder.patch
        if self.size is None:
            high, wide = (height + cell - 1) // cell * cell, (width + cell - 1) // cell * cell
            padded = _repeat_border(_repeat_border(images, 2, height, high), 3, width, wide)
        else:
            high, wide = self.encoder.padded(height, width)
            padded = F.pad(images, (0, wide - width, 0, high - height), mode="replicate")
        encoder: Any = self.encoder
        normalised = encoder.normalised(padded)
        tapped, _ = encoder.walk(encoder.backbone, normalised, self.taps, encoder.mask_token, None)
        return tuple(tokens_to_map(*tapped[tap]) for tap in self.taps), (high, wide)

    def _windows(self, images: Float[Tensor, "b 3 h w"], window: Window) -> Float[Tensor, "b k h w"]:
        """As ``Segmenter.window_scores``, the windows of an image one after the other."""
        height, width = images.shape[2], images.shape[3]
        high, wide = min(height, window.size[0]), min(width, window.size[1])
        total, seen = torch.zeros(1), torch.zeros(height, width)
        for y in positions(height, window.size[0], window.stride[0]):
            for x in positions(width, window.size[1], window.stride[1]):
                scores = self._scores(images[:, :, y : y + high, x : x + wide])
                total = total + F.pad(scores, (x, width - x - wide, y, height - y - high))
                seen[y : y + high, x : x + wide] += 1
        return total / seen


class ObjectGraph(Graph):
    """An instance model as it is exported.

    ``scores`` (N, Q, K) float32: class probabilities of every query, without "no object". ``masks`` (N, Q, h, w)
    float32: mask logits at the head's own resolution; they cover the padded image, whose sides are those of the
    network's input rounded up to whole cells. To get a mask: enlarge it bilinearly to the padded size, take its first
    rows and columns (the input's), enlarge these to the image's size if the network resizes, and take values above 0.
    A detection's score is its class probability times the mean of the sigmoid inside the mask.
    """

    def forward(self, image: UInt8[Tensor, "n h w 3"]) -> tuple[Float[Tensor, "n q k"], Float[Tensor, "n q _h _w"]]:  # type: ignore[override]
        """Class probabilities and mask logits of every query."""
        seen = image.permute(0, 3, 1, 2).float() / 255.0
        if self.size is not None:
            seen = F.interpolate(seen, size=self.size, mode="bilinear", align_corners=False)
        maps, _ = self._maps(seen)
        classes, masks = self.head.decode(maps)
        return classes[-1].softmax(dim=-1)[..., :-1], masks[-1]


def _repeat_border(images: Tensor, dim: int, length: int, to: int) -> Tensor:
    """Pad one side at its end to ``to`` by repeating the border; a gather, which takes sizes that are not known yet."""
    places = torch.arange(to, device=images.device).clamp(max=length - 1)
    return images.index_select(dim, places)


def _first(scores: Tensor, dim: int, length: int) -> Tensor:
    """The first ``length`` places of one dimension; a slice would make torch ask whether it is all of them."""
    return scores.index_select(dim, torch.arange(length, device=scores.device))


@contextmanager
def exportable(encoder: Encoder) -> Iterator[None]:
    """Inside, positions, coordinates of cells and sampled grids are computed as the module's docstring says."""

    def resampled(posemb: Tensor, new_size: Any, old_size: Any = None, **settings: Any) -> Tensor:
        old = (old_size[0], old_size[1]) if old_size else encoder.grid
        prefix = settings.get("num_prefix_tokens", 1)
        return cubic_positions(posemb, old, (new_size[0], new_size[1]), prefix=prefix)

    with ExitStack() as stack:
        if encoder.config.resample != "timm":
            for name in RESAMPLED:
                stack.enter_context(patch(name, resampled))
            stack.enter_context(patch(SAM_POSITIONS, cubic_map))
        rotations = partial(cell_grid, timms=pos_embed_sincos._build_grid)
        stack.enter_context(patch(ROTATIONS, rotations))
        stack.enter_context(patch(SAM_RELATIVE, relative_positions))
        if "transformers.models.mask2former.modeling_mask2former" in sys.modules:  # it takes seconds to import
            stack.enter_context(patch(REFERENCE, staticmethod(reference_points)))
        if PARTS in sys.modules:
            stack.enter_context(patch(f"{PARTS}.same_size", resized))
        stack.enter_context(FreeSizes())
        yield


class FreeSizes(TorchFunctionMode):
    """Inside, ``grid_sample`` is :func:`gathered_grid_sample`, and sizes that become numbers of tensors are symbols."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace bilinear sampling with zeros outside, and tensors made of symbols; every other operation stays."""
        named = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _symbolic(args[0]):
            return numbers(args[0]).to(named.get("dtype") or torch.int64)
        if func is F.scaled_dot_product_attention and args[0].ndim == 3:  # the exporter knows heads only
            masks = {name: each.unsqueeze(1) if isinstance(each, Tensor) else each for name, each in named.items()}
            return func(*(each.unsqueeze(1) for each in args), **masks).squeeze(1)
        if func is not F.grid_sample:
            return func(*args, **named)
        assert named.get("mode", "bilinear") == "bilinear", named
        assert named.get("padding_mode", "zeros") == "zeros", named
        assert not named.get("align_corners"), named
        return gathered_grid_sample(*args[:2])


def _symbolic(values: Any) -> bool:
    """Whether a number, or one in nested lists, is a size that is not known yet."""
    if isinstance(values, list | tuple):
        return any(map(_symbolic, values))
    return isinstance(values, torch.SymInt)


def numbers(values: Any) -> Tensor:
    """Sizes, or nested lists of them, as a tensor of the graph."""
    if isinstance(values, list | tuple):
        return torch.stack([numbers(each) for each in values])
    return torch.arange(1).add(values)[0]


def cell_grid(feat_shape: Any, *args: Any, timms: Callable[..., Tensor], **settings: Any) -> Tensor:
    """DINOv3's coordinates of cells, -1 to 1 (H, W, 2), as timm makes them, for sizes that may be symbols."""
    plain = settings.get("normalize_coords", "separate") == "separate" and settings.get("grid_indexing", "ij") == "ij"
    if settings.get("grid_type") != "centered" or not plain:
        return timms(feat_shape, *args, **settings)
    offset = 0.5 + settings.get("grid_offset", 0.0)
    axes = [(torch.arange(side).float() + offset) / torch.arange(1).add(side).float() for side in feat_shape]
    return 2.0 * torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) - 1.0


def reference_points(spatial_shapes_list: Any, valid_ratios: Tensor, device: Any) -> Tensor:
    """Mask2Former's points (B, cells of all levels, levels, 2), x and y in [0, 1], of maps without padding.

    Those of transformers, whose ratios are 1 there, for sizes that may be symbols.
    """
    points = []
    for sides in spatial_shapes_list:
        y, x = ((torch.arange(side, device=device).float() + 0.5) / torch.arange(1).add(side).float() for side in sides)
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((columns.flatten(), rows.flatten()), dim=-1))
    return torch.cat(points).to(valid_ratios.dtype)[None, :, None] * valid_ratios[:, None]


def resized(values: Tensor, like: Tensor) -> Tensor:
    """``values`` at the height and width of ``like``, which may be symbols: nothing asks whether they differ."""
    return F.interpolate(values, size=(like.shape[2], like.shape[3]), mode="bilinear", align_corners=False)


def gathered_grid_sample(values: Float[Tensor, "b c h w"], grid: Float[Tensor, "b p q 2"]) -> Float[Tensor, "b c p q"]:
    """``F.grid_sample`` (bilinear, zeros outside, ``align_corners`` False) as four gathers."""
    batch, channels, height, width = values.shape
    x, y = ((grid[..., axis] + 1) * side / 2 - 0.5 for axis, side in ((0, width), (1, height)))
    left, top = x.floor(), y.floor()
    flat, total = values.flatten(2), torch.zeros(())
    for down in (0, 1):
        for across in (0, 1):
            column, row = left + across, top + down
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
            place = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            index = place.flatten(1).unsqueeze(1).expand(batch, channels, grid.shape[1] * grid.shape[2])
            found = flat.gather(2, index).reshape(batch, channels, grid.shape[1], grid.shape[2])
            total = total + found * (share * inside).unsqueeze(1)
    return total


def cubic_positions(table: Tensor, old: tuple[int, int], new: tuple[Any, Any], *, prefix: int) -> Tensor:
    """A (1, prefix + h*w, C) positional embedding for the grid ``new``, as a network computes it at run time.

    That is bicubic by DINOv2's factor (:class:`~segdistill.weights.RunTimePositions`), and the table itself where
    ``new`` is ``old``. Sizes may be symbols.
    """
    first, cells = table[:, :prefix], table[:, prefix:].reshape(*old, -1)  # (h, w, C)
    same = torch.tensor(1.0)
    for before, after in zip(old, new, strict=True):
        same = same * (torch.arange(1).add(after) == before).float()
    rows, columns = (_cubic_matrix(before, after, same) for before, after in zip(old, new, strict=True))
    resized = torch.einsum("yh,xw,hwc->yxc", rows, columns, cells)
    return torch.cat([first, resized.reshape(1, new[0] * new[1], -1)], dim=1)


def cubic_map(posemb: Tensor, new_size: Any) -> Tensor:
    """:func:`cubic_positions` of SAM's map (1, h, w, C)."""
    old = (posemb.shape[1], posemb.shape[2])
    return cubic_positions(posemb.flatten(1, 2), old, new_size, prefix=0).reshape(1, new_size[0], new_size[1], -1)


def relative_positions(q_size: Any, k_size: Any, rel_pos: Tensor) -> Tensor:
    """SAM's relative positions (side, side, C) of ``rel_pos`` (L, C), as timm makes them where both sizes are one."""
    assert q_size is k_size or q_size == k_size, (q_size, k_size)
    length = 2 * q_size - 1
    if isinstance(q_size, torch.SymInt) or rel_pos.shape[0] != length:
        rel_pos = F.interpolate(rel_pos.T.unsqueeze(0), size=length, mode="linear")[0].T
    places = torch.arange(q_size)
    return rel_pos[places.unsqueeze(1) - places.unsqueeze(0) + (q_size - 1)]


def _cubic_matrix(old: int, new: Any, same: Tensor) -> Float[Tensor, "n o"]:
    """What each of ``new`` places takes of each of ``old``: cubic convolution by the factor (new + OFFSET) / old."""
    count = torch.arange(1).add(new).float()  # (1,): the size as a number in the graph
    scale = old / (count + OFFSET * (1 - same))  # 1 where nothing changes
    centre = (torch.arange(new).float() + 0.5) * scale - 0.5
    start = centre.floor()
    matrix = torch.zeros(1)
    for step in (-1, 0, 1, 2):
        distance = (centre - start - step).abs()
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
        far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
        weight = torch.where(distance <= 1, near, far)
        place: Int[Tensor, " n"] = (start + step).clamp(0, old - 1).long()
        matrix = matrix + weight.unsqueeze(1) * (place.unsqueeze(1) == torch.arange(old)).float()
    return matrix
