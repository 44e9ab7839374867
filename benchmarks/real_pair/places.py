"""Leads of a published table over places: its unseen places are drawn with replacement.

    uv run python benchmarks/real_pair/places.py docs/raw/real_pair_deit.json Heir

The table has scores by place and seed, not by image. So the places are drawn, but not the images in them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from segdistill.metrics.base import RESAMPLES, interval, redrawn_mean


def main() -> None:
    """Prints one line per row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("row", help="the row that leads")
    options = parser.parse_args()
    table = json.loads(options.table.read_text())
    places, primary = table["unseen"], table["primary"]
    seeds: dict[str, list[list[float]]] = defaultdict(list)
    for run in table["runs"]:
        seeds[run["row"]].append([run["domains"][place][primary] for place in places])
    scores = {row: 100 * np.mean(values, axis=0) for row, values in seeds.items()}
    for row, values in scores.items():
        if row != options.row:
            gaps = scores[options.row] - values
            low, high = interval(redrawn_mean(np.tile(gaps[:, None], RESAMPLES))) or (np.nan, np.nan)
            by_place = ", ".join(f"{place} {gap:+.1f}" for place, gap in zip(places, gaps, strict=True))
            print(f"{options.row} - {row}: {gaps.mean():+.1f} [{low:.1f}, {high:.1f}]; {by_place}")


if __name__ == "__main__":
    main()
