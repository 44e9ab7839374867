"""Draws docs/steps.png, mIoU over the steps of the student's encoder on photographs: ``python docs/steps_picture.py``.

The numbers are those of docs/raw/real_pair_deit.json (1,500 steps) and docs/raw/real_steps.json.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

RAW = Path(__file__).with_name("raw")
LINES = {
    "Heir": ("Heir (ours)", "#b3261e", "o"),
    "Vanilla KD": ("vanilla KD (MSE)", "#1f5fa8", "s"),
    "No distillation": ("no distillation", "#777777", "^"),
    "MSE, two stages": ("two-stage MSE", "#b26a00", "v"),
    "GKD, two stages": ("two-stage GKD", "#2e7d32", "D"),
}
SIZE = (7.2, 3.6)  # inches
APART = 1.3  # points of mIoU between two titles


def points() -> tuple[dict[str, dict[int, float]], float]:
    """Row -> steps -> mean mIoU on unseen places in percent over the seeds, and the teacher's."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    teachers: list[float] = []
    for name in ("real_pair_deit", "real_steps"):
        raw: dict[str, Any] = json.loads((RAW / f"{name}.json").read_text(encoding="utf-8"))
        teachers += [100 * teacher["mean_unseen"] for teacher in raw["teachers"]]
        for run in raw["runs"]:
            steps = int(run["group"].split()[0].replace(",", "")) if run["group"] else 1500
            found[run["row"]][steps].append(100 * run["mean_unseen"])
    means = {row: {steps: sum(each) / len(each) for steps, each in sorted(at.items())} for row, at in found.items()}
    return means, sum(teachers) / len(teachers)


def main(out: Path) -> None:
    """One line per method, and the teacher's score."""
    rows, teacher = points()
    figure, axes = plt.subplots(figsize=SIZE, dpi=150)
    axes.axhline(teacher, color="black", linewidth=1, linestyle=":")
    axes.annotate(
        "teacher, frozen DeiT-Tiny", (1, teacher), xycoords=("axes fraction", "data"), ha="right", va="bottom"
    )
    ticks = sorted({steps for at in rows.values() for steps in at})
    height = teacher
    for row, (title, color, marker) in sorted(LINES.items(), key=lambda line: -list(rows[line[0]].values())[-1]):
        axes.plot(list(rows[row]), list(rows[row].values()), color=color, marker=marker)
        steps, score = list(rows[row].items())[-1]
        if steps == ticks[-1]:
            score = height = min(score, height - APART)
        axes.annotate(
            title,
            (steps, score),
            (8, 0 if steps == ticks[-1] else -4),  # beside the lines that go on
            textcoords="offset points",
            color=color,
            fontsize=9,
            va="center",
        )
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{steps:,}" for steps in ticks])
    axes.minorticks_off()
    axes.set_xlabel("steps of the student's encoder")
    axes.set_ylabel("mIoU on unseen places (%)")
    axes.grid(visible=True, alpha=0.3)
    axes.set_xlim(ticks[0] / 1.1, 2.4 * ticks[-1])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    main(Path(__file__).with_name("steps.png"))
