"""Seconds per training step: the naive form beside ours, in one process, interleaved, as a ratio.

    OMP_NUM_THREADS=2 uv run python benchmarks/steps.py            # writes a Markdown table to stdout

- distillation: the student runs both views of every sample (2 B images), as the authors' code does, against one pass of
  B plain and B / 2 masked images;
- task stage: gradients and features of a frozen encoder through autograd against features without a graph;
- precision: 32-true against bf16-mixed.
Rounds are interleaved, so that a slow moment of the machine hits both forms; the medians of the rounds are shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.environment import commit, hardware
from segdistill.heads import HEADS
from segdistill.methods import METHODS
from segdistill.models import Segmenter
from segdistill.ops import generator, random_mask
from segdistill.stages.views import student_views, teacher_views
from segdistill.types import Mask, Views

Step = Callable[[], object]


def compare(first: Step, second: Step, rounds: int) -> tuple[float, float]:
    """Median seconds of both, measured in turns after one warm-up each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for step, times in zip((first, second), seconds, strict=True):
            began = time.perf_counter()
            step()
            if number:
                times.append(time.perf_counter() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def distillation(batch: int, autocast: Callable[[], object]) -> tuple[Step, Step]:
    """(two full views, one pass of plain and masked) of a GKD step."""
    teacher = build_encoder(EncoderConfig(name="world_teacher"), seed=0).eval().requires_grad_(False)
    student = build_encoder(EncoderConfig(name="world_student"), seed=1)
    gkd = METHODS["gkd"]
    method = gkd(gkd.Config(), student.spec(), teacher.spec())
    images = torch.rand(batch, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    mask = random_mask(batch, 128, rng=generator("mask"), **method.mask_settings())

    def ours() -> None:
        with autocast():
            terms = method(student_views(student, images, (-1,), mask), teacher_views(teacher, images, (-1,)))
        sum(terms.values()).backward()

    def naive() -> None:
        hidden = torch.zeros(batch, 128, dtype=torch.bool)
        hidden[mask.samples] = mask.tokens
        everything = Mask(samples=torch.arange(batch), tokens=hidden)
        with autocast():
            plain, masked = student(images, (-1,)), student(images, (-1,), hidden)
            views = Views(plain=plain, masked=masked, mask=everything)
            terms = method(views, teacher_views(teacher, images, (-1,)))
        sum(terms.values()).backward()

    return naive, ours


def task(batch: int, autocast: Callable[[], object]) -> tuple[Step, Step]:
    """(frozen by a zero learning rate, frozen without a graph) of a task step on the teacher."""
    encoder = build_encoder(EncoderConfig(name="world_teacher"), seed=0)
    semfpn = HEADS["semfpn"]
    taps = encoder.record.taps
    head = semfpn(semfpn.Config(width=48), encoder.spec(taps).channels, encoder.strides(taps), 13)
    segmenter = Segmenter(encoder, head, taps, 13)
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, 64, 128, generator=rng)
    labels = torch.randint(13, (batch, 64, 128), generator=rng)

    def step() -> None:
        with autocast():
            decoded = segmenter.decode(segmenter.features(images))
            loss = sum(segmenter.loss_of(decoded, {"label": labels}).values())
        loss.backward()

    def naive() -> None:
        encoder.requires_grad_(True)
        step()

    def ours() -> None:
        encoder.requires_grad_(False)
        step()

    return naive, ours


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    def bf16() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    rows = [
        ("GKD step, fp32: two full views / ours", *compare(*distillation(options.batch, nullcontext), options.rounds)),
        ("GKD step, bf16: two full views / ours", *compare(*distillation(options.batch, bf16), options.rounds)),
        (
            "task step, frozen teacher, fp32: with graph / ours",
            *compare(*task(options.batch, nullcontext), options.rounds),
        ),
    ]
    fp32, half = distillation(options.batch, nullcontext)[1], distillation(options.batch, bf16)[1]
    rows.append(("GKD step, ours: fp32 / bf16-mixed", *compare(fp32, half, options.rounds)))
    out = [f"{hardware()}, torch {torch.__version__}, commit {commit()}, batch {options.batch}, 64 x 128 pixels", ""]
    out += ["| step | first, s | second, s | ratio |", "|---|---|---|---|"]
    out += [f"| {name} | {a:.3f} | {b:.3f} | {a / b:.2f} |" for name, a, b in rows]
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
