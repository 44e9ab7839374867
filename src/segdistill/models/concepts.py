"""SAM 3 of transformers: boxes, masks and scores for one phrase at a time, with one network.

Carion et al., SAM 3: Segment Anything with Concepts (arXiv 2511.16719). Its weights carry the SAM License, which binds
what is made from them. Legend: B batch, Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segdistill.models.open_vocabulary_parts import PROCESSOR, TOKENIZER, PartFolder, load_network, load_processor
from segdistill.models.prompts import Prompt, Words, build_phrases
from segdistill.models.proposals import Proposals

ROLE = "detector"
FILES = (TOKENIZER, PROCESSOR)
LENGTH = 32
"""Tokens of a phrase that the network reads, with the first and last special token."""


class Concepts(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> boxes with masks; a query has the score of its phrase's class only."""

    def __init__(self, folder: PartFolder, classes: Sequence[str], words: Words | None, threshold: float) -> None:
        super().__init__()
        self.tokenizer = load_processor(folder, ROLE, "AutoTokenizer")
        self.processor = load_processor(folder, ROLE, "Sam3ImageProcessor")
        self.network: Any = load_network(folder, ROLE)
        self.threshold = threshold
        phrases = build_phrases(classes, words, self._tokens, limit=LENGTH)
        self.prompt = Prompt(tuple(classes), phrases, ())

    def _tokens(self, words: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(words)["input_ids"])

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Proposals]:
        """The proposals of every image. Queries below the threshold are left out at once: their masks take memory."""
        pixels = self.processor(
            images=list(images), do_rescale=False, input_data_format="channels_first", return_tensors="pt"
        )["pixel_values"]
        seen = self.network.get_vision_features(pixels.to(images.device))
        parts: list[list[Proposals]] = [[] for _ in images]
        for number, phrase in enumerate(self.prompt.phrases):
            output = self.network(vision_embeds=seen, **self._text(phrase.words, len(images)))
            scores = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()  # (B, Q)
            for row, part in enumerate(parts):
                part.append(self._kept(number, scores[row], output.pred_boxes[row], output.pred_masks[row]))
        return [_joined(part) for part in parts]

    def _text(self, words: str, count: int) -> dict[str, Tensor]:
        found = self.tokenizer(words, return_tensors="pt", padding="max_length", max_length=LENGTH)
        return {key: found[key].to(self.network.device).expand(count, -1) for key in ("input_ids", "attention_mask")}

    def _kept(
        self, number: int, scores: Float[Tensor, " q"], boxes: Float[Tensor, "q 4"], masks: Float[Tensor, "q _h _w"]
    ) -> Proposals:
        kept = scores > self.threshold
        values = scores.new_zeros((int(kept.sum()), len(self.prompt.classes)))
        values[:, self.prompt.phrases[number].kind] = scores[kept]
        numbers = torch.full_like(values, number, dtype=torch.long)
        return Proposals(boxes[kept].clamp(0, 1), values, numbers, masks[kept], below=int((~kept).sum()))


def _joined(parts: Sequence[Proposals]) -> Proposals:
    return Proposals(
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.phrases for part in parts]),
        torch.cat([part.masks for part in parts if part.masks is not None]),
        sum(part.below for part in parts),
    )
