"""Peak memory and time of evaluating one image with instances, beside the forward pass of the network alone.

    OMP_NUM_THREADS=1 uv run python benchmarks/instance_memory.py [HEAD ...]    # writes a Markdown table to stdout

The network has DINOv2-S's size, 100 queries and the head masked_dpt (or those named), with random weights; the image
is 1024 x 2048 with 30 objects of 8 classes. Every row is a process of its own: the most memory that it ever held
(``ru_maxrss``), less that of one that only builds network and image. ``forward`` is encoder and head; ``evaluate`` is
``InstanceSegmenter.predict`` and ``InstanceMetric.add``, with the processor seconds of each part.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from PIL import Image

from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.environment import commit, hardware, peak_memory_mb
from segdistill.heads import HEADS
from segdistill.metrics.instances import InstanceMetric
from segdistill.models import InstanceSegmenter
from segdistill.objects import Objects

SIZE, OBJECTS, CLASSES = (1024, 2048), 30, 8


def network(name: str) -> InstanceSegmenter:
    """Random weights, evaluation mode."""
    encoder, kind = build_encoder(EncoderConfig(name="dinov2_s"), seed=0), HEADS[name]
    torch.manual_seed(0)
    taps = encoder.record.taps
    settings: Any = kind.Config()
    head = kind(settings, encoder.spec(taps).channels, encoder.strides(taps), CLASSES)
    return InstanceSegmenter(encoder, head, taps, CLASSES).eval()


def drawn() -> tuple[torch.Tensor, Objects]:
    """A blurred image (1, 3, H, W) and ellipses as its objects."""
    rng, ids = np.random.default_rng(0), np.zeros(SIZE, np.int32)
    coarse = rng.integers(0, 256, (SIZE[0] // 64, SIZE[1] // 64, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC))
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    for number in range(OBJECTS):
        a, b, top, left = rng.uniform((15, 15, 0, 0), (150, 150, *SIZE))
        ids[((y - top) / a) ** 2 + ((x - left) / b) ** 2 < 1] = number + 1
    objects = Objects(ids[None], rng.integers(0, CLASSES, OBJECTS), np.zeros(OBJECTS, bool))
    return torch.tensor(image).permute(2, 0, 1)[None].float() / 255, objects


def child(name: str, kind: str) -> None:
    """One row on stdout: peak memory in MiB; processor seconds of forward pass, rest of ``predict``, and metric."""
    model, (image, objects) = network(name), drawn()
    metric, seconds = InstanceMetric(CLASSES), [0.0, 0.0, 0.0]
    began = time.process_time()
    passed = model.decoded

    def timed(images: torch.Tensor) -> Any:
        out = passed(images)
        seconds[0] = time.process_time() - began
        return out

    model.decoded = timed  # type: ignore[method-assign]
    if kind == "forward":
        with torch.no_grad():
            timed(image)
    elif kind == "evaluate":
        found = model.predict(image)[0]
        seconds[1] = time.process_time() - began - seconds[0]
        metric.add(0, found, objects)
        seconds[2] = time.process_time() - began - sum(seconds)
        assert len(found.scores)
    sys.stdout.write(" ".join(map(str, [peak_memory_mb(), *seconds])) + "\n")


def measured(name: str, kind: str) -> list[float]:
    """The row of a process."""
    command = [sys.executable, __file__, "child", name, kind]
    return [*map(float, subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split())]


def main() -> None:
    """Print the table."""
    out = [f"{hardware()}, torch {torch.__version__}, commit {commit()}", ""]
    out += ["| head | what | peak, MiB | MiB more | x forward | forward, s | predict's rest, s | metric, s |"]
    out += ["|---|---|---:|---:|---:|---:|---:|---:|"]
    for name in sys.argv[1:] or ["masked_dpt"]:
        base, alone = measured(name, "nothing")[0], 0.0
        for kind in ("forward", "evaluate"):
            peak, *seconds = measured(name, kind)
            more = peak - base
            alone = alone or more
            row = [name, kind, f"{peak:.0f}", f"{more:.0f}", f"{more / alone:.2f}"]
            out.append(f"| {' | '.join([*row, *(f'{each:.1f}' for each in seconds)])} |")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1] == "child":
        child(*sys.argv[2:])
    else:
        main()
