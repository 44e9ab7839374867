"""JPEG files that a GPU decodes, crops and flips (``decode: gpu``); loader processes only read them and draw the crops.

For machines with few CPU cores per GPU. Images, crops and flips are those that the CPU would take; pixels differ by the
rounding of the decoder and of the resampling. Files other than upright JPEGs of three 8-bit channels are decoded by the
loader process and cropped on the GPU. A JPEG that is damaged behind its header ends the run, also with ``skip``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor

from segdistill.config import UserError
from segdistill.data.dataset import Dataset, Encoded
from segdistill.data.decode import open_picture
from segdistill.data.loader import StepBatches
from segdistill.data.transforms import DistillTransform
from segdistill.ops import derive_seed
from segdistill.types import Batch


class EncodedBatches(StepBatches):
    """As :class:`StepBatches`, but item ``step`` holds the files of a batch, each once, and the crops drawn of them."""

    def __init__(self, dataset: Dataset, transform: DistillTransform, **settings: Any) -> None:
        super().__init__(dataset, transform, **settings)
        self.cuts = transform

    def __getitem__(self, step: int) -> dict[str, Any]:  # type: ignore[override]
        files: list[Encoded] = []
        rows, crops, last = [], [], None
        for position, index in zip(self.positions, self.indices(step), strict=True):
            if index != last:
                files.append(self.dataset.encoded(index))
                last = index
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(*self.seed, "sample", step, position))
                crops.append(self.cuts.drawn(files[-1].size))
            rows.append(len(files) - 1)
        contents, names = [torch.from_numpy(file.content) for file in files], [file.name for file in files]
        return {"contents": contents, "names": names, "rows": rows, "crops": crops}


def on_device(items: Iterable[dict[str, Any]], transform: DistillTransform, device: torch.device) -> Iterator[Batch]:
    """The batches of :class:`EncodedBatches` as images (B, 3, H, W) uint8 on ``device``."""
    for item in items:
        pictures = decoded(item["contents"], item["names"], device)
        cuts = zip(item["rows"], item["crops"], strict=True)
        yield {"image": torch.stack([transform.cut(pictures[row], crop) for row, crop in cuts])}


def decoded(contents: Sequence[Tensor], names: Sequence[str], device: torch.device) -> list[Tensor]:
    """(3, H, W) uint8 on ``device`` for every file; a :class:`UserError` that names a damaged one."""
    encoded = [content for content in contents if content.ndim == 1]
    try:
        found = _decode(encoded, device) if encoded else []
    except RuntimeError as error:
        for content, name in zip(contents, names, strict=True):
            if content.ndim == 1:
                open_picture(content.numpy().tobytes(), name)  # names the file if Pillow cannot read it, either
        cause = str(error).strip().splitlines()[0]
        raise UserError(f"the device cannot decode a JPEG file of this batch ({cause}); use decode=cpu") from None
    pictures = iter(found)
    return [next(pictures) if content.ndim == 1 else content.to(device, non_blocking=True) for content in contents]


def _decode(files: list[Tensor], device: torch.device) -> Any:
    """RGB images of JPEG files by torchvision, which has announced that a later release will not decode."""
    decode: Any = getattr(torchvision.io, "decode_jpeg", None)
    if decode is None:
        raise UserError(f"torchvision {torchvision.__version__} does not decode JPEG files any more; use decode=cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode(files, mode=torchvision.io.ImageReadMode.RGB, device=device)
