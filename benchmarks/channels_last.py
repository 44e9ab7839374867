"""A training step of convolutional encoders with their maps' channels last, as ``walk_maps`` has them, and first.

    OMP_NUM_THREADS=1 uv run python benchmarks/channels_last.py            # writes a Markdown table to stdout

Encoder, SemFPN of width 64 and cross-entropy, forward and backward, 8 images of 224 x 224 pixels; both in turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from segdistill.config import parse
from segdistill.encoders import build_encoder
from segdistill.environment import commit, hardware
from segdistill.stages.base import ModelConfig
from segdistill.stages.task import build_model
from segdistill.tasks.table import TASKS

ENCODERS = ("timm:mobilenetv3_small_100", "timm:efficientnet_b0", "timm:resnet18", "timm:convnext_atto")
BATCH, SIDE, ROUNDS, CLASSES = 8, 224, 7, 8
LAST = torch.channels_last


def step_of(name: str) -> Callable[[], float]:
    """A function that takes one step and returns the loss; no parameter changes."""
    config = parse(ModelConfig, {"encoder": {"name": name}, "head": {"type": "semfpn", "width": 64, "dropout": 0.0}})
    names = [f"class {number}" for number in range(CLASSES)]
    encoder = build_encoder(config.encoder, seed=0)
    model = build_model(TASKS["semantic"], config, encoder, names, seed=0, stage="benchmark").train()
    images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8)
    batch = {"image": images, "label": torch.randint(0, CLASSES, (BATCH, SIDE, SIDE))}

    def step() -> float:
        loss = sum(model.loss(batch).values())
        loss.backward()
        return loss.item()

    return step


def main() -> None:
    """Print the table."""
    write = sys.stdout.write
    write(f"{hardware()}, torch {torch.__version__}, commit {commit()}\n\n")
    write(
        "| encoder | channels first, ms | channels last, ms | ratio | losses differ by |\n|---|---:|---:|---:|---:|\n"
    )
    for name in ENCODERS:
        step = step_of(name)
        best, losses = dict.fromkeys((False, True), float("inf")), {}
        for _ in range(ROUNDS):
            for last in best:
                torch.channels_last = LAST if last else torch.contiguous_format
                began = time.perf_counter()
                losses[last] = step()
                best[last] = min(best[last], time.perf_counter() - began)
        first, last = 1000 * best[False], 1000 * best[True]
        write(f"| {name} | {first:.0f} | {last:.0f} | {first / last:.2f} | {abs(losses[True] - losses[False]):.0e} |\n")


if __name__ == "__main__":
    main()
