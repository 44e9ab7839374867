"""Images per second of the procedural world on one core, per domain and size.

OMP_NUM_THREADS=1 uv run python benchmarks/renderer.py
"""

from __future__ import annotations

import sys
import time

from segdistill import world
from segdistill.environment import commit, hardware

SIZES = ((64, 128), (96, 192), (256, 512))


def rate(domain: str, size: tuple[int, int], images: int) -> float:
    """Images per second of processor time, after one warm-up image."""
    world.render(domain, "train", 0, size=size)
    began = time.process_time()
    for index in range(images):
        world.render(domain, "train", index, size=size)
    return images / (time.process_time() - began)


def main() -> None:
    """Print the table."""
    out = [f"{hardware()}, commit {commit()}; images per second of one core", ""]
    out += ["| domain | " + " | ".join(f"{h} x {w}" for h, w in SIZES) + " |", "|---|" + "---|" * len(SIZES)]
    for domain in world.DOMAINS:
        rates = [rate(domain, size, 60 if size[0] < 200 else 15) for size in SIZES]
        out.append(f"| {domain} | " + " | ".join(f"{value:.0f}" for value in rates) + " |")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
