"""The teacher cache: seconds per image of the teacher against reading its tokens, and of a whole step with and without.

    OMP_NUM_THREADS=1 uv run python benchmarks/teacher_cache.py       # writes a Markdown table to stdout

DINOv2-S as the teacher and DeiT-Tiny as the student at 224 pixels, patch 14, random weights, images of noise. What is
read was written just before, so that it is in the page cache. Rounds are interleaved; medians are shown.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric

from segdistill.config import parse
from segdistill.data.dataset import Dataset, Sample
from segdistill.data.loader import StepBatches
from segdistill.data.transforms import DistillAugment, DistillTransform
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.environment import commit, hardware
from segdistill.stages.distill import Distillation, DistillConfig, DistillObjective
from segdistill.stages.teacher_cache import CacheConfig, Numbers, open_cache
from segdistill.stages.views import teacher_views

IMAGES, BATCH, SIZE, PATCH, ROUNDS = 16, 4, (224, 224), 14, 5


class Noise(Dataset):
    """Images of noise."""

    names, colors, sizes = ("none",), np.zeros((1, 3), np.uint8), (IMAGES,)

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        image = np.random.default_rng(index).integers(0, 256, (256, 320, 3), dtype=np.uint8)
        return Sample(image, None, "noise", str(index))

    def listing(self):  # noqa: ANN201
        return (f"noise/{index}" for index in range(IMAGES))


def medians(*steps: Callable[[], object]) -> list[float]:
    """Seconds of each, in turns."""
    times: list[list[float]] = [[] for _ in steps]
    for number in range(ROUNDS + 1):
        for step, own in zip(steps, times, strict=True):
            began = time.perf_counter()
            step()
            if number:
                own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in times]


def main() -> None:
    """Print the table."""
    teacher, student = (
        build_encoder(EncoderConfig(name=name, image_size=SIZE, patch=PATCH), seed=0)
        for name in ("dinov2_s", "deit_ti")
    )
    teacher.eval().requires_grad_(False)
    values = {"name": "x", "data": {"domains": ["noise"]}, "steps": 1, "method": {"type": "gkd"}}
    distillation = Distillation(student, teacher, parse(DistillConfig, values).method, (0,))
    transform, noise = DistillTransform(DistillAugment(rand_augment=None), SIZE), Noise()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEGDISTILL_CACHE"] = folder
        for dtype in ("fp16", "int8"):
            cache = open_cache(
                CacheConfig(views=2, dtype=dtype), teacher, (-1,), noise, transform, dtype, size=SIZE, batch=BATCH,
                workers=0, fabric=Fabric(accelerator="cpu"), progress=lambda *_: None,
            )  # fmt: skip
            steps = StepBatches(Numbers(noise), cache, batch=BATCH, seed=(0,))
            batch = steps[0]
            images = batch["image"].float() / 255

            def step(cached: bool, batch: dict = batch, cache=cache) -> None:  # noqa: ANN001
                objective = DistillObjective(student, distillation, cache if cached else None)
                torch.stack(list(objective(batch, 0, 10).values())).sum().backward()

            compute, read, live, kept = medians(
                lambda images=images: teacher_views(teacher, images, (-1,)),
                lambda steps=steps: steps[1],
                lambda step=step: step(cached=False),
                lambda step=step: step(cached=True),
            )
            disk = sum(path.stat().st_size for path in Path(folder, "teacher").rglob("*.npy"))
            rows.append((dtype, compute / BATCH, read / BATCH, compute / read, live, kept, live / kept, disk))
    out = [f"{hardware()}, torch {torch.__version__}, commit {commit()}, batch {BATCH}", ""]
    heads = [
        "tokens",
        "teacher, ms/image",
        "read, ms/image",
        "ratio",
        "step, s",
        "with cache, s",
        "ratio",
        "KiB per view",
    ]
    out += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    before = 0
    for dtype, compute, read, ratio, live, kept, gain, disk in rows:
        size = (disk - before) / (2 * IMAGES) / 1024
        before = disk
        out.append(f"| {dtype} | {1000 * compute:.0f} | {1000 * read:.2f} | {ratio:.0f} | {live:.2f} | {kept:.2f} | "
                   f"{gain:.2f} | {size:.0f} |")  # fmt: skip
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
