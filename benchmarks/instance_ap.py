"""Processor seconds of instance AP, mask encoding included, beside torchmetrics with pycocotools on the same masks.

    OMP_NUM_THREADS=1 uv run --with torchmetrics --with pycocotools python benchmarks/instance_ap.py [IMAGES]

Writes a Markdown table to stdout. Every image is 1024 x 2048 with 30 objects of 8 classes in one map of ids, and 30
detections as binary masks, as a network returns them. Drawing them is not measured.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from torchmetrics.detection import MeanAveragePrecision

from segdistill.environment import commit, hardware
from segdistill.metrics.instances import InstanceMetric
from segdistill.objects import Detections, Objects, encode

SIZE, OBJECTS, CLASSES = (1024, 2048), 30, 8


def drawn(seed: int) -> tuple[Objects, np.ndarray, np.ndarray, np.ndarray]:
    """Objects of an image; masks (N, H, W), classes and descending scores of as many detections."""
    rng, ids, masks = np.random.default_rng(seed), np.zeros(SIZE, np.int32), np.zeros((OBJECTS, *SIZE), bool)
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    for number in range(OBJECTS):
        a, b, top, left = rng.uniform((15, 15, 0, 0), (150, 150, *SIZE))
        ids[((y - top) / a) ** 2 + ((x - left) / b) ** 2 < 1] = number + 1
        masks[number] = ((y - top) / a) ** 2 + ((x - left - rng.uniform(0, 0.5 * b)) / b) ** 2 < 1
    classes = rng.integers(0, CLASSES, OBJECTS)
    guesses = np.where(rng.random(OBJECTS) < 0.8, classes, rng.integers(0, CLASSES, OBJECTS))
    scores = np.sort(rng.random(OBJECTS).astype(np.float32))[::-1].copy()
    return Objects(ids[None], classes, np.zeros(OBJECTS, bool)), masks, guesses, scores


def main() -> None:
    """Print the table."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    ours, theirs, seconds = InstanceMetric(CLASSES), MeanAveragePrecision(iou_type="segm"), np.zeros((2, 2))
    for image in range(images):
        objects, masks, guesses, scores = drawn(image)
        began = time.process_time()
        ours.add(image, Detections(scores, guesses, [encode(mask) for mask in masks], SIZE), objects)
        seconds[0, 0] += time.process_time() - began
        kept = np.flatnonzero(objects.areas())  # an object below the others has no pixels and does not count
        truth = torch.tensor(objects.ids == (kept + 1)[:, None, None])
        found = {"masks": torch.tensor(masks), "labels": torch.tensor(guesses), "scores": torch.tensor(scores)}
        labels = {"masks": truth, "labels": torch.tensor(objects.classes[kept])}
        began = time.process_time()
        theirs.update([found], [labels])
        seconds[1, 0] += time.process_time() - began
    began = time.process_time()
    scores = ours.samples().scores()
    seconds[0, 1] = time.process_time() - began
    began = time.process_time()
    expected = theirs.compute()
    seconds[1, 1] = time.process_time() - began
    began = time.process_time()
    ours.samples().resampled("domain")
    bootstrap = time.process_time() - began
    print(f"{hardware()}, torch {torch.__version__}, commit {commit()}; {images} images\n")
    print("| what | masks to matches, s | scores, s | in all, s | AP | AP50 |\n|---|---:|---:|---:|---:|---:|")
    values = (scores["ap"], scores["ap50"]), (expected["map"], expected["map_50"])
    for name, times, (ap, ap50) in zip(("segdistill", "torchmetrics"), seconds, values, strict=True):
        print(f"| {name} | {times[0]:.2f} | {times[1]:.2f} | {times.sum():.2f} | {ap:.6f} | {ap50:.6f} |")
    print(f"\nRatio {seconds[1].sum() / seconds[0].sum():.1f}; 1000 bootstrap draws of AP: {bootstrap:.2f} s.")


if __name__ == "__main__":
    main()
