"""Seconds and memory of the augmentation of one image with objects, against the number of objects: 1024 x 2048 pixels.

    OMP_NUM_THREADS=1 uv run python benchmarks/object_augment.py            # writes a Markdown table to stdout

``masks``: the same crop, resize and flip of one mask per object with torchvision, without the image.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2

from segdistill.data.dataset import Sample
from segdistill.data.object_transforms import ObjectAugment, ObjectTransform
from segdistill.environment import commit, hardware
from segdistill.objects import Objects

SIZE = (1024, 2048)
CROP = (512, 1024)
COUNTS = (0, 10, 60, 300)
ROUNDS = 5


def scene(count: int) -> Sample:
    """Noise with ``count`` rectangles."""
    rng = np.random.default_rng(count)
    ids = np.zeros((1, *SIZE), np.int32)
    for number in range(1, count + 1):
        top, left = int(rng.integers(SIZE[0] - 60)), int(rng.integers(SIZE[1] - 60))
        ids[0, top : top + rng.integers(10, 60), left : left + rng.integers(10, 60)] = number
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    return Sample(image, None, "noise", str(count), Objects(ids, np.zeros(count, np.int64), np.zeros(count, bool)))


def masks_augmented(masks: torch.Tensor) -> None:
    """Resize to the short side of a crop at scale 1, crop, flip (N, H, W)."""
    resized = v2.functional.resize(masks, list(CROP), interpolation=InterpolationMode.NEAREST)
    torch.stack(list(resized[:, : CROP[0], : CROP[1]].flip(-1)))


def seconds(call: Callable[[], object]) -> float:
    """The median of ``ROUNDS`` calls after a first one."""
    call()
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def peak_mb(call: Callable[[], object]) -> float:
    """MiB of NumPy and Python that one call holds at most."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> None:
    """Print the table."""
    plain = ObjectTransform(ObjectAugment(scale=(1.0, 1.0), photometric=False), CROP)
    full = ObjectTransform(ObjectAugment(scale=(1.0, 1.0)), CROP)
    lines = [f"{hardware()}, torch {torch.__version__}, commit {commit()}; image {SIZE}, crop {CROP}, scale 1", ""]
    lines += [
        "| objects | ms | ratio to none | ms with distortion | MiB | masks, ms | masks, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    none = 0.0
    for count in COUNTS:
        sample = scene(count)
        taken = seconds(lambda sample=sample: plain(sample))
        none = none or taken
        distorted = seconds(lambda sample=sample: full(sample))
        assert sample.objects is not None
        masks = torch.from_numpy(sample.objects.ids == np.arange(1, count + 1)[:, None, None])
        separate = seconds(lambda masks=masks: masks_augmented(masks)) if count else 0.0
        memory = peak_mb(lambda sample=sample: plain(sample))
        row = f"{1000 * taken:.0f} | {taken / none:.2f} | {1000 * distorted:.0f} | {memory:.0f}"
        lines.append(f"| {count} | {row} | {1000 * separate:.0f} | {masks.numel() / 2**20:.0f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
