"""Cost on paper of the papers' task-agnostic stage on 1, 8 and 64 GPUs, from the operations of a step.

    OMP_NUM_THREADS=1 uv run python benchmarks/scale.py            # writes the tables of docs/scale.md to stdout

Torch counts the operations of real GKD steps (forward and backward, random weights) from DINOv2-B to ViT-S at 224/14.
Time is operations / (GPUs x peak x share of the peak), and at least that of exchanging the gradients. Peak and link are
vendors' figures; the first share is that of the step measured on one H100 (accelerator.md), the second a goal. Only
the step on this machine's CPU is timed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segdistill.encoders import Encoder, EncoderConfig, build_encoder
from segdistill.environment import commit, hardware
from segdistill.methods import METHODS
from segdistill.ops import generator, own_mask, random_mask
from segdistill.stages.teacher_cache import shape_of
from segdistill.stages.views import student_views, teacher_views

STEPS, BATCH, SIZE = 250_000, 512, (224, 224)
GPUS = (1, 8, 64)
PEAK = 989e12  # bf16, dense, H100 SXM: NVIDIA's data sheet
SHARES = (0.27, 0.45)
LINK = 50e9  # bytes per second and GPU between machines: 400 Gbit/s
IMAGES, VIEWS = 1_281_167, 4  # ImageNet-1k; views per image in the cache
FLOAT = 4


class Pair:
    """Teacher, student and method, and their two halves of a step."""

    def __init__(self, batch: int) -> None:
        build = {"image_size": SIZE, "patch": 14}
        self.teacher = build_encoder(EncoderConfig(name="dinov2_b", **build), seed=0).eval().requires_grad_(False)
        self.student = build_encoder(EncoderConfig(name="deit_s", **build), seed=1)
        gkd = METHODS["gkd"]
        self.method = gkd(gkd.Config(), self.student.spec(), self.teacher.spec())
        self.images = torch.rand(batch, 3, *SIZE, generator=torch.Generator().manual_seed(0))
        tokens = (SIZE[0] // 14) * (SIZE[1] // 14)
        self.mask = own_mask(random_mask(batch, tokens, rng=generator("mask"), **self.method.mask_settings()))
        self.views = self.teach()

    def teach(self) -> object:
        """The teacher's forward pass."""
        return teacher_views(self.teacher, self.images, (-1,))

    def learn(self) -> Tensor:
        """The student's forward and backward pass with the teacher's tokens at hand."""
        terms = self.method(student_views(self.student, self.images, (-1,), self.mask), self.views)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        return loss

    def both(self) -> None:
        """A whole step without the optimiser."""
        self.teach()
        self.learn()


def counted(call: Callable[[], object]) -> int:
    """Operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def timed(call: Callable[[], object], rounds: int) -> float:
    """Median seconds after one warm-up."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def span(seconds: float) -> str:
    """Minutes, or hours from two hours on."""
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def times(teacher: float, student: float, gradient: int) -> list[str]:
    """Rows of the table: a number of GPUs and a share of the peak each."""
    rows = []
    for count in GPUS:
        exchange = 2 * (count - 1) / count * gradient / LINK  # a ring sends and receives each gradient twice
        for share in SHARES:
            speed = count * PEAK * share
            whole, cached = (BATCH * flops / speed for flops in (teacher + student, student))
            build = IMAGES * VIEWS * teacher / speed
            cells = [span(STEPS * max(step, exchange)) for step in (whole, cached)]
            rows.append(
                f"| {count} | {share:.0%} | {1000 * whole:,.1f} | {1000 * exchange:.1f} | {cells[0]} | {cells[1]} | "
                f"{span(build)} |"
            )
    return rows


def cache_sizes(teacher: Encoder) -> list[str]:
    """Size of the cache on disk for each number format."""
    shape = shape_of(teacher, (-1,), SIZE)
    return [
        f"| {dtype} | {shape.nbytes(dtype) / 2**10:,.0f} | {IMAGES * VIEWS * shape.nbytes(dtype) / 2**40:.2f} |"
        for dtype in ("fp32", "fp16", "int8")
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="images of the counted and timed step; even")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    pair = Pair(options.batch)
    teacher, student = (counted(call) / options.batch for call in (pair.teach, pair.learn))
    trained = sum(p.numel() for module in (pair.student, pair.method) for p in module.parameters())
    whole, cached = (timed(call, options.rounds) / options.batch for call in (pair.both, pair.learn))
    lines = [
        f"{hardware()}, torch {torch.__version__}, commit {commit()}",
        "",
        f"Per image: teacher forward {teacher / 1e9:.1f} GFLOP, student and heads forward and backward "
        f"{student / 1e9:.1f}; {trained / 1e6:.1f} M trained parameters. {STEPS:,} steps of {BATCH}: "
        f"{STEPS * BATCH * (teacher + student):.2e} operations, {STEPS * BATCH * student:.2e} with the cache.",
        "",
        "| GPUs | share of peak | step, ms | exchange, ms | stage | stage with cache | building the cache |",
        "|---|---|---|---|---|---|---|",
        *times(teacher, student, FLOAT * trained),
        "",
        "| cache of tokens | KiB per view | TiB on disk |",
        "|---|---|---|",
        *cache_sizes(pair.teacher),
        "",
        f"Measured here, fp32, {options.batch} images per step: {whole:.2f} s per image, {cached:.2f} s with the "
        f"teacher's tokens at hand; the stage would take {STEPS * BATCH * whole / 86400 / 365:,.1f} years.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
