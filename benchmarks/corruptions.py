"""Processor milliseconds per image and corruption beside imagecorruptions-imaug, at 512 x 1024.

    OMP_NUM_THREADS=1 uv run python benchmarks/corruptions.py [REPEATS]

Writes a Markdown table to stdout: the sum over the five severities divided by five, the least of the repeats. The
first call of each function, in which numba compiles, is not measured.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

import cv2
import numpy as np

from segdistill import world
from segdistill.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt, draws
from segdistill.environment import commit, hardware

SIZE = (512, 1024)


def milliseconds(function: Callable[[int], np.ndarray], repeats: int) -> float:
    """Of one image, mean over the severities."""
    function(1)
    total = 0.0
    for severity in SEVERITIES:
        times = []
        for _ in range(repeats):
            began = time.process_time()
            function(severity)
            times.append(time.process_time() - began)
        total += min(times)
    return 1000 * total / len(SEVERITIES)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    from imagecorruptions import corrupt as theirs

    cv2.setNumThreads(1)
    np.random.seed(0)
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    image = world.render("clear", "test", 0, size=SIZE).image
    print(f"{hardware()}, commit {commit()}; {SIZE[0]} x {SIZE[1]}\n")
    print("| corruption | segdistill, ms | imagecorruptions-imaug, ms | ratio |\n|---|---:|---:|---:|")
    sums = np.zeros(2)
    for name in CORRUPTIONS:
        own = milliseconds(lambda s, n=name: corrupt(image, n, s, rng=draws(0, n, s, "street")), repeats)
        other = milliseconds(lambda s, n=name: theirs(image, corruption_name=n, severity=s), repeats)
        sums += own, other
        print(f"| {name} | {own:.0f} | {other:.0f} | {other / own:.1f} |")
    print(f"| all 19 | {sums[0]:.0f} | {sums[1]:.0f} | {sums[1] / sums[0]:.1f} |")


if __name__ == "__main__":
    main()
