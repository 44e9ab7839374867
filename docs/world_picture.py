"""Draws docs/world.png from the runs of the demonstration: ``python docs/world_picture.py runs/demo``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.pictures import colorize, contact_sheet, load_image, load_label
from segdistill.results import load_run, panels

ARMS = {"No distillation": "world_none", "Vanilla KD": "world_vanilla_kd", "GKD": "world_gkd"}
DOMAINS = ("clear", "night", "fog", "snow", "rain")
SCALE = 2


def main(folder: Path, out: Path) -> None:
    """One row per domain: image, ground truth, teacher and every model."""
    titled = [(title, load_run(folder / name)) for title, name in ARMS.items()]
    rows, captions = [], []
    for domain in DOMAINS:
        row, captions = [], []
        for panel in panels(titled, "Teacher", domain, 0):
            pixels = load_image(panel.path) if panel.kind == "image" else None
            if pixels is None:
                pixels = colorize(load_label(panel.path), titled[0][1].colors)
            way = Image.Resampling.BICUBIC if panel.kind == "image" else Image.Resampling.NEAREST
            size = (pixels.shape[1] * SCALE, pixels.shape[0] * SCALE)
            row.append(np.asarray(Image.fromarray(pixels).resize(size, way)))
            captions.append(panel.caption)
        rows.append(row)
    Image.fromarray(contact_sheet(rows, captions, names=DOMAINS)).save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).with_name("world.png"))
