"""An open-vocabulary teacher of instances (spec 2): a detector with text prompts, and a segmenter prompted with boxes.

As in the authors' pipeline, a box has the class of the phrase whose tokens it matches, the segmenter makes one mask per
box, and masks do not overlap. Ours: of boxes that overlap almost entirely, the best is kept, whatever their classes,
and everything that is left out is counted. Or SAM 3, which does both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from segdistill.config import Config, UserError
from segdistill.data.pseudo import Origin
from segdistill.models import box_segmenter, text_detector
from segdistill.models import open_vocabulary_parts as parts
from segdistill.models import open_vocabulary_tuning as tuning
from segdistill.models.box_segmenter import BoxSegmenter
from segdistill.models.concepts import Concepts
from segdistill.models.open_vocabulary_tuning import DetectorTuning, SegmenterTuning, Tuned
from segdistill.models.prompts import Prompt
from segdistill.models.proposals import Found, Limits, nothing, paint, pick
from segdistill.models.text_detector import TextDetector
from segdistill.objects import Detections
from segdistill.types import Batch, LossTerms

Words = str | tuple[str, ...]


class OpenVocabularyConfig(Config):
    """Two networks, each a folder or ``hf:<owner>/<name>[@revision]``, and which boxes are kept.

    Defaults are the authors', where they are known. ``prompt``: other words for a class, or several alternatives.
    """

    detector: str = "hf:openmmlab-community/mm_grounding_dino_large_all"
    segmenter: str | None = Field(
        "hf:facebook/sam2.1-hiera-large", description="null for SAM 3, which makes masks itself"
    )
    prompt: dict[str, Words] | None = Field(None, description="class: words, or a list; None: the classes' names")
    threshold: float = Field(0.3, ge=0, lt=1, description="boxes with a lower score are left out")
    most: int = Field(100, ge=1, le=10**4, description="boxes per image")
    suppress: float = Field(0.8, gt=0, le=1, description="IoU above which the worse of two boxes is left out; 1: never")
    largest: float = Field(
        1.0, gt=0, le=1, description="largest share of the image that a box may cover; 1: all, as with the authors"
    )
    score: Literal["detector", "segmenter"] = Field(
        "detector", description="whose score ranks and paints; the authors' AP ranks by the segmenter's predicted IoU"
    )
    licence: str | None = Field(None, description="licence of the weights, where it is not known here")
    licence_accepted: Literal["", "SAM License"] = Field("", description="'SAM License' once you have accepted it")

    @property
    def sources(self) -> dict[str, str]:
        """Part (detector, segmenter) -> its folder or its name on the hub."""
        return {"detector": self.detector} | ({} if self.segmenter is None else {"segmenter": self.segmenter})

    def digests(self) -> dict[str, str]:
        """SHA-256 of every part; a :class:`UserError` if one is missing."""
        return {role: parts.digest_of(each.path) for role, each in self.folders().items()}

    def folders(self) -> dict[str, parts.PartFolder]:
        """The parts on this machine; a :class:`UserError` if one is missing or another network."""
        if self.detector.startswith("hf:facebook/sam3"):
            self.need_licence()  # before anything is downloaded
        kinds = parts.DETECTORS | parts.CONCEPTS
        found = {"detector": parts.find(self.detector, "detector", kinds, text_detector.FILES)}
        if found["detector"].kind in parts.CONCEPTS.values():
            self.need_licence()
            if self.segmenter is not None or self.score != "detector":
                raise UserError("SAM 3 makes its masks itself: set segmenter: null and score: detector")
        elif self.segmenter is None:
            raise UserError("segmenter: the detector finds boxes only; give a segmenter such as "
                            f"{OpenVocabularyConfig.model_fields['segmenter'].default}")  # fmt: skip
        else:
            found["segmenter"] = parts.find(self.segmenter, "segmenter", parts.SEGMENTERS, box_segmenter.FILES)
        return found

    def need_licence(self) -> None:
        """A :class:`UserError` unless the licence of SAM 3 is accepted."""
        if self.licence_accepted != parts.SAM_LICENCE:
            raise UserError(
                f"SAM 3 carries the {parts.SAM_LICENCE}, which also binds pseudo-labels and students made with it: "
                f"read it, then set licence_accepted: '{parts.SAM_LICENCE}'"
            )

    def licences(self) -> dict[str, str]:
        """Licence of each part, by its name; the files need not exist.

        A part whose licence is not known here has the accepted one, or else that of the settings.
        """
        otherwise = self.licence_accepted or self.licence
        return {parts.name_of(each): parts.licence_of(each, otherwise) for each in self.sources.values()}

    def adapted(self, folder: Path) -> OpenVocabularyConfig:
        """The same networks, with the parts that are in ``folder`` in place of their own."""
        found = {role: str(folder / role) for role in self.sources if (folder / role).is_dir()}
        return self.model_copy(update=found)


class OpenVocabulary(nn.Module):
    """The teacher for the given classes. Nothing is trained until :meth:`tune`.

    ``counts``: of every image of the last :meth:`predict` (see ``proposals.COUNTS``).
    """

    def __init__(self, config: OpenVocabularyConfig, classes: Sequence[str]) -> None:
        super().__init__()
        self.config, self.classes = config, tuple(classes)
        self.limits = Limits(config.threshold, config.most, config.suppress, config.largest)
        self.counts: list[Counter[str]] = []
        self.tuned: Tuned | None = None
        self.detector: TextDetector | Concepts
        self.segmenter: BoxSegmenter | None = None
        found = config.folders()
        if "segmenter" in found:
            self.detector = TextDetector(found["detector"], self.classes, config.prompt)
            self.segmenter = BoxSegmenter(found["segmenter"])
        else:
            self.detector = Concepts(found["detector"], self.classes, config.prompt, config.threshold)
        self.eval()

    @property
    def prompt(self) -> Prompt:
        """The phrases that are looked for."""
        return self.detector.prompt

    @property
    def licence(self) -> str:
        """The licence of the weights, which pseudo-labels carry on."""
        if isinstance(self.detector, Concepts):
            return parts.SAM_LICENCE
        found = set(self.config.licences().values())
        return " and ".join(
            sorted(found, key=lambda each: (not each.startswith("unknown"), each))
        )  # unknown ones first

    def origin(self, fingerprint: str = "") -> Origin:
        """What pseudo-labels of this teacher come from; ``fingerprint``: of adapted weights."""
        thresholds = {key: float(value) for key, value in asdict(self.limits).items()}
        return Origin(" + ".join(self.config.licences()), self.licence, self.prompt.text, thresholds, fingerprint)

    @torch.no_grad()
    def predict(self, images: Float[Tensor, "b 3 h w"], size: tuple[int, int] | None = None) -> list[Detections]:
        """Detections of every image of ``size`` (h, w; None: that of ``images``), whose masks do not overlap."""
        size = (images.shape[2], images.shape[3]) if size is None else size
        training = self.training
        self.eval()
        try:
            found = [pick(each, self.prompt, self.limits) for each in self.detector(images)]
            detections = self._painted(images, found, size)
        finally:
            self.train(training)
        self.counts = [each.counts for each in found]
        return detections

    def _painted(self, images: Tensor, found: list[Found], size: tuple[int, int]) -> list[Detections]:
        levels = None
        detections = []
        for row, each in enumerate(found):
            masks, scores = each.masks, each.scores
            if len(each.boxes) and self.segmenter is not None:
                levels = self.segmenter.embed(images) if levels is None else levels  # once, and only if it is needed
                masks, quality = self.segmenter.masks(levels, row, each.boxes)
                scores = quality if self.config.score == "segmenter" else scores
            detections.append(nothing(size) if masks is None else paint(each, masks, scores, size))
        return detections

    def tune(self, part: Tuned | None) -> None:
        """Choose what is trained: the detector without its text encoder; the segmenter's prompt encoder and mask
        decoder; or nothing (None).
        """
        if part is not None and isinstance(self.detector, Concepts):
            raise UserError("SAM 3 is used as it is: adapt a detector and a segmenter instead")
        self.tuned = part
        tuning.select(self.detector, self.segmenter, part)
        self.train(self.training)

    def train(self, mode: bool = True) -> OpenVocabulary:
        """Like ``nn.Module.train``, but what is not trained stays in evaluation mode."""
        super().train(mode)
        tuning.set_mode(self.detector, self.segmenter, self.tuned if mode else None)
        return self

    def groups(self, settings: DetectorTuning | SegmenterTuning) -> list[dict[str, Any]]:
        """Parameter groups of what is trained, each with ``params``, ``weight_decay`` and ``lr_scale``."""
        if isinstance(settings, DetectorTuning):
            assert isinstance(self.detector, TextDetector) and self.tuned == "detector"
            return tuning.detector_groups(self.detector, settings)
        assert self.segmenter is not None and self.tuned == "segmenter"
        return tuning.segmenter_groups(self.segmenter, settings)

    def detector_loss(self, batch: Batch, settings: DetectorTuning) -> LossTerms:
        """``class``, ``box`` and ``giou`` on a batch with objects (see ``data/targets.py``)."""
        assert isinstance(self.detector, TextDetector)
        return tuning.detector_loss(self.detector, batch, auxiliary=settings.auxiliary)

    def segmenter_loss(self, batch: Batch, settings: SegmenterTuning) -> LossTerms:
        """``focal`` and ``dice`` of the masks for the annotated boxes of a batch."""
        assert self.segmenter is not None
        return tuning.segmenter_loss(self.segmenter, batch, settings)
