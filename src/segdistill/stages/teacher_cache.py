"""A disk cache of teacher tokens: a fixed number of augmented views of every image, each with the teacher's features.

The tokens of a flipped image are not the flipped tokens, so every view has tokens of its own. They depend only on the
images, the augmentation, the teacher and the method's taps, so methods, students and seeds share them. A cache is a
folder of shards, each a few ``.npy`` files with digests, written atomically: building it resumes after an interruption,
and a damaged shard is reported and rebuilt. This is our addition; no paper has it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from segdistill.config import Config, UserError
from segdistill.data.dataset import Dataset, Progress, Sample
from segdistill.data.loader import loaded
from segdistill.data.rendered import cache_folder
from segdistill.encoders import Encoder
from segdistill.files import is_whole, sweep, write_atomic, write_sealed
from segdistill.ops import derive_seed
from segdistill.stages.views import teacher_views
from segdistill.types import Batch, Features, Views

FORMAT = 1
SHARD = 64 * 2**20
"""Approximate size of a shard in bytes."""

_TYPES: dict[str, Any] = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}


class CacheConfig(Config):
    """Settings of the teacher cache."""

    views: int = Field(4, ge=1, le=1000, description="fixed augmented views per image")
    dtype: Literal["fp32", "fp16", "int8"] = Field(
        "fp16", description="number format of the tokens; int8: with a scale per token"
    )


@dataclass(frozen=True)
class Shape:
    """Shapes of the stored arrays per view: image size, and the teacher's token grid and width per tap."""

    size: tuple[int, int]
    grids: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    cls: int | None

    def nbytes(self, dtype: str) -> int:
        """Size of one view in bytes."""
        cells = [height * width for height, width in self.grids]
        scale = 4 if dtype == "int8" else 0
        tokens = sum(
            n * (width * np.dtype(_TYPES[dtype]).itemsize + scale) for n, width in zip(cells, self.widths, strict=True)
        )
        return 3 * self.size[0] * self.size[1] + tokens + 4 * (self.cls or 0)


class TeacherCache:
    """The views of a dataset, as samples for batches. Pickling it transfers the folder's path, not the arrays."""

    def __init__(self, folder: Path, config: CacheConfig, images: int, shape: Shape, per_shard: int) -> None:
        self.folder, self.config, self.images, self.shape, self.per_shard = folder, config, images, shape, per_shard
        self._open: dict[int, dict[str, NDArray[Any]]] = {}

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.images * self.config.views // self.per_shard)

    def rows(self, shard: int) -> range:
        """The indices of the views in a shard, counted image by image."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.images * self.config.views))

    def path(self, shard: int, name: str) -> Path:
        """The file of one array."""
        return self.folder / f"{shard:05d}.{name}.npy"

    def names(self) -> list[str]:
        """The names of the arrays of a shard."""
        taps = range(len(self.shape.widths))
        found = ["image", *(f"tokens{tap}" for tap in taps)]
        if self.config.dtype == "int8":
            found += [f"scale{tap}" for tap in taps]
        return found if self.shape.cls is None else [*found, "cls"]

    def usable(self, shard: int) -> bool:
        """Whether a shard exists and is intact; a damaged one is reported."""
        paths = [self.path(shard, name) for name in self.names()]
        if not all(path.is_file() for path in paths):
            return False
        damaged = [path for path in paths if not is_whole(path)]
        for path in damaged:
            logging.getLogger(__name__).warning("warning: damaged teacher cache %s: rebuilding the shard", path)
        return not damaged

    def write(self, shard: int, images: Tensor, features: Features) -> None:
        """Write a shard: images (n, 3, H, W) uint8 and the teacher's features of them."""
        arrays: dict[str, NDArray[Any]] = {"image": images.numpy()}
        for tap, tokens in enumerate(features.tokens):
            values = tokens.float().cpu().numpy()
            if self.config.dtype == "int8":
                scale = np.maximum(np.abs(values).max(axis=-1, keepdims=True), np.float32(1e-12)) / 127
                arrays[f"scale{tap}"], values = scale.astype(np.float32), np.rint(values / scale)
            arrays[f"tokens{tap}"] = values.astype(_TYPES[self.config.dtype])
        if features.cls is not None:
            arrays["cls"] = features.cls.float().cpu().numpy()
        try:
            for name, array in arrays.items():
                write_sealed(self.path(shard, name), lambda file, array=array: np.save(file, array, allow_pickle=False))
        except OSError as error:
            raise UserError(
                f"cannot write the teacher cache {self.folder}: {error.strerror}; free space, set SEGDISTILL_CACHE, or "
                "use fewer views"
            ) from None

    def __call__(self, sample: Sample) -> Batch:
        """A view of a sample of :class:`Numbers`, drawn with torch's global generator."""
        return self.view(int(sample.name), int(torch.randint(self.config.views, ()).item()))

    def view(self, image: int, view: int) -> Batch:
        """``image`` (3, H, W) uint8 and the teacher's arrays of one view."""
        shard, row = divmod(image * self.config.views + view, self.per_shard)
        if shard not in self._open:
            paths = {name: self.path(shard, name) for name in self.names()}
            self._open[shard] = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}
        found = {name: torch.from_numpy(np.array(array[row])) for name, array in self._open[shard].items()}
        return {name if name == "image" else f"teacher.{name}": value for name, value in found.items()}

    def views_of(self, batch: Batch) -> Views:
        """The teacher's tokens in a batch, in float32."""
        tokens = []
        for tap in range(len(self.shape.widths)):
            values = batch[f"teacher.tokens{tap}"].float()
            tokens.append(values * batch[f"teacher.scale{tap}"] if self.config.dtype == "int8" else values)
        cls = None if self.shape.cls is None else batch["teacher.cls"]
        return Views(Features(tuple(tokens), cls, self.shape.grids[-1], self.shape.grids))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}


class Numbers(Dataset):
    """A dataset of image indices instead of images, for :class:`segdistill.data.loader.StepBatches`."""

    def __init__(self, dataset: Dataset) -> None:
        self.names, self.colors, self.sizes, self.weights = (
            dataset.names,
            dataset.colors,
            dataset.sizes,
            dataset.weights,
        )
        self.length = len(dataset)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return Sample(np.empty((0, 0, 3), np.uint8), None, "", str(index))


class _Images(TorchDataset[Tensor]):
    """The views of whole shards, (n, 3, H, W) uint8; the randomness of a view is a function of its index."""

    def __init__(
        self, dataset: Dataset, transform: Callable[[Sample], Batch], cache: TeacherCache, shards: Sequence[int]
    ) -> None:
        self.dataset, self.transform, self.cache, self.shards = dataset, transform, cache, list(shards)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> Tensor:
        images = []
        for row in self.cache.rows(self.shards[number]):
            image, view = divmod(row, self.cache.config.views)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed("teacher cache", image, view))
                images.append(self.transform(self.dataset[image])["image"])
        return torch.stack(images)


def shape_of(teacher: Encoder, taps: tuple[int, ...], size: tuple[int, int]) -> Shape:
    """The shapes of the teacher's features for images of ``size``, found by a forward pass on zeros."""
    device = next(teacher.parameters()).device
    with torch.no_grad():
        features = teacher(torch.zeros(1, 3, *size, device=device), taps)
    widths = tuple(tokens.shape[-1] for tokens in features.tokens)
    return Shape(size, features.grids, widths, None if features.cls is None else features.cls.shape[-1])


def open_cache(
    config: CacheConfig,
    teacher: Encoder,
    taps: tuple[int, ...],
    dataset: Dataset,
    transform: Callable[[Sample], Batch],
    facts: Any,
    *,
    size: tuple[int, int],
    batch: int,
    workers: int,
    fabric: Fabric,
    progress: Progress,
) -> TeacherCache:
    """Open the cache of these views and build missing shards; every process builds its share.

    ``facts`` identifies the images and the augmentation. The teacher runs in the precision of ``fabric`` on ``batch``
    images at a time.
    """
    shape = shape_of(teacher, taps, size)
    listing = hashlib.sha256("\n".join(dataset.listing()).encode()).hexdigest()
    per_shard = max(1, SHARD // shape.nbytes(config.dtype))
    known = {
        "format": FORMAT, "per_shard": per_shard,
        "teacher": _digest(teacher), "taps": taps, "size": size, "images": listing, "facts": facts,
        "views": config.views, "dtype": config.dtype, "precision": str(fabric.strategy.precision.precision),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "teacher" / key[:32]
    cache = TeacherCache(folder, config, len(dataset), shape, per_shard)
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        text = json.dumps(known, indent=1, sort_keys=True)
        write_atomic(folder / "what.json", lambda file: file.write(text.encode()))
    fabric.barrier()
    mine = [shard for shard in range(fabric.global_rank, cache.shards, fabric.world_size) if not cache.usable(shard)]
    if mine:
        network = cast(nn.Module, teacher).to(fabric.device)
        found = loaded(_Images(dataset, transform, cache, mine), range(len(mine)), workers, ahead=1)
        for done, (shard, images) in enumerate(zip(mine, found, strict=True), start=1):
            cache.write(shard, images, _features(cast(Encoder, network), images, taps, batch, fabric))
            progress("teacher cache", done, len(mine))
    fabric.barrier()
    return cache


def _features(teacher: Encoder, images: Tensor, taps: tuple[int, ...], batch: int, fabric: Fabric) -> Features:
    """The teacher's features of 8-bit images, in float32 on the CPU."""
    parts = []
    for part in images.split(batch):
        with fabric.autocast():
            found = teacher_views(teacher, part.to(fabric.device).float() / 255.0, taps).plain
        cls = None if found.cls is None else found.cls.float().cpu()
        parts.append(Features(tuple(tokens.float().cpu() for tokens in found.tokens), cls, found.grid, found.grids))
    tokens = tuple(torch.cat(each) for each in zip(*(part.tokens for part in parts), strict=True))
    cls = None if parts[0].cls is None else torch.cat([cast(Tensor, part.cls) for part in parts])
    return Features(tokens, cls, parts[0].grid, parts[0].grids)


def _digest(teacher: Encoder) -> str:
    """SHA-256 of the teacher's tensors and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(teacher.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
