"""Predictions for many images as files; :mod:`segdistill.inference.writers` says which.

Files carry a mark, the hash of the model, of the image's content and of what was asked for: an image is skipped where
its files are there and carry the same mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from segdistill.config import UserError
from segdistill.data.archives import BadSample
from segdistill.inference.inputs import find_inputs, items_of, output_names, reject, stem_of
from segdistill.inference.model import GROUP, Model, ObjectModel
from segdistill.inference.writers import Held, Wanted, writer_of
from segdistill.runlog import Quiet, Watcher

__all__ = ["Outcome", "Wanted", "predict_to_folder"]


@dataclass
class Outcome:
    """What became of the images."""

    made: int = 0
    kept: int = 0  # finished before
    bad: list[str] = field(default_factory=list)  # one line for each that could not be read


def predict_to_folder(
    model: Model | ObjectModel,
    words: Sequence[str | Path],
    out: Path,
    wanted: Wanted | None = None,
    watcher: Watcher | None = None,
) -> Outcome:
    """Write the predictions for all that ``words`` name (see :mod:`segdistill.inference.inputs`) below ``out``.

    Raises :class:`segdistill.data.archives.BadSample` for the first image that cannot be read, unless they are skipped.
    """
    wanted, watcher = wanted or Wanted(), watcher or Quiet()
    inputs = find_inputs(words, every=wanted.every)
    names = output_names(inputs)
    total = sum(each.count or 0 for each in inputs)
    writer, outcome = writer_of(model, out, wanted), Outcome()
    held: list[Held] = []
    bad = outcome.bad if wanted.skip_bad else None

    def flush() -> None:
        if held:
            writer.write(held)
            outcome.made += len(held)
            held.clear()
            watcher.work("predicting", done(), max(total, done()))

    def done() -> int:
        return outcome.made + outcome.kept + len(outcome.bad)

    for item in items_of(inputs, bad):
        name = names.get(item.where) or stem_of(item.name)
        try:
            loaded = item.load()
            mark = writer.mark(loaded.digest)
            if writer.finished(name, mark):
                writer.names.append(name)
                outcome.kept += 1
                watcher.work("predicting", done(), max(total, done()))
                continue
            image = torch.from_numpy(loaded.pixels()).permute(2, 0, 1)
        except BadSample as error:
            if bad is None:
                flush()
            reject(error, bad)
            continue
        if held and (held[0].image.shape != image.shape or _full(held, image, wanted.batch)):
            flush()
        held.append(Held(name, item.name, mark, image))
        writer.names.append(name)
    flush()
    if not done():
        raise UserError("the inputs have no images or frames")
    writer.close()
    return outcome


def _full(held: list[Held], image: torch.Tensor, batch: int) -> bool:
    pixels = image.shape[1] * image.shape[2]
    return len(held) >= batch or (len(held) + 1) * pixels > GROUP
