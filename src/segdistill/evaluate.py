"""A segmenter over named domains: scores per domain, the mean over the unseen ones, retention against the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.config import UserError, nearest
from segdistill.metrics import ConfusionMatrix
from segdistill.segmenter import Segmenter, Window

Progress = Callable[[str, int, int | None], None]
"""Called after every batch: the domain, the images done in it, and its images in all (None: not known)."""


class Batch(Protocol):
    """``image`` (B, 3, H, W) uint8, or float in [0, 1]; ``label`` (B, H, W) class indices, 255 where there is none."""

    image: Tensor
    label: Tensor


@dataclass(frozen=True)
class DomainResult:
    """Scores of one domain."""

    confusion: ConfusionMatrix
    images: int

    @property
    def miou(self) -> float:
        """Mean IoU in [0, 1]; NaN where no pixel is labelled."""
        return self.confusion.miou()

    def as_dict(self) -> dict[str, Any]:
        """What ``results.json`` keeps: plain numbers, None for a score that does not exist."""
        return {
            "miou": _plain(self.miou),
            "iou": [_plain(value) for value in self.confusion.iou().tolist()],
            "accuracy": _plain(self.confusion.accuracy()),
            "mean_accuracy": _plain(self.confusion.mean_accuracy()),
            "images": self.images,
            "confusion": self.confusion.counts.tolist(),
        }


def evaluate(
    segmenter: Segmenter,
    domains: Mapping[str, Iterable[Batch | Mapping[str, Tensor]]],
    *,
    device: torch.device | str = "cpu",
    window: Window | None = None,
    resize: tuple[int, int] | None = None,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    progress: Progress | None = None,
) -> dict[str, DomainResult]:
    """Confusion matrix of every domain, at the labels' resolution.

    Images are first fitted into ``resize`` (h, w), keeping their aspect, where it is given; then predicted, by sliding
    ``window`` where it is given; the scores are upsampled to the label before the argmax (spec A.11). ``precision()``
    is entered around every prediction, for example ``fabric.autocast``. Under torch.distributed each process is given
    its own share of the images, and all return the sum. The segmenter is in evaluation mode meanwhile.
    """
    results = {}
    with evaluating(segmenter), torch.inference_mode():
        for name, batches in domains.items():
            matrix, images = ConfusionMatrix(segmenter.num_classes, device), 0
            total = _count_images(batches)
            for batch in batches:
                image, label = (_field(batch, key).to(device) for key in ("image", "label"))
                height, width = label.shape[-2:]
                with precision():
                    prediction = segmenter.predict(prepare(image, resize), window, (height, width))
                matrix.add(prediction, label)
                images += len(image)
                if progress is not None:
                    progress(name, images, total)
            matrix.all_reduce()
            results[name] = DomainResult(matrix, _sum_over_processes(images, device))
    return results


def prepare(image: Tensor, resize: tuple[int, int] | None = None) -> Tensor:
    """Images (B, 3, H, W), 8-bit or float, as float in [0, 1], fitted into ``resize`` (h, w) where it is given."""
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    if resize is None:
        return image
    height, width = image.shape[-2:]
    size = fit((height, width), resize)
    if size == (height, width):
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)  # no antialias, as the authors' reader


def fit(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The largest size (h, w) of the same aspect whose longer side fits the box's longer and shorter its shorter."""
    factor = min(max(box) / max(size), min(box) / min(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def summary(results: Mapping[str, DomainResult], unseen: Sequence[str]) -> float | None:
    """Mean of the domains' mIoU over the ``unseen`` ones only; None where there is none."""
    for name in unseen:
        if name not in results:
            raise UserError(
                f"unseen domain '{name}' was not evaluated: {nearest(name, results)}evaluated: {', '.join(results)}"
            )
    return math.fsum(results[name].miou for name in unseen) / len(unseen) if unseen else None


def retention(student: float | None, teacher: float | None) -> float | None:
    """Student's mean over the teacher's; None where either is missing or the teacher's is zero."""
    return student / teacher if student is not None and teacher else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _field(batch: Batch | Mapping[str, Tensor], name: str) -> Tensor:
    return batch[name] if isinstance(batch, Mapping) else getattr(batch, name)


def _count_images(batches: Iterable) -> int | None:
    """Images of a loader over a sized data set; None for any other iterable."""
    dataset = getattr(batches, "dataset", None)
    return len(dataset) if isinstance(dataset, Sized) else None


def _sum_over_processes(value: int, device: torch.device | str) -> int:
    if not (dist.is_available() and dist.is_initialized()):
        return value
    count = torch.tensor(value, device=device)
    dist.all_reduce(count)
    return int(count)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
