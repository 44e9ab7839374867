"""A disk cache of teacher tokens: a fixed number of augmented views of every image, each with the teacher's features.

The tokens of a flipped image are not the flipped tokens, so every view has tokens of its own. They depend only on the
images, the augmentation, the teacher and the method's taps, so methods, students and seeds share them. Views of a task
stage also have their labels, and the logits of the teacher's head if the method reads them. A cache is a folder of
shards, each a few ``.npy`` files with digests, written atomically: building it resumes after an interruption,
and a damaged shard is reported and rebuilt. This is our addition; no paper has it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from segdistill.config import Config, UserError
from segdistill.data.dataset import Dataset, Progress, Sample
from segdistill.data.loader import loaded, stacked
from segdistill.data.rendered import cache_folder
from segdistill.encoders import Encoder
from segdistill.files import facts_digest, is_whole, sweep, write_bytes, write_sealed
from segdistill.heads import Head
from segdistill.ops import derive_seed, state_digest
from segdistill.stages.views import joined_views, teacher_views
from segdistill.types import Batch, Features, Views

if TYPE_CHECKING:  # importing lightning takes seconds
    from lightning.fabric import Fabric

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
    """Shapes of the stored arrays per view: image size, the teacher's token grid and width per tap, its logits."""

    size: tuple[int, int]
    grid: tuple[int, int]  # of the teacher's last tap
    grids: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    cls: int | None
    logits: tuple[int, int, int] | None = None  # (K, h, w)
    labelled: bool = False

    def nbytes(self, dtype: str) -> int:
        """Size of one view in bytes."""
        cells = [height * width for height, width in self.grids]
        scale = 4 if dtype == "int8" else 0
        tokens = sum(
            n * (width * np.dtype(_TYPES[dtype]).itemsize + scale) for n, width in zip(cells, self.widths, strict=True)
        )
        scores = 0 if self.logits is None else math.prod(self.logits) * (4 if dtype == "fp32" else 2)
        return (3 + self.labelled) * self.size[0] * self.size[1] + tokens + 4 * (self.cls or 0) + scores


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
        more = {
            "cls": self.shape.cls is not None,
            "logits": self.shape.logits is not None,
            "label": self.shape.labelled,
        }
        return [*found, *(name for name, kept in more.items() if kept)]

    def usable(self, shard: int) -> bool:
        """Whether a shard exists and is intact; a damaged one is reported."""
        paths = [self.path(shard, name) for name in self.names()]
        if not all(path.is_file() for path in paths):
            return False
        damaged = [path for path in paths if not is_whole(path)]
        for path in damaged:
            logging.getLogger(__name__).warning("warning: damaged teacher cache %s: rebuilding the shard", path)
        return not damaged

    def write(self, shard: int, batch: Batch, views: Views) -> None:
        """Write a shard: ``image`` (n, 3, H, W) uint8, ``label`` (n, H, W) if stored, and the teacher's views."""
        arrays: dict[str, NDArray[Any]] = {"image": batch["image"].numpy()}
        if self.shape.labelled:
            arrays["label"] = batch["label"].numpy().astype(np.uint8)
        if views.logits is not None:
            wide = np.float32 if self.config.dtype == "fp32" else np.float16
            arrays["logits"] = views.logits.float().cpu().numpy().astype(wide)
        features = views.plain
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
        """``image`` (3, H, W) uint8, ``label`` (H, W) int64 if stored, and the teacher's arrays of one view."""
        shard, row = divmod(image * self.config.views + view, self.per_shard)
        if shard not in self._open:
            paths = {name: self.path(shard, name) for name in self.names()}
            self._open[shard] = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}
        found = {name: torch.from_numpy(np.array(array[row])) for name, array in self._open[shard].items()}
        label = {"label": found.pop("label").long()} if self.shape.labelled else {}
        return {name if name == "image" else f"teacher.{name}": value for name, value in found.items()} | label

    def views_of(self, batch: Batch, prefix: str = "") -> Views:
        """The teacher's tokens and logits in a batch, in float32; ``prefix`` of their names in it."""
        tokens = []
        for tap in range(len(self.shape.widths)):
            values = batch[f"{prefix}teacher.tokens{tap}"].float()
            tokens.append(values * batch[f"{prefix}teacher.scale{tap}"] if self.config.dtype == "int8" else values)
        cls = None if self.shape.cls is None else batch[f"{prefix}teacher.cls"]
        logits = None if self.shape.logits is None else batch[f"{prefix}teacher.logits"].float()
        return Views(Features(tuple(tokens), cls, self.shape.grid, self.shape.grids), logits=logits)

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


class _Images(TorchDataset[Batch]):
    """The views of whole shards: ``image`` (n, 3, H, W) uint8, and ``label`` (n, H, W) if they are labelled.

    The randomness of a view is a function of its index.
    """

    def __init__(
        self, dataset: Dataset, transform: Callable[[Sample], Batch], cache: TeacherCache, shards: Sequence[int]
    ) -> None:
        self.dataset, self.transform, self.cache, self.shards = dataset, transform, cache, list(shards)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: int) -> Batch:
        samples = []
        for row in self.cache.rows(self.shards[number]):
            image, view = divmod(row, self.cache.config.views)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed("teacher cache", image, view))
                samples.append(self.transform(self.dataset[image]))
        return stacked(samples)


def shape_of(
    teacher: Encoder, taps: tuple[int, ...], size: tuple[int, int], head: Head | None = None, *, labelled: bool = False
) -> Shape:
    """The shapes of the teacher's features, and of its ``head``'s logits, for images of ``size``, found by a forward
    pass on zeros.
    """
    views = teacher_views(teacher, torch.zeros(1, 3, *size, device=next(teacher.parameters()).device), taps, head)
    features, logits = views.plain, None
    if views.logits is not None:
        classes, high, wide = views.logits.shape[1:]
        logits = (classes, high, wide)
    widths = tuple(tokens.shape[-1] for tokens in features.tokens)
    cls = None if features.cls is None else features.cls.shape[-1]
    return Shape(size, features.grid, features.grids, widths, cls, logits, labelled)


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
    head: Head | None = None,
    labelled: bool = False,
) -> TeacherCache:
    """Open the cache of these views and build missing shards; every process builds its share.

    ``facts`` identifies the images and the augmentation. The teacher runs in the precision of ``fabric`` on ``batch``
    images at a time. With its ``head`` the logits are stored, too; with ``labelled`` the labels.
    """
    shape = shape_of(teacher, taps, size, head, labelled=labelled)
    listing = hashlib.sha256("\n".join(dataset.listing()).encode()).hexdigest()
    per_shard = max(1, SHARD // shape.nbytes(config.dtype))
    known = {
        "format": FORMAT, "per_shard": per_shard,
        "teacher": state_digest(teacher), "taps": taps, "size": size, "images": listing, "facts": facts,
        "views": config.views, "dtype": config.dtype, "precision": str(fabric.strategy.precision.precision),
    }  # fmt: skip
    if head is not None or labelled:
        known |= {"head": None if head is None else state_digest(head), "labelled": labelled}
    key = facts_digest(known)
    folder = cache_folder() / "teacher" / key[:32]
    cache = TeacherCache(folder, config, len(dataset), shape, per_shard)
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        text = json.dumps(known, indent=1, sort_keys=True)
        write_bytes(folder / "what.json", text.encode())
    fabric.barrier()
    mine = [shard for shard in range(fabric.global_rank, cache.shards, fabric.world_size) if not cache.usable(shard)]
    if mine:
        network = cast(nn.Module, teacher).to(fabric.device)
        if head is not None:
            head.to(fabric.device)
        found = loaded(_Images(dataset, transform, cache, mine), range(len(mine)), workers, ahead=1)
        for done, (shard, samples) in enumerate(zip(mine, found, strict=True), start=1):
            cache.write(shard, samples, _views(cast(Encoder, network), samples["image"], taps, head, batch, fabric))
            progress("teacher cache", done, len(mine))
    fabric.barrier()
    return cache


def _views(
    teacher: Encoder, images: Tensor, taps: tuple[int, ...], head: Head | None, batch: int, fabric: Fabric
) -> Views:
    """The teacher's views of 8-bit images, in float32 on the CPU."""
    parts: list[Views] = []
    for part in images.split(batch):
        with fabric.autocast():
            found = teacher_views(teacher, part.to(fabric.device).float() / 255.0, taps, head)
        cls = None if found.plain.cls is None else found.plain.cls.float().cpu()
        tokens = tuple(tokens.float().cpu() for tokens in found.plain.tokens)
        logits = None if found.logits is None else found.logits.float().cpu()
        parts.append(Views(Features(tokens, cls, found.plain.grid, found.plain.grids), logits=logits))
    return joined_views(parts)
