"""Memory and seconds of the evaluation of one image, against its size: windows of 512 every 341, 19 classes.

    OMP_NUM_THREADS=1 uv run python benchmarks/large_image.py            # writes a Markdown table to stdout

The network is narrow and its weights are random: what is measured is what the evaluation itself holds. Sizes grow, so
that the most memory that the process ever held is that of the last one; what it held after an image of one window is
taken off. ``naive`` is one float32 array of classes x height x width, of which a sum of windows needs two.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from segdistill.config import parse
from segdistill.encoders import build_encoder
from segdistill.environment import commit, hardware, peak_memory_mb
from segdistill.models import Model, View, Window
from segdistill.runs.evaluation import evaluate
from segdistill.stages.base import ModelConfig
from segdistill.stages.task import build_model
from segdistill.tasks.semantic import SemanticMetric
from segdistill.tasks.table import TASKS

SIZES = ((1024, 2048), (2000, 2500), (4000, 2500), (4000, 5000))
CLASSES = 19
NAMES = tuple(map(str, range(CLASSES)))
WINDOW = Window(size=(512, 512), stride=(341, 341))


def narrow() -> Model:
    """timm's smallest ConvNeXt with a narrow SemFPN."""
    values = {"encoder": {"name": "timm:test_convnext"}, "head": {"type": "semfpn", "width": 16}}
    model = parse(ModelConfig, values)
    return build_model(TASKS["semantic"], model, build_encoder(model.encoder, seed=0), NAMES, seed=0, stage="benchmark")


def score(segmenter: Model, size: tuple[int, int]) -> float:
    """Seconds for one image of noise."""
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=rng)
    label = torch.randint(CLASSES, (1, *size), dtype=torch.uint8, generator=rng)
    began = time.perf_counter()
    batches = {"noise": [{"image": image, "label": label}]}
    metric = evaluate(segmenter, batches, lambda: SemanticMetric(CLASSES), views={"noise": View(window=WINDOW)})[
        "noise"
    ]
    assert np.sum(metric.result("noise")["confusion"]) == size[0] * size[1], "every pixel is scored once"
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    segmenter = narrow()
    score(segmenter, WINDOW.size)
    before = peak_memory_mb()
    out = [f"{hardware()}, torch {torch.__version__}, commit {commit()}; {before} MiB before the first size", ""]
    out += [
        "| height x width | MiB more | bytes per pixel | naive, MiB | ours / naive | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for height, width in SIZES:
        seconds = score(segmenter, (height, width))
        more, naive = peak_memory_mb() - before, CLASSES * height * width * 4 / 2**20
        per_pixel = more * 2**20 / (height * width)
        row = f"{more} | {per_pixel:.0f} | {naive:.0f} | {more / naive:.2f} | {seconds:.0f}"
        out.append(f"| {height} x {width} | {row} |")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
