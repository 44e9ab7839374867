"""LabelMeFacade by place: one data set per place, and the proxy photographs.

    uv run python benchmarks/real_pair/data.py FACADES OUT --proxy PHOTOGRAPHS ...

``FACADES`` is the folder of LabelMeFacade (``images``, ``labels``; github.com/cvjena/labelmefacade), whose file names
have the place. Boston and Cambridge are the source, Spain without Barcelona validates, and Mallorca, Barcelona by day,
Barcelona by night, and London with Paris are unseen. No image is copied: ``OUT`` holds links, lists and descriptions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from segdistill.files import write_atomic

CLASSES = ("building", "car", "door", "pavement", "road", "sky", "vegetation", "window")
COLORS = (
    (128, 64, 0), (128, 0, 128), (128, 128, 0), (128, 128, 128), (0, 0, 128), (0, 128, 128), (0, 128, 0), (0, 0, 255)
)  # fmt: skip
PLACES = {  # name: words of which one is in the file name; the first place that fits has the image
    "night": ("night",),
    "barcelona": ("barcelona",),
    "mallorca": ("mallorca", "palma_"),
    "london_paris": ("london", "paris"),
    "spain": ("coruna", "galicia", "gerona", "madrid", "valladolid", "laredo", "benavente"),
    "boston": ("boston", "cambridge", "harvard"),
}
SOURCE, HELD_OUT = "boston", 4  # every fourth image of the source is not trained on


def place(name: str) -> str | None:
    """The place of an image by its file name."""
    return next((place for place, words in PLACES.items() if any(word in name for word in words)), None)


def write(path: Path, text: str) -> None:
    """A small text file."""
    write_atomic(path, lambda file: file.write(text.encode()))


def describe(folder: Path, values: dict[str, object]) -> None:
    """A ``dataset.yaml``."""
    write(folder / "dataset.yaml", yaml.safe_dump(values, sort_keys=False))


def link(path: Path, to: Path) -> None:
    """A link, made anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(to.resolve())


def facades(root: Path, out: Path) -> dict[str, int]:
    """A data set per place; the number of images of each."""
    names: dict[str, list[str]] = {place: [] for place in PLACES}
    for path in sorted((root / "images").glob("*.jpg")):
        found = place(path.stem)
        if found is not None:
            names[found].append(path.stem)
    for found, stems in names.items():
        folder = out / found
        for part in ("images", "labels"):
            link(folder / part, root / part)
        train = [stem for number, stem in enumerate(stems) if found == SOURCE and number % HELD_OUT]
        lists = {"train": train, "val": [stem for stem in stems if stem not in set(train)]}
        lists = {split: stems for split, stems in lists.items() if stems}
        for split, stems in lists.items():
            write(folder / f"{split}.txt", "".join(f"{stem}\n" for stem in stems))
        splits = {split: f"{split}.txt" for split in lists}
        describe(folder, {"classes": list(CLASSES), "colors": [list(color) for color in COLORS], "splits": splits,
                          "licence": "non-commercial, research"})  # fmt: skip
    return {found: len(stems) for found, stems in names.items()}


def proxy(roots: Sequence[Path], out: Path) -> None:
    """One data set without labels of all photographs."""
    for root in roots:
        link(out / "proxy" / "images" / "photographs" / root.name, root)
    describe(out / "proxy", {"labels": None, "splits": {"pretrain": "photographs"}, "licence": "research"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facades", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--proxy", type=Path, nargs="+", default=[], help="folders of photographs")
    options = parser.parse_args()
    for name, count in facades(options.facades, options.out).items():
        print(f"{name}: {count} images")
    proxy(options.proxy, options.out)
