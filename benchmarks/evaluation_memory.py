"""Memory and time of scoring one image, against the network's forward passes alone.

    OMP_NUM_THREADS=1 uv run python benchmarks/evaluation_memory.py        # writes a Markdown table to stdout

Memory is the largest sum of torch's allocations (its profiler), so it depends neither on the allocator nor on other
work. ``forward`` are the same windows, batch by batch, with their scores thrown away. Rounds are interleaved; the
median of the ratios is shown. The image and its label exist before both. Weights are random.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch

from segdistill.config import parse
from segdistill.encoders import build_encoder
from segdistill.environment import commit, hardware
from segdistill.models import Segmenter, View, Window
from segdistill.models.segmenter import positions
from segdistill.runs.evaluation import evaluate
from segdistill.stages.base import ModelConfig
from segdistill.stages.task import build_model
from segdistill.tasks.semantic import SemanticMetric
from segdistill.tasks.table import TASKS

CLASSES = 19
NAMES = tuple(map(str, range(CLASSES)))
WINDOW = Window(size=(512, 512), stride=(341, 341))
NETWORKS = {
    "test_convnext, SemFPN 16": ({"name": "timm:test_convnext"}, {"type": "semfpn", "width": 16}),
    "ViT-Ti/16, SemFPN 128": (
        {"name": "deit_ti", "image_size": [512, 512], "patch": 16},
        {"type": "semfpn", "width": 128},
    ),
}


def network(name: str) -> Segmenter:
    """A network with random weights."""
    encoder, head = NETWORKS[name]
    config = parse(ModelConfig, {"encoder": encoder, "head": head})
    built = build_encoder(config.encoder, seed=0)
    model = build_model(TASKS["semantic"], config, built, NAMES, seed=0, stage="benchmark")
    assert isinstance(model, Segmenter)
    return model.eval()


def peak(call: Callable[[], object]) -> int:
    """Most bytes that torch held at once for the call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    level = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            most = max(most, level)
    return most


def passes(model: Segmenter, image: torch.Tensor) -> Callable[[], None]:
    """The forward passes of all windows, as tensors of the network's input."""
    height, width = image.shape[-2:]
    (high, wide), (down, across) = WINDOW.size, WINDOW.stride
    places = [(y, x) for y in positions(height, high, down) for x in positions(width, wide, across)]

    def run() -> None:
        with torch.inference_mode():
            for start in range(0, len(places), WINDOW.batch):
                parts = [image[0, :, y : y + high, x : x + wide] for y, x in places[start : start + WINDOW.batch]]
                model.scores(torch.stack(parts).float() / 255)

    return run


def scoring(model: Segmenter, image: torch.Tensor, label: torch.Tensor) -> Callable[[], None]:
    """The evaluation of the image."""

    def run() -> None:
        batches = {"noise": [{"image": image, "label": label}]}
        evaluate(model, batches, lambda: SemanticMetric(CLASSES), views={"noise": View(window=WINDOW)})

    return run


def show(line: str) -> None:
    """Print a line at once: a run that is stopped leaves the rows that it has."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, nargs=2, default=(1024, 2048))
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, help="default: all")
    options = parser.parse_args()
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, *options.size), dtype=torch.uint8, generator=rng)
    label = torch.randint(CLASSES, (1, *options.size), dtype=torch.uint8, generator=rng)
    show(f"{hardware()}, torch {torch.__version__}, commit {commit()}, {options.size[0]} x {options.size[1]}\n")
    show("| network | forward, MiB | scoring, MiB | ratio | forward, s | scoring, s | ratio |")
    show("|---|---|---|---|---|---|---|")
    for name in options.networks or NETWORKS:
        model = network(name)
        calls = (passes(model, image), scoring(model, image, label))
        low, high = (peak(call) / 2**20 for call in calls)
        seconds = []
        for _ in range(options.rounds):
            marks = [time.perf_counter()]
            for call in calls:
                call()
                marks.append(time.perf_counter())
            seconds.append((marks[1] - marks[0], marks[2] - marks[1]))
        first, second = (statistics.median(times) for times in zip(*seconds, strict=True))
        ratio = statistics.median(own / bare for bare, own in seconds)
        show(f"| {name} | {low:.0f} | {high:.0f} | {high / low:.2f} | {first:.1f} | {second:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
