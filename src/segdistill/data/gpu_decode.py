"""JPEG files that a GPU decodes, crops and flips (``decode: gpu``); loader processes only read them and draw the crops.

For machines with few CPU cores per GPU. Images, crops and flips are those that the CPU would take; pixels differ by the
rounding of the decoder and of the resampling. Files other than upright JPEGs of three 8-bit channels are decoded by the
loader process and cropped on the GPU. A batch with a damaged file is made by the CPU, which names the file or, with
``on_bad_sample: skip``, replaces it. An intact file that the GPU cannot decode ends the run.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor

from segdistill.config import UserError, first_line
from segdistill.data.archives import BadSample
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
        contents = [torch.from_numpy(file.content) for file in files]
        return {"step": step, "contents": contents, "rows": rows, "crops": crops}

    def on_cpu(self, step: int) -> Batch:
        """The batch of ``step`` as :class:`StepBatches` makes it."""
        return super().__getitem__(step)


def on_device(items: Iterable[dict[str, Any]], batches: EncodedBatches, device: torch.device) -> Iterator[Batch]:
    """The ``items`` of ``batches`` as images (B, 3, H, W) uint8 on ``device``."""
    for item in items:
        try:
            pictures = decoded(item["contents"], device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not any(map(_damaged, item["contents"])):
                cause = first_line(error, 1000).rpartition("/")[-1]  # without the path of a source file
                raise UserError(
                    f"the device cannot decode a JPEG file of this batch ({cause}); use decode=cpu"
                ) from None
            yield batches.on_cpu(item["step"])
            continue
        cuts = zip(item["rows"], item["crops"], strict=True)
        yield {"image": torch.stack([batches.cuts.cut(pictures[row], crop) for row, crop in cuts])}


def decoded(contents: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """(3, H, W) uint8 on ``device`` for every file; torch's RuntimeError for a damaged one."""
    encoded = [content for content in contents if content.ndim == 1]
    pictures = iter(_decode(encoded, device) if encoded else [])
    return [next(pictures) if content.ndim == 1 else content.to(device, non_blocking=True) for content in contents]


def _damaged(content: Tensor) -> bool:
    """Whether Pillow cannot decode a file either; decoded pixels are never damaged."""
    try:
        if content.ndim == 1:
            open_picture(content.numpy().tobytes(), "file")
    except BadSample:
        return True
    return False


def _decode(files: list[Tensor], device: torch.device) -> Any:
    """RGB images of JPEG files by torchvision, which has announced the removal of its decoders."""
    decode: Any = getattr(torchvision.io, "decode_jpeg", None)
    if decode is None:
        raise UserError(f"torchvision {torchvision.__version__} does not decode JPEG files any more; use decode=cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode(files, mode=torchvision.io.ImageReadMode.RGB, device=device)
