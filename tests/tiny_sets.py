"""Data sets of a few small images in their official layouts, written by the templates of the catalog."""

from __future__ import annotations

import itertools
import shutil
import string
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segdistill.data.catalog import DATASETS, IGNORE

SIZE = (32, 64)


def picture(seed, size=SIZE):
    """Smooth colours with a little noise: (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 255, size[1])[None, :, None] * rng.uniform(0.3, 1, 3)
    return (ramp + rng.integers(0, 20, (*size, 3))).clip(0, 255).astype(np.uint8)


def numbers(encoding, seed, size=SIZE):
    """A label's raw values, every one of the table among them, and the trainIds that they mean."""
    table = encoding.colors or encoding.ids
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(table), size)
    which.flat[: len(table)] = np.arange(len(table))
    raw = np.array(list(table), np.uint16 if encoding.channel is not None else np.uint8)[which]
    return raw, np.array(list(table.values()), np.uint8)[which]


def save_label(path, raw, encoding):
    """As the official files have it: a number, a colour, or a 16-bit file with the number in one channel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if encoding.channel is not None:
        wide = np.random.default_rng(0).integers(0, 60000, (*raw.shape, 3)).astype(np.uint16)
        wide[..., encoding.channel] = raw
        path.write_bytes(png16(wide))
        return
    image = Image.fromarray(raw)
    if raw.ndim == 2:
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(path)


def png16(values):
    """(H, W, 3) uint16 as PNG, which Pillow cannot write; its rows go through all five filters."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    step, above, out = 2 * channels, np.zeros(rows.shape[1], int), b""
    for number, row in enumerate(rows):
        left, corner = (np.concatenate([np.zeros(step, int), line[:-step]]) for line in (row, above))
        guess = left + above - corner
        near = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)]).argmin(axis=0)
        paeth = np.choose(near, [left, above, corner])
        kind = number % 5
        predicted = [0 * row, left, above, (left + above) // 2, paeth][kind]
        out += bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
        above = row
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(out)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def values(template, number, subset):
    """What the fields of a template are for one image."""
    known = {"number": f"{number:05d}", "subset": subset, "ext": "jpg", "city": "ulm", "sequence": "GOPR1"}
    fields = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return {name: known.get(name, f"a{number}") for name in fields}


def write(name, root, *, layout=0, count=2, subsets=(), size=SIZE, raw=False):
    """Write ``count`` images per split (and subset); returns {image's name: trainIds}."""
    record = DATASETS[name]
    wanted = (record.raw if raw else record.layouts)[layout]
    folder, truth = root / record.folders[0], {}
    splits = itertools.product(wanted.splits.items(), subsets or record.subsets or ("",))
    for seed, ((split, files), subset) in enumerate(splits):
        for number in range(count):
            image = files.images.format(**values(files.images, 10 * seed + number, subset))
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(10 * seed + number, size)).save(folder / image, quality=95)
            if files.listed:
                (folder / files.listed).parent.mkdir(parents=True, exist_ok=True)
                with (folder / files.listed).open("a") as out:
                    out.write(values(files.images, 10 * seed + number, subset)["stem"] + "\n")
            truth[split, image] = None
            if files.labels and wanted.encoding:
                label, truth[split, image] = numbers(wanted.encoding, 10 * seed + number, size)
                save_label(folder / files.labels.format(**values(files.labels, 10 * seed + number, subset)), label,
                           wanted.encoding)  # fmt: skip
    return truth


def pack(folder, archives, above=""):
    """Move the content of ``folder`` into its archives, the first one with the first top folder and so on."""
    tops = sorted((path for path in folder.iterdir()), key=lambda path: ("im" not in path.name.lower(), path.name))
    for number, name in enumerate(archives):
        mine = tops[number:] if number == len(archives) - 1 else tops[number : number + 1]
        files = [path for top in mine for path in sorted(top.rglob("*")) if path.is_file()]
        put_together(folder / name, {above + str(path.relative_to(folder)): path for path in files})
    for top in tops:
        shutil.rmtree(top)


def put_together(archive, files):
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w") as out:
            for name, path in files.items():
                out.write(path, name)
            out.writestr("__MACOSX/leftImg8bit/._x.png", b"rubbish")
    else:
        with tarfile.open(archive, "w:gz" if archive.name.endswith("gz") else "w") as out:
            for name, path in files.items():
                out.add(path, name)


def noisy(sample):
    """A transform without torchvision, whose import takes a fresh process seconds: image, label and two draws."""
    return {
        "image": torch.from_numpy(np.array(sample.image)),
        "label": torch.from_numpy(np.array(sample.label)),
        "noise": torch.rand(2),
    }


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


__all__ = [
    "IGNORE", "SIZE", "noisy", "numbers", "pack", "picture", "png16", "put_together", "save_label", "truncate", "write",
]  # fmt: skip
