"""Quality of pseudo-labels: detections above a score, compared with annotated objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from segdistill.metrics.base import plain
from segdistill.metrics.instances import InstanceSamples


def quality(samples: InstanceSamples, score: float = 0.5) -> dict[str, Any]:
    """Quality of the detections with at least ``score``, matched by COCO's rules at IoU 0.5.

    ``precision``, ``recall`` and ``mean_iou`` (of the matches), None if undefined; ``labels``, ``matched`` and
    ``objects``: counts; ``by_class``: the six of each class. Detections on crowds are ignored.
    """
    matches = samples.matches
    kept = matches.scores >= score
    right, wrong = ((flags[:, 0] & 1).astype(bool) & kept for flags in (matches.right, matches.wrong))

    def entry(mine: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
        matched, missed, objects = (
            (a & b).sum() for a, b in ((right, mine), (wrong, mine), (matches.counted[:, 0], theirs))
        )
        labels = matched + missed
        return {
            "precision": float(matched / labels) if labels else None,
            "recall": float(matched / objects) if objects else None,
            "mean_iou": plain(float(matches.overlaps[right & mine].mean())) if matched else None,
            "labels": int(labels),
            "matched": int(matched),
            "objects": int(objects),
        }

    everything = entry(np.ones(len(right), bool), np.ones(len(matches.object_classes), bool))
    classes = [entry(matches.classes == k, matches.object_classes == k) for k in range(samples.num_classes)]
    return everything | {"by_class": classes}
