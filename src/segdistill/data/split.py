"""Divides the images of a split into labelled and unlabelled ones, as two list files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from segdistill.config import UserError, parse
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.own import own_name
from segdistill.files import write_bytes

PARTS = {"labelled": False, "unlabelled": True}
"""Name of a list -> whether it is the rest."""


def write_split(
    name: str,
    out: Path,
    *,
    fraction: str | float | None = None,
    seed: int = 0,
    listed: Path | None = None,
    split: str = "train",
    root: Path | None = None,
) -> Iterator[tuple[Path, int]]:
    """Write ``out/NAME-SPLIT-labelled.txt`` and ``-unlabelled.txt``, one path per line: (file, number of images).

    ``name``: a data set or a ``dataset.yaml``. Labelled is a seeded ``fraction`` or the images that ``listed`` names;
    together the two lists have every image of the split once.
    """
    if (fraction is None) == (listed is None):
        raise UserError("give either the fraction of labelled images, such as 1/10, or a list of them")
    own = own_name(name)
    domain = own or name
    source = FilesSource(root=root, sets={own: Path(name)} if own else {})
    values = {"domains": [domain], "split": split, "fraction": fraction, "fraction_seed": seed, "list": listed}
    found = {}
    for part, rest in PARTS.items():
        data = source.open(parse(DataSelection, values | {"rest": rest}))
        found[part] = [line.removeprefix(f"{domain}/") for line in data.listing()]
    for part, lines in found.items():
        target = out / f"{domain.replace(':', '_')}-{split}-{part}.txt"
        write_bytes(target, "".join(f"{line}\n" for line in lines).encode())
        yield target, len(lines)
