"""Networks that label images with objects: an instance segmenter of ours, or an open-vocabulary teacher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from segdistill.data.pseudo import Origin
from segdistill.models import InstanceSegmenter, View
from segdistill.models.open_vocabulary import OpenVocabulary, OpenVocabularyConfig
from segdistill.models.prompts import Prompt
from segdistill.models.proposals import unmatched
from segdistill.objects import Detections


@dataclass(frozen=True)
class Labeller:
    """A network, where its pseudo-labels come from, and which are kept: ``score`` and ``least`` visible pixels."""

    network: InstanceSegmenter | OpenVocabulary
    origin: Origin
    score: float
    least: int

    def label(self, image: NDArray[np.uint8], view: View) -> tuple[Detections, dict[str, int]]:
        """Detections of the image (H, W, 3), whose masks do not overlap, and counts of what was found and left out.

        An open-vocabulary teacher resizes images itself and needs no ``view``.
        """
        pixels = torch.tensor(image).permute(2, 0, 1)[None].to(next(self.network.parameters()).device)
        size, counts = (image.shape[0], image.shape[1]), {}
        if isinstance(self.network, OpenVocabulary):
            found = self.network.predict(pixels.float() / 255, size)[0]
            counts = dict(self.network.counts[0])
        else:
            found = self.network.predict(view.prepare(pixels), size)[0]
        found = found.above(self.score)
        visible = found.visible(least=self.least)
        return visible, counts | {"found": len(found), "hidden": len(found) - len(visible)}

    @property
    def prompt(self) -> Prompt | None:
        """The words that an open-vocabulary teacher looks for."""
        return self.network.prompt if isinstance(self.network, OpenVocabulary) else None

    def unseen(self, counts: Mapping[str, int]) -> list[str]:
        """One warning for each class of which no box matched any words, given the sums of :meth:`label`'s counts."""
        found = {} if self.prompt is None else never_matched(counts, self.prompt)
        return [
            f"no box matched the words of class '{name}' ({', '.join(words)}): give it other words "
            f"(prompt: {{{name}: ...}}), or lower the threshold"
            for name, words in found.items()
        ]


def own_labeller(network: InstanceSegmenter, origin: Origin, *, score: float, least: int) -> Labeller:
    """A segmenter of ours."""
    origin = replace(origin, thresholds={**origin.thresholds, "score": score, "pixels": least})
    return Labeller(network, origin, score, least)


def open_labeller(
    network: OpenVocabulary,
    config: OpenVocabularyConfig,
    fingerprint: str,
    *,
    score: float,
    least: int,
    adapted: str | None = None,
) -> Labeller:
    """An open-vocabulary teacher; ``config`` names the networks that the stage ``adapted`` started from."""
    origin = network.origin(fingerprint)
    names = " + ".join(config.licences())
    origin = replace(
        origin,
        teacher=names if adapted is None else f"{names}, adapted by {adapted}",
        thresholds={**origin.thresholds, "score": score, "pixels": least},
    )
    return Labeller(network, origin, score, least)


def never_matched(counts: Mapping[str, int], prompt: Prompt) -> dict[str, list[str]]:
    """Class -> its words, for every class of which no box matched any."""
    missing = set(unmatched(Counter(counts), prompt))
    words = {name: [each.words for each in prompt.phrases if each.kind == kind]
             for kind, name in enumerate(prompt.classes)}  # fmt: skip
    return {name: own for name, own in words.items() if missing.issuperset(own)}
