"""Heads of mask queries: each query predicts a class and a mask, trained with a set loss.

Cheng et al., Masked-attention Mask Transformer, CVPR 2022 (arXiv 2112.01527). The masked-attention decoder, the matcher
and the loss are those of transformers. Ours: the normalisers of the mask and class losses are averaged over the
processes of torch.distributed (transformers does this for masks, under Accelerate only, huggingface/transformers#26844;
the authors do it for masks), and random points are drawn per image, so that the loss does not depend on the number of
processes, except with ``dropout`` (0 by default). All losses run in float32 whatever the precision of the caller, as in
the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from segdistill.criteria import IGNORE
from segdistill.heads.base import Head, HeadConfig, first
from segdistill.ops import full_precision, resize
from segdistill.types import LossTerms

_QUERY_CHUNK = 16  # masks upsampled at once; limits memory, changes no value
_LEAST_SCORE = 1e-6  # lower bound of scores before the logarithm

Queries = tuple[list[Float[Tensor, "b q _k"]], list[Float[Tensor, "b q _h _w"]]]
"""Class logits (K + 1, the last: no object) and mask logits of every query, before the first layer and after each."""


class SetConfig(HeadConfig):
    """Number of queries and set loss. Defaults are Mask2Former's (spec A.10).

    ``points``: sampled per mask in the loss and the matcher, from ``oversample`` times as many candidates;
    ``importance``: the share of them chosen by uncertainty. ``*_weight``: weights of both loss terms and matching
    costs. ``no_object_weight``: weight of queries without a mask in the class term.
    """

    queries: int = Field(100, ge=1, le=10**4)
    points: int = Field(12544, ge=1, le=10**6)
    oversample: float = Field(3.0, ge=1, le=100)
    importance: float = Field(0.75, ge=0, le=1)
    class_weight: float = Field(2.0, ge=0, le=1e6)
    mask_weight: float = Field(5.0, ge=0, le=1e6)
    dice_weight: float = Field(5.0, ge=0, le=1e6)
    no_object_weight: float = Field(0.1, ge=0, le=1e6)


class QueryConfig(SetConfig):
    """And the masked-attention decoder. ``decoder_feedforward``: hidden width of the head's MLPs."""

    width: int = Field(256, ge=64, le=8192, multiple_of=32)  # group norms of 32 groups
    decoder_layers: int = Field(9, ge=1, le=100)
    heads: int = Field(8, ge=1, le=8192)
    decoder_feedforward: int = Field(2048, ge=1, le=2**16)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _divisible(self) -> QueryConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}: choose another width")
        return self


class QueryHead(Head):
    """A head whose :meth:`decode` returns :data:`Queries`."""

    tasks = ("semantic", "instance")
    scores_are_logits = False  # sums of probabilities over the queries
    undecayed = ("transformer.queries_embedder.", "transformer.queries_features.", "transformer.level_embed.")
    config: Any
    criterion: Any  # the set loss
    transformer: nn.Module
    classifier: nn.Module

    def queries_of(self, levels: Sequence[Tensor], pixels: Float[Tensor, "b c _h _w"]) -> Queries:
        """The masked-attention decoder over three ``levels``, coarse to fine, and the features of the masks."""
        decoded: Any = self.transformer(list(levels), pixels)
        classes = [self.classifier(state.transpose(0, 1)) for state in decoded.intermediate_hidden_states]
        return classes, list(decoded.masks_queries_logits)

    def loss_of(self, decoded: Queries, labels: Int[Tensor, "_b h w"]) -> LossTerms:
        """The set loss against the classes present in each image."""
        return self.set_loss(decoded, *present_masks(labels))

    def set_loss(
        self,
        decoded: Queries,
        classes: Sequence[Int[Tensor, " _n"]],
        masks: Sequence[Float[Tensor, "_n _h _w"]],
        *,
        no_object: float = 1.0,
    ) -> LossTerms:
        """Class, mask and dice terms, each weighted and summed over the initial queries and all layers.

        ``classes`` and ``masks`` of the first decoded images; any further images have none. ``no_object`` scales the
        weight of queries without a mask, for images whose objects are not all annotated.
        """
        logits, shapes = ([first(rows, len(classes)) for rows in outputs] for outputs in decoded)
        with full_precision(logits[0]), self.criterion.scaled_no_object(no_object):
            outputs = [
                {"masks_queries_logits": m.float(), "class_queries_logits": c.float()}
                for c, m in zip(logits, shapes, strict=True)
            ]
            terms = self.criterion(
                **outputs[-1],
                mask_labels=list(masks),
                class_labels=list(classes),
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
        """Logarithm of the scores at the masks' own stride. Ours.

        The scores are sums of probabilities, not logits. Their logarithm behaves like the logits of other heads: its
        softmax over classes gives the normalised scores, over pixels the normalised map of a class. Papers that distil
        the scores (spec B.4: the einsum's output) do not say which form they use; a softmax over raw scores between 0
        and 1 would be nearly uniform.
        """
        height, width = decoded[1][-1].shape[-2:]
        return self.scores_of(decoded, (height, width)).clamp(min=_LEAST_SCORE).log()


def present_masks(labels: Int[Tensor, "b h w"]) -> tuple[list[Int[Tensor, " _n"]], list[Float[Tensor, "_n h w"]]]:
    """Per image the classes present (without 255) and a binary mask for each."""
    found = (image.flatten().bincount().nonzero()[:, 0] for image in labels)  # ascending
    classes = [present[present != IGNORE] for present in found]
    return classes, [(image == c[:, None, None]).float() for image, c in zip(labels, classes, strict=True)]


def _sum(terms: dict[str, Tensor], name: str) -> Tensor:
    """The sum of a term over the last output (``name``) and the earlier ones (``name_0``, ...)."""
    return torch.stack([value for key, value in terms.items() if key == name or key.startswith(name + "_")]).sum()
