"""A segmenter over named domains: scores per domain, the mean over the unseen ones, retention against the teacher.

Each domain is seen as its data set's protocol says (spec A.11). All scores are reported with the 95 % percentile
interval of a bootstrap over images.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from segdistill.config import UserError, nearest
from segdistill.data.dataset import Protocol
from segdistill.metrics.confusion import Calibration, ConfusionMatrix, ImageCounts, interval, plain, resampled_mean
from segdistill.models import Segmenter, Window
from segdistill.metrics.unlabelled import ImageNotes, Note, notes_of

PRIMARY = "miou"
"""The score by which segmenters are compared."""

METRICS = {
    "miou": {"label": "mIoU", "unit": "%", "by_class": "iou", "by_class_label": "IoU"},
    "accuracy": {"label": "pixel accuracy", "unit": "%"},
    "mean_accuracy": {"label": "mean class accuracy", "unit": "%"},
    "calibration_error": {"label": "calibration error", "unit": "%"},
}
"""What a reader of ``results.json`` must know of a domain's scores; with the unit ``%`` they are shares in [0, 1]."""

Progress = Callable[[str, int, int | None], None]
"""Called after every batch: the domain, the images done in it, and its images in all (None: not known)."""


class Batch(typing.Protocol):
    """``image`` (B, 3, H, W) uint8, or float in [0, 1]; ``label`` (B, H, W) class indices, 255 where there is none.

    Optional ``index`` (B,): the images' numbers in the domain, which several processes need to agree on their order;
    without it they count what they are given.
    """

    image: Tensor
    label: Tensor


@dataclass(frozen=True)
class DomainResult:
    """Scores of one domain: of all pixels, and ``images`` and ``notes`` one by one in the data set's order."""

    confusion: ConfusionMatrix
    calibration: Calibration
    images: ImageCounts
    notes: ImageNotes

    @property
    def miou(self) -> float:
        """Mean IoU in [0, 1]; NaN where no pixel is labelled."""
        return self.confusion.miou()

    def as_dict(self, name: str) -> dict[str, Any]:
        """What ``results.json`` keeps of the domain ``name``: plain numbers, None for a score that does not exist."""
        return {
            "miou": plain(self.miou),
            "miou_interval": interval(self.images.resampled(name)),
            "iou": [plain(value) for value in self.confusion.iou().tolist()],
            "accuracy": plain(self.confusion.accuracy()),
            "mean_accuracy": plain(self.confusion.mean_accuracy()),
            "calibration_error": plain(self.calibration.error()),
            "confidence": plain(self.notes.mean_confidence),
            "images": self.images.size,
            "confusion": self.confusion.counts.tolist(),
        }


def evaluate(
    segmenter: Segmenter,
    domains: Mapping[str, Iterable[Batch | Mapping[str, Tensor]]],
    *,
    device: torch.device | str = "cpu",
    protocols: Mapping[str, Protocol] | None = None,
    window: Window | None = None,
    precision: Callable[[], AbstractContextManager] = nullcontext,
    progress: Progress | None = None,
) -> dict[str, DomainResult]:
    """Scores of every domain, at the labels' resolution.

    A domain's entry of ``protocols`` says how its images are resized and seen; ``window`` takes the place of the
    protocols' windows. The scores are upsampled to the label before the argmax (spec A.11), a few rows at a time: no
    array of K x H x W is ever made. ``precision()`` is entered around every prediction, for example
    ``fabric.autocast``. Under torch.distributed each process is given its own share of the images, and all return the
    scores of the whole. The segmenter is in evaluation mode meanwhile.
    """
    results = {}
    with evaluating(segmenter), torch.inference_mode():
        for name, batches in domains.items():
            protocol = (protocols or {}).get(name, Protocol())
            view = sliding(protocol, window)
            matrix, calibration = ConfusionMatrix(segmenter.num_classes, device), Calibration(device)
            seen: dict[int, tuple[np.ndarray, Note]] = {}
            total = _count_images(batches)
            for batch in batches:
                image, label = (_field(batch, key).to(device) for key in ("image", "label"))
                own = [ConfusionMatrix(segmenter.num_classes, device) for _ in image]
                height, width = label.shape[-2:]
                notes = [Note(height, width) for _ in image]
                with precision():
                    for strip in segmenter.strips(prepare(image, protocol.resize), view, (height, width)):
                        rows = label[strip.image, strip.top : strip.top + len(strip.classes)]
                        own[strip.image].add(strip.classes, rows)
                        calibration.add(strip.confidence, strip.classes, rows)
                        notes[strip.image].add(strip)
                for index, counts, note in zip(_numbers(batch, len(image), len(seen)), own, notes, strict=True):
                    matrix.merge(counts)
                    seen[index] = counts.counts.cpu().numpy(), note
                if progress is not None:
                    progress(name, len(seen), total)
            matrix.all_reduce()
            calibration.all_reduce()
            results[name] = DomainResult(matrix, calibration, *_gather(segmenter.num_classes, seen))
    return results


def sliding(protocol: Protocol, window: Window | None) -> Window | None:
    """``window`` where it is given, else the protocol's; None: the whole image at once."""
    if window is not None or protocol.window is None:
        return window
    return Window(size=protocol.window, stride=protocol.stride or protocol.window)


def prepare(image: Tensor, resize: tuple[int, int] | None = None) -> Tensor:
    """Images (B, 3, H, W), 8-bit or float, as float in [0, 1], fitted into ``resize`` (h, w) where it is given."""
    image = image.float().div_(255) if image.dtype == torch.uint8 else image.float()
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
    """Mean of the domains' mIoU over the ``unseen`` ones only; None where there is none or one has no score.

    Sources listed for reference and validation domains never enter it.
    """
    for name in unseen:
        if name not in results:
            raise UserError(
                f"unseen domain '{name}' was not evaluated: {nearest(name, results)}evaluated: {', '.join(results)}"
            )
    return plain(math.fsum(results[name].miou for name in unseen) / len(unseen)) if unseen else None


def summary_interval(images: Mapping[str, ImageCounts], unseen: Sequence[str]) -> list[float] | None:
    """95 % interval of :func:`summary`; None where it has none."""
    return interval(resampled_mean(images, unseen))


def retention(student: float | None, teacher: float | None) -> float | None:
    """Student's mean over the teacher's; None where either is missing or the teacher's is zero."""
    return student / teacher if student is not None and teacher else None


def retention_interval(
    student: Mapping[str, ImageCounts], teacher: Mapping[str, ImageCounts], unseen: Sequence[str]
) -> list[float] | None:
    """95 % interval of :func:`retention` for two models scored on the same images: each draw is put to both (paired).

    None where there is no unseen domain, a draw has no score, or the teacher's is zero in one.
    """
    assert all(student[name].size == teacher[name].size for name in unseen), "both saw the same images"
    above, below = (resampled_mean(images, unseen) for images in (student, teacher))
    return interval(above / below) if (below > 0).all() else None


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


def _numbers(batch: Batch | Mapping[str, Tensor], images: int, seen: int) -> list[int]:
    """The images' numbers: the batch's ``index``, else counted on from ``seen``."""
    index = batch.get("index") if isinstance(batch, Mapping) else getattr(batch, "index", None)
    return list(range(seen, seen + images)) if index is None else index.tolist()


def _gather(num_classes: int, seen: dict[int, tuple[np.ndarray, Note]]) -> tuple[ImageCounts, ImageNotes]:
    """The images of all processes by their number (those of one number by process)."""
    found = [seen]
    if dist.is_available() and dist.is_initialized():
        found = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, seen)
    numbered = sorted(((index, rank) for rank, part in enumerate(found) for index in part))
    ordered = [found[rank][index] for index, rank in numbered]
    return ImageCounts.of(num_classes, [counts for counts, _ in ordered]), notes_of([note for _, note in ordered])
