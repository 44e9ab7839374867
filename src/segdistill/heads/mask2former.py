"""Mask2Former: Cheng et al., Masked-attention Mask Transformer, CVPR 2022 (arXiv 2112.01527), as a semantic head.

The pixel decoder, the masked-attention decoder, the matcher and the loss are those of transformers, on a simple feature
pyramid of the encoder's taps (spec A.10). Ours: the normalisers of the mask and class losses are averaged over the
processes of torch.distributed (transformers does this for masks, under Accelerate only, huggingface/transformers#26844;
the authors do it for masks), and random points are drawn per image, so that the loss does not depend on the number of
processes, except with ``dropout`` (0 by default). The pixel decoder and all losses run in float32 whatever the
precision of the caller, as in the authors' code.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from segdistill.criteria import IGNORE
from segdistill.heads.base import Head, HeadConfig, Maps, first
from segdistill.heads.pyramid import STRIDES, feature_pyramid, per_level, resize
from segdistill.ops import full_precision
from segdistill.types import LossTerms

_QUERY_CHUNK = 16  # masks upsampled at once; limits memory, changes no value
_LEAST_SCORE = 1e-6  # lower bound of scores before the logarithm

Queries = tuple[list[Float[Tensor, "b q _k"]], list[Float[Tensor, "b q _h _w"]]]
"""Class logits (K + 1) and mask logits (stride 4) of every query, before the first layer and after each."""


class Mask2Former(Head):
    """Maps of four taps (or of one) -> queries, each with a class and a mask at stride 4."""

    scores_are_logits = False  # sums of probabilities over the queries
    undecayed = ("transformer.queries_embedder.", "transformer.queries_features.", "transformer.level_embed.")

    class Config(HeadConfig):
        """Defaults are the authors' (spec A.10).

        ``*_feedforward``: hidden width of the MLPs of the pixel decoder and of the head. ``points``: sampled per mask
        in the loss and the matcher, from ``oversample`` times as many candidates; ``importance``: the share of them
        chosen by uncertainty. ``*_weight``: weights of both loss terms and matching costs. ``no_object_weight``:
        weight of queries without a mask in the class term.
        """

        queries: int = Field(100, ge=1, le=10**4)
        width: int = Field(256, ge=64, le=8192, multiple_of=32)  # its group norms have 32 groups
        encoder_layers: int = Field(6, ge=1, le=100)
        decoder_layers: int = Field(9, ge=1, le=100)
        heads: int = Field(8, ge=1, le=8192)
        encoder_feedforward: int = Field(1024, ge=1, le=2**16)
        decoder_feedforward: int = Field(2048, ge=1, le=2**16)
        dropout: float = Field(0.0, ge=0, lt=1)
        points: int = Field(12544, ge=1, le=10**6)
        oversample: float = Field(3.0, ge=1, le=100)
        importance: float = Field(0.75, ge=0, le=1)
        class_weight: float = Field(2.0, ge=0, le=1e6)
        mask_weight: float = Field(5.0, ge=0, le=1e6)
        dice_weight: float = Field(5.0, ge=0, le=1e6)
        no_object_weight: float = Field(0.1, ge=0, le=1e6)

        @model_validator(mode="after")
        def _divisible(self) -> Mask2Former.Config:
            if self.width % self.heads:
                raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}: choose another width")
            return self

    def __init__(self, config: Config, channels: tuple[int, ...], strides: tuple[int, ...], num_classes: int) -> None:
        """``channels`` and ``strides`` (pixels per cell) of the taps, one per level or one for all."""
        super().__init__()
        self.config, self.strides, self.num_classes = config, tuple(strides), num_classes
        from segdistill.heads import mask2former_parts as parts  # transformers takes seconds to import

        self.pixel_decoder, self.transformer, self.criterion = parts.build(
            config, per_level(tuple(channels), len(STRIDES)), num_classes
        )
        self.classifier = nn.Linear(config.width, num_classes + 1)  # the last one: no object

    def decode(self, maps: Maps) -> Queries:
        """The queries' classes and masks, before the first layer and after each."""
        with full_precision(maps[0]):
            levels = feature_pyramid(tuple(m.float() for m in maps), self.strides, STRIDES)
            pixels = self.pixel_decoder(levels, output_hidden_states=False, return_dict=True)
        decoded = self.transformer(list(pixels.multi_scale_features), pixels.mask_features)
        classes = [self.classifier(state.transpose(0, 1)) for state in decoded.intermediate_hidden_states]
        return classes, list(decoded.masks_queries_logits)

    def loss_of(self, decoded: Queries, labels: Int[Tensor, "_b h w"]) -> LossTerms:
        """Class, mask and dice terms, each weighted and summed over the initial queries and all layers."""
        classes, masks = ([first(rows, len(labels)) for rows in outputs] for outputs in decoded)
        class_labels, mask_labels = present_masks(labels)
        with full_precision(labels):
            outputs = [
                {"masks_queries_logits": m.float(), "class_queries_logits": c.float()}
                for c, m in zip(classes, masks, strict=True)
            ]
            terms = self.criterion(
                **outputs[-1],
                mask_labels=mask_labels,
                class_labels=class_labels,
                auxiliary_predictions=outputs[:-1],
            )
        config = self.config
        return {
            "class": config.class_weight * _sum(terms, "loss_cross_entropy"),
            "mask": config.mask_weight * _sum(terms, "loss_mask"),
            "dice": config.dice_weight * _sum(terms, "loss_dice"),
        }

    def scores_of(self, decoded: Queries, size: tuple[int, int]) -> Float[Tensor, "b k h w"]:
        """Sum over queries of class probability times mask probability, the masks upsampled to ``size`` (h, w)."""
        classes, masks = decoded
        weights = classes[-1].float().softmax(dim=-1)[..., :-1]  # (B, Q, K)
        total = weights.new_zeros(())
        for weight, mask in zip(weights.split(_QUERY_CHUNK, 1), masks[-1].float().split(_QUERY_CHUNK, 1), strict=True):
            total = total + torch.einsum("bqk,bqhw->bkhw", weight, resize(mask, size).sigmoid())
        return total

    def logits_of(self, decoded: Queries) -> Float[Tensor, "b k _h _w"]:
        """Logarithm of the scores at stride 4, where the masks are made. Ours.

        The scores are sums of probabilities, not logits. Their logarithm behaves like the logits of other heads: its
        softmax over classes gives the normalised scores, over pixels the normalised map of a class. Papers that distil
        the scores (spec B.4: the einsum's output) do not say which form they use; a softmax over raw scores between 0
        and 1 would be nearly uniform.
        """
        height, width = decoded[1][-1].shape[-2:]
        return self.scores_of(decoded, (height, width)).clamp(min=_LEAST_SCORE).log()


def present_masks(labels: Int[Tensor, "b h w"]) -> tuple[list[Int[Tensor, " _n"]], list[Float[Tensor, "_n h w"]]]:
    """Per image the classes present (without 255) and a binary mask for each."""
    classes = [unique[unique != IGNORE].long() for unique in (image.unique() for image in labels)]
    return classes, [(image == c[:, None, None]).float() for image, c in zip(labels, classes, strict=True)]


def _sum(terms: dict[str, Tensor], name: str) -> Tensor:
    """The sum of a term over the last output (``name``) and the earlier ones (``name_0``, ...)."""
    return torch.stack([value for key, value in terms.items() if key == name or key.startswith(name + "_")]).sum()
