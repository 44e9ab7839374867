"""Speed on one device: distillation steps, task steps, sliding windows, the input pipeline. See accelerator.sh.

Every step is forward, backward and optimiser, on random images and random weights. Forms of a distillation step:

- ``naive``: as the authors' code does it: two passes of the student over the whole batch, attention under autocast,
  torch's own choice of AdamW, and every loss term read back to the host at every step;
- ``ours``: one pass of plain and masked images, attention in fp32 (products in TF32), fused AdamW, nothing read back;
- ``compiled``: ours, with the setting ``compile``;
- ``cached``: ours, with the teacher's tokens at hand; ``cached, compiled``: both.

Nothing is compared with a program that does less: the naive form calls the package's own layers and loss. A step of
ours should not wait for the device: the page says how often it does by torch's check.

``share of peak`` is the step's matrix operations (counted by torch) per second over those of a large matrix product in
the same precision on the same device. Measurements that no time is left for are named in the page.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Collection
from pathlib import Path

import torch
from accelerator_clock import FULL, TINY, Bench, matmul_peak
from accelerator_parts import attention, distillation, patches, pipeline, stream, task, windows

from segdistill.environment import commit
from segdistill.methods import qsd

FORMS = ("naive", "ours", "cached", "compiled", "cached, compiled")


def run(bench: Bench, workers: int, parts: Collection[str]) -> None:
    """The measurements of ``parts``, the most wanted first."""
    bench.peak = matmul_peak(bench)
    torch.set_float32_matmul_precision("high" if bench.cuda else "highest")  # as the package does under bf16-mixed
    for name, measure in PARTS.items():
        if name in parts:
            measure(bench, workers)
    bench.write()


def run_distillation(bench: Bench, _: int) -> None:
    """Steps of every pair, size and form."""
    for size in bench.setting.sizes:
        for pair in bench.setting.pairs:
            for form in FORMS if bench.cuda else tuple(form for form in FORMS if "compiled" not in form):
                name = f"{pair[0]} -> {pair[1]}, {size[0]}/{size[1]}: {form}"
                bench.measure("Distillation step", name, distillation(bench, pair, size, form), size[2])


def run_layers(bench: Bench, _: int) -> None:
    """QSD heads and patch embeddings."""
    for shape, images in (((256, 384, 768), 256), ((4096, 384, 768), 8), ((1024, 192, 192), 64)):
        for form in ("whole, autocast", "whole", "in rows", *(("fused",) if shape[2] <= qsd.FUSED else ())):
            name = f"{shape[0]} tokens, {shape[1]} -> {shape[2]} channels: {form}"
            tokens = shape if bench.cuda else (16, 8, 8)
            bench.measure("One QSD head", name, attention(bench, tokens, form), images if bench.cuda else 2)
    for name in bench.setting.embeddings:
        pixels, patch, images = bench.setting.sizes[0]
        for linear in (False, True):
            form = f"{name}: {'matrix product' if linear else 'convolution'}"
            bench.measure("Patch embedding", form, patches(bench, name, pixels, patch, linear=linear), images)


def run_tasks(bench: Bench, _: int) -> None:
    """Steps of two heads."""
    for kind in ("semfpn", "mask2former"):
        for images in bench.setting.task_batches:
            for frozen in (False, True):
                name = f"{kind}, {images} images, {'frozen' if frozen else 'trained'} encoder"
                bench.measure("Task step", name, task(bench, kind, frozen=frozen), images)


def run_windows(bench: Bench, _: int) -> None:
    """Evaluation by windows."""
    for form in ("network alone", "evaluation"):
        name = f"{bench.setting.image[0]} x {bench.setting.image[1]}: {form}"
        bench.measure("Evaluation by windows", name, windows(bench, alone=form == "network alone"), 1)


def run_pipeline(bench: Bench, workers: int) -> None:
    """The loader."""
    side = bench.setting.sizes[0][0]
    with tempfile.TemporaryDirectory() as folder:
        for count in dict.fromkeys((0, workers)):
            name = f"{side} pixels, {count} workers"
            stream(bench, name, pipeline(Path(folder), side, count), 64 if bench.cuda else 4)


PARTS = {
    "distillation": run_distillation,
    "layers": run_layers,
    "tasks": run_tasks,
    "windows": run_windows,
    "pipeline": run_pipeline,
}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/accelerator"))
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--commit", default=commit(), help="of the sources, where they are no checkout")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    bench = Bench(TINY if options.tiny else FULL, options.minutes, options.out, options.commit)
    run(bench, 1 if options.tiny else options.workers, options.parts)
    print(bench.page())


if __name__ == "__main__":
    main()
