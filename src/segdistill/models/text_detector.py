"""A detector with text prompts: Grounding DINO and MM-Grounding-DINO of transformers, as boxes with class scores.

Zhao et al., An Open and Comprehensive Pipeline for Unified Object Grounding and Detection (arXiv 2401.02361); Liu et
al., Grounding DINO, ECCV 2024 (arXiv 2303.05499). Scores of a class are those of MMDetection (spec 2.2): the mean
probability over the tokens of its phrase. Legend: B batch, Q queries, P phrases, C classes, T tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from segdistill.config import UserError
from segdistill.models.open_vocabulary_parts import (
    PROCESSOR,
    TOKENIZER,
    PartFolder,
    load_network,
    load_processor,
    quiet,
)
from segdistill.models.prompts import Chunk, Words, build_prompt, check_delimiters
from segdistill.models.proposals import Proposals

ROLE = "detector"
FILES = (TOKENIZER, PROCESSOR)


class TextDetector(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> boxes with the scores of all classes."""

    def __init__(self, folder: PartFolder, classes: Sequence[str], words: Words | None) -> None:
        super().__init__()
        self.tokenizer = load_processor(folder, ROLE, "AutoTokenizer")
        self.processor = load_processor(folder, ROLE, "AutoImageProcessor")
        self.network: Any = load_network(folder, ROLE)
        check_delimiters(self.tokenizer, sys.modules[type(self.network).__module__].SPECIAL_TOKENS)
        self.prompt = build_prompt(classes, words, self.tokenizer, limit=self.network.config.max_text_len)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Proposals]:
        """The proposals of every image: the queries of all chunks of the prompt."""
        pixels = self.pixels(images)
        boxes, scores = [], []
        for chunk in self.prompt.chunks:
            output = self.run(pixels, chunk)
            part = chunk.scores(output.logits)  # (B, Q, P of the chunk)
            whole = part.new_zeros((*part.shape[:2], len(self.prompt.phrases)))
            whole[..., list(chunk.phrases)] = part
            boxes.append(corners(output.pred_boxes.float()))
            scores.append(whole)
        classes, phrases = self.prompt.best(torch.cat(scores, dim=1))
        return [Proposals(*each) for each in zip(torch.cat(boxes, dim=1), classes, phrases, strict=True)]

    def run(self, pixels: dict[str, Tensor], chunk: Chunk, **labels: Any) -> Any:
        """The network's output for one chunk of the prompt."""
        values = pixels["pixel_values"]
        try:
            return self.network(**pixels, **self.text(chunk, len(values)), **labels)
        except RuntimeError as error:
            if "index k out of range" not in str(error):
                raise
            raise UserError(
                f"detector: the resized image of {values.shape[2]} x {values.shape[3]} pixels has fewer feature-map "
                f"cells than the detector has queries ({self.network.config.num_queries}): crop or pad it to a less "
                "elongated shape"
            ) from None

    def pixels(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """Resized and normalised as the detector was trained."""
        found = self.processor(
            images=list(images), do_rescale=False, input_data_format="channels_first", return_tensors="pt"
        )
        return {key: found[key].to(images.device) for key in ("pixel_values", "pixel_mask") if key in found}

    def text(self, chunk: Chunk, count: int) -> dict[str, Tensor]:
        """The inputs of the text encoder for ``count`` images."""
        ids = torch.tensor(chunk.ids, device=self.network.device).expand(count, -1)
        return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": torch.ones_like(ids)}

    def save(self, folder: Path) -> None:
        """Write network, tokenizer and image processor in the form that they were loaded from."""
        with quiet():
            for each in (self.network, self.tokenizer, self.processor):
                each.save_pretrained(folder)


def corners(boxes: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """Centre x, y, width, height -> x1, y1, x2, y2 inside the image; all are shares of its sides."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1).clamp(0, 1)
