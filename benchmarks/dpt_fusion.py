"""DPT's fusion with the projection after the enlargement (as in transformers) and before it (ours), as a ratio.

    OMP_NUM_THREADS=1 uv run python benchmarks/dpt_fusion.py        # writes a Markdown table to stdout

A training step of a batch: forward and backward of the head and its set loss, from fixed maps. Rounds are interleaved;
the medians of the rounds are shown. The outputs of both orders are compared, too.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import Tensor
from transformers.models.dpt.modeling_dpt import DPTFeatureFusionLayer

from segdistill.environment import commit, hardware
from segdistill.heads import HEADS
from segdistill.heads.mask2former_parts import Fusion

SMALL: dict[str, Any] = {
    "width": 96, "queries": 40, "decoder_layers": 3, "decoder_feedforward": 384, "neck_channels": (48, 64, 96, 128),
    "points": 1536,
}  # fmt: skip
CASES = (
    ("the world's student, 12 images of 96 x 192", SMALL, 128, 8, (12, 96, 192)),
    ("full size, 1 image of 256 x 512", {}, 384, 16, (1, 256, 512)),
)
ORDERS = (DPTFeatureFusionLayer.forward, Fusion.forward)
ROUNDS = 5


def measure(
    settings: dict[str, Any], channels: int, stride: int, shape: tuple[int, int, int]
) -> tuple[list[float], float]:
    """Median seconds of a step in both orders, and the largest difference of the outputs, relative to their spread."""
    config = HEADS["masked_dpt"].Config(**settings)
    head: Any = HEADS["masked_dpt"](config, (channels,), (stride,), 8)
    batch, height, width = shape
    maps = (torch.randn(batch, channels, height // stride, width // stride, requires_grad=True),)
    masks = [torch.rand(10, height // 2, width // 2).gt(0.9).float() for _ in range(batch)]
    classes = [torch.randint(8, (10,)) for _ in range(batch)]

    def step() -> Tensor:
        torch.manual_seed(0)
        decoded = head.decode(maps)
        sum(head.set_loss(decoded, classes, masks).values()).backward()
        return decoded[1][-1].detach()

    seconds: list[list[float]] = [[] for _ in ORDERS]
    outputs = []
    for number in range(ROUNDS + 1):
        outputs = []
        for order, times in zip(ORDERS, seconds, strict=True):
            Fusion.forward = order  # type: ignore[method-assign]
            began = time.perf_counter()
            outputs.append(step())
            if number:
                times.append(time.perf_counter() - began)
    first, second = outputs
    return [statistics.median(each) for each in seconds], float((first - second).abs().max() / first.std())


def main() -> None:
    """Print the table."""
    print(f"{hardware()}, torch {torch.__version__}, commit {commit()}\n")
    print("| head | projection after, ms | before, ms | ratio | outputs differ by |\n|---|---:|---:|---:|---:|")
    for title, *case in CASES:
        (after, before), apart = measure(*case)
        print(f"| {title} | {after * 1000:.0f} | {before * 1000:.0f} | {after / before:.2f} | {apart:.0e} |")


if __name__ == "__main__":
    main()
