"""Peak memory of ``segdistill predict`` on one large image, beside that of a single pass of the network.

    OMP_NUM_THREADS=1 uv run python benchmarks/predict_memory.py RUN     # writes a Markdown table to stdout

RUN is a run folder or a packed file. Every row is a process of its own: the most memory that it ever held
(``ru_maxrss``), less that of a process that loads the model and predicts nothing. ``one pass`` is the network on one
window; ``predict`` reads a PNG of that size, predicts through windows, and writes class map and overlay.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segdistill import load
from segdistill.environment import commit, hardware, peak_memory_mb
from segdistill.inference.folder import Wanted, predict_to_folder
from segdistill.runlog import Quiet

SIZES = ((1000, 1250), (2000, 2500), (4000, 5000))
WINDOW = (512, 512)


def child(what: str, kind: str, height: int, width: int) -> None:
    """One row: peak memory in MiB and seconds, on stdout."""
    model = load(what, device="cpu").seen(window=WINDOW)
    began = time.perf_counter()
    if kind == "one pass":
        with torch.inference_mode():
            model.segmenter.scores(torch.zeros(1, 3, *WINDOW))
    elif kind == "predict":
        with tempfile.TemporaryDirectory() as folder:
            coarse = np.random.default_rng(0).integers(0, 256, (height // 50, width // 50, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((width, height)).save(f"{folder}/large.png")
            predict_to_folder(model, [f"{folder}/large.png"], Path(folder, "out"), Wanted(), Quiet())
            with Image.open(f"{folder}/out/classes/large.png") as written:
                assert written.size == (width, height), written.size
    sys.stdout.write(f"{peak_memory_mb()} {time.perf_counter() - began:.0f}\n")


def measured(what: str, kind: str, size: tuple[int, int]) -> tuple[float, str]:
    """Peak memory and seconds of a process."""
    command = [sys.executable, __file__, what, kind, *map(str, size)]
    memory, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(memory), seconds


def main() -> None:
    """Print the table."""
    what = sys.argv[1]
    base, _ = measured(what, "nothing", WINDOW)
    one, seconds = measured(what, "one pass", WINDOW)
    rows = [("one pass", WINDOW, one, seconds)]
    rows += [("predict", size, *measured(what, "predict", size)) for size in SIZES]
    out = [f"{hardware()}, torch {torch.__version__}, commit {commit()}; the loaded model alone: {base:.0f} MiB", ""]
    out += ["| what | height x width | MiB more | bytes per pixel | seconds |", "|---|---|---|---|---|"]
    for kind, (height, width), memory, seconds in rows:
        more = memory - base
        out.append(f"| {kind} | {height} x {width} | {more:.0f} | {more * 2**20 / (height * width):.0f} | {seconds} |")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 5:
        child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
