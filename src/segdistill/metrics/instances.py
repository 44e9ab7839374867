"""Scores of instance segmentation: average precision by the rules of COCO and of Cityscapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdistill.config import UserError
from segdistill.data.targets import objects_of
from segdistill.metrics.average_precision import cityscapes_ap, coco_ap, coco_recall, mean
from segdistill.metrics.base import RESAMPLES, Array, Metric, Samples, draws, interval, plain
from segdistill.metrics.matching import MIN_PIXELS, Matches, match
from segdistill.models import Finder, Model, View
from segdistill.objects import Detections, Objects


@dataclass(frozen=True, eq=False)
class InstanceSamples(Samples):
    """The matched detections and objects of a domain, in classes 0 to ``num_classes`` - 1."""

    num_classes: int
    matches: Matches

    @property
    def size(self) -> int:  # type: ignore[override]
        """Number of images."""
        return self.matches.size

    def resampled(self, name: str) -> NDArray[np.float64]:
        """See :meth:`segdistill.metrics.base.Samples.resampled`: :meth:`ap` of the drawn images."""
        if self.size < 2:
            return np.full(RESAMPLES, np.nan)
        return self.ap(draws(name, self.size))

    def ap(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The primary score (R,), COCO's AP, for image weights (R, N).

        Classes without objects in these images are left out; NaN if all are.
        """
        return mean(coco_ap(self.matches, self.num_classes, weights))

    def false_positives(self) -> NDArray[np.bool_]:
        """Which detections (N,) the primary score counts as false positives."""
        return self.matches.wrong[:, 0] > 0

    def by_image(self) -> NDArray[np.float64]:
        """The primary score of every image (N,) over the classes of its objects.

        0 if there are detections, but no objects; NaN if there are neither. Ignored detections do not count.
        """
        found = self.ap(np.eye(self.size))
        wrong = np.bincount(self.matches.images[self.false_positives()], minlength=self.size) > 0
        return np.where(np.isnan(found) & wrong, 0.0, found)

    def arrays(self) -> dict[str, Array]:
        """``num_classes`` and the fields of ``matches``, by name."""
        return {
            name: np.asarray(value) for name, value in {"num_classes": self.num_classes, **vars(self.matches)}.items()
        }

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Array]) -> InstanceSamples:
        """The inverse of :meth:`arrays`."""
        found: dict[str, Any] = {field.name: arrays[field.name] for field in fields(Matches)}
        return cls(int(arrays["num_classes"]), Matches(**found | {"size": int(found["size"])}))

    def scores(self) -> dict[str, float | list[float]]:
        """All scores by name; NaN where undefined. By class: a list of ``num_classes``."""
        matches, classes = self.matches, self.num_classes
        table, city = coco_ap(matches, classes), cityscapes_ap(matches, classes)
        areas = {
            f"ap_{area}": float(mean(coco_ap(matches, classes, area=area))[0]) for area in ("small", "medium", "large")
        }
        return {
            "ap": float(mean(table)[0]),
            "ap50": float(mean(table[:, :1])[0]),
            "ap75": float(mean(table[:, 5:6])[0]),
            **areas,
            "ar": float(mean(coco_recall(matches, classes))[0]),
            "cityscapes_ap": float(mean(city)[0]),
            "cityscapes_ap50": float(mean(city[:, :1])[0]),
            "ap_by_class": [float(mean(part)[0]) for part in table[:, None]],
            "ap50_by_class": table[:, 0, 0].tolist(),
            "cityscapes_ap_by_class": [float(mean(part)[0]) for part in city[:, None]],
        }


class ObjectMetric(Metric):
    """Scores of objects, from their matches; masks and boxes are not kept.

    ``primary`` is the score with an interval, ``kept`` the class of :meth:`samples`; ``read`` finds the objects of an
    image in a batch.
    """

    primary: ClassVar[str]
    kept: ClassVar[type[InstanceSamples]]
    read: ClassVar[Callable[[Mapping[str, Tensor], int], Objects]]

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.num_classes, self.device = num_classes, device
        self.seen: dict[int, Matches]

    def update(self, model: Model, batch: Mapping[str, Tensor], view: View) -> None:
        """See :meth:`segdistill.metrics.base.Metric.update`; targets as in :mod:`segdistill.data.targets`."""
        objects = [self.read(batch, row) for row in range(len(batch["image"]))]
        images = view.prepare(batch["image"].to(self.device))
        predictions = cast(Finder, model).predict(images, size=objects[0].size)
        for index, detections, own in zip(self.numbers(batch), predictions, objects, strict=True):
            self.add(index, detections, own)

    def matched(self, detections: Detections, objects: Objects) -> Matches:
        """The matches of one image."""
        raise NotImplementedError

    def add(self, index: int, detections: Detections, objects: Objects) -> None:
        """Match the ``detections`` of image ``index`` with its ``objects``."""
        bad = objects.classes[(objects.classes < 0) | (objects.classes >= self.num_classes)]
        if len(bad):
            raise UserError(
                f"class {bad[0]} of an annotated object is not known: allowed are 0..{self.num_classes - 1}; "
                "map the annotations to the classes of the model"
            )
        assert ((detections.classes >= 0) & (detections.classes < self.num_classes)).all(), "not a class of the model"
        self.seen[index] = self.matched(detections, objects)

    def samples(self) -> InstanceSamples:
        """The matches of every image, in the order of the indices."""
        return self.kept(self.num_classes, Matches.joined([self.seen[index] for index in sorted(self.seen)]))

    def result(self, name: str) -> dict[str, Any]:
        """All scores, the primary one's interval, and the number of images, objects (no crowds) and detections."""
        samples = self.samples()
        scores = {
            key: [plain(each) for each in value] if isinstance(value, list) else plain(value)
            for key, value in samples.scores().items()
        }
        return scores | {
            f"{self.primary}_interval": interval(samples.resampled(name)),
            "images": samples.size,
            "objects": int(samples.matches.counted[:, 0].sum()),
            "detections": len(samples.matches.scores),
        }


class InstanceMetric(ObjectMetric):
    """AP by the rules of COCO and of Cityscapes, from detections and objects at the resolution of the annotations.

    ``min_pixels``: Cityscapes ignores smaller objects.
    """

    primary, kept = "ap", InstanceSamples
    read = staticmethod(objects_of)

    def __init__(self, num_classes: int, device: torch.device | str = "cpu", *, min_pixels: int = MIN_PIXELS) -> None:
        super().__init__(num_classes, device)
        self.min_pixels = min_pixels

    def matched(self, detections: Detections, objects: Objects) -> Matches:
        """See :func:`.matching.match`."""
        return match(detections, objects, min_pixels=self.min_pixels)
