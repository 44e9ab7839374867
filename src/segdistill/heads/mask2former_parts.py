"""The parts of Mask2Former taken from transformers; a separate module because transformers is slow to import."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DPTConfig, Mask2FormerConfig
from transformers.models.dpt.modeling_dpt import DPTFeatureFusionLayer, DPTFeatureFusionStage
from transformers.models.mask2former import modeling_mask2former as hf

from segdistill.heads.pyramid import STRIDES
from segdistill.processes import gather_rows, mean_over_processes, rank_and_size, share, shared_count

Labels = Any
"""A list of one tensor per image, where transformers' signatures say Tensor."""


def build(config: Any, channels: tuple[int, ...], num_classes: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Pixel decoder for levels of ``channels``, masked-attention decoder, and set loss."""
    settings = _settings(config, num_classes)
    settings.encoder_layers, settings.encoder_feedforward_dim = config.encoder_layers, config.encoder_feedforward
    pixel_decoder = hf.Mask2FormerPixelDecoder(settings, feature_channels=list(channels))
    transformer = _transformer(config, settings)
    _initialise_pixels(pixel_decoder)
    _initialise(transformer)
    return pixel_decoder, transformer, SetLoss(settings)


def build_decoder(config: Any, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """Masked-attention decoder, and set loss."""
    settings = _settings(config, num_classes)
    transformer = _transformer(config, settings)
    _initialise(transformer)
    return transformer, SetLoss(settings)


def build_loss(config: Any, num_classes: int) -> nn.Module:
    """Set loss."""
    return SetLoss(_loss_settings(config, num_classes))


def _transformer(config: Any, settings: Mask2FormerConfig) -> hf.Mask2FormerTransformerModule:
    transformer = hf.Mask2FormerTransformerModule(config.width, settings)
    transformer.decoder.layerdrop = 0.0  # otherwise transformers skips whole layers at the dropout rate
    return transformer


class Matcher(hf.Mask2FormerHungarianMatcher):
    """transformers' matcher; the points drawn for an image do not depend on its process and micro-batch."""

    def forward(
        self, masks_queries_logits: Tensor, class_queries_logits: Tensor, mask_labels: Labels, class_labels: Labels
    ) -> Any:
        """Pairs (queries, labels) for each image of this share of the batch."""
        number, count = share()
        if count == 1:
            return super().forward(masks_queries_logits, class_queries_logits, mask_labels, class_labels)
        matched: list[Any] = []
        for image in range(len(masks_queries_logits)):
            one = slice(image, image + 1)
            self._skip(number, masks_queries_logits.device)
            matched += super().forward(
                masks_queries_logits[one], class_queries_logits[one], mask_labels[one], class_labels[one]
            )
            self._skip(count - 1 - number, masks_queries_logits.device)
        return matched

    def _skip(self, images: int, device: torch.device) -> None:
        """Advance the generator by the draws of other shares for their images."""
        for _ in range(images):
            torch.rand(1, self.num_points, 2, device=device)


class SetLoss(hf.Mask2FormerLoss):
    """transformers' set loss, with normalisers and random points as if one process had the whole batch."""

    def __init__(self, settings: Mask2FormerConfig) -> None:
        super().__init__(settings, weight_dict={})
        self.queries = settings.num_queries
        own = self.matcher
        self.matcher = Matcher(own.cost_class, own.cost_mask, own.cost_dice, own.num_points)
        self.masks: list[int] = []  # of each image of the whole batch

    @contextmanager
    def scaled_no_object(self, factor: float) -> Iterator[None]:
        """While the block runs, the weight of queries without a mask is multiplied by ``factor``."""
        before = self.empty_weight, self.eos_coef
        scale = torch.ones_like(self.empty_weight)
        scale[-1] = factor
        self.empty_weight, self.eos_coef = self.empty_weight * scale, self.eos_coef * factor
        try:
            yield
        finally:
            self.empty_weight, self.eos_coef = before

    def get_num_masks(self, class_labels: Labels, device: torch.device) -> Tensor:
        """Mean number of masks per process; the total counts as at least 1."""
        own = [len(labels) for labels in class_labels]
        self.masks = gather_rows(own, device)
        return shared_count(torch.tensor(float(sum(own)), device=device))

    def loss_labels(self, class_queries_logits: Tensor, class_labels: Labels, indices: Any) -> dict[str, Tensor]:
        """The weighted mean over the queries of all processes; 0 where no query has a weight."""
        matched = sum(len(queries) for queries, _ in indices)
        others = class_queries_logits.shape[0] * class_queries_logits.shape[1] - matched
        weight = torch.tensor(matched + self.eos_coef * others, device=class_queries_logits.device)
        share = weight / mean_over_processes(weight)  # a collective: every process takes part
        if not matched and not self.eos_coef:
            return {"loss_cross_entropy": class_queries_logits.sum() * 0.0}
        mean = super().loss_labels(class_queries_logits, class_labels, indices)["loss_cross_entropy"]
        return {"loss_cross_entropy": mean * share}

    def sample_points_using_uncertainty(
        self,
        logits: Tensor,
        uncertainty_function: Callable[[Tensor], Tensor],
        num_points: int,
        oversample_ratio: Any,  # float; transformers' signature says int
        importance_sample_ratio: float,
    ) -> Tensor:
        """Points (M, P, 2) in [0, 1] of this process's M masks: the most uncertain candidates and some others.

        With several processes the numbers are drawn for the masks of all of them, in the order of one process. A
        micro-batch does not know the masks of the others and draws for its own.
        """
        rank, size = rank_and_size()
        if size == 1:
            return super().sample_points_using_uncertainty(
                logits, uncertainty_function, num_points, oversample_ratio, importance_sample_ratio
            )
        matched = [min(count, self.queries) for count in self.masks]
        image = torch.arange(len(matched)).repeat_interleave(torch.tensor(matched))  # of each mask of the batch
        own = (image % size == rank).to(logits.device)
        candidates = torch.rand(len(own), int(num_points * oversample_ratio), 2, device=logits.device)[own]
        uncertain = int(importance_sample_ratio * num_points)
        scores = uncertainty_function(hf.sample_point(logits, candidates, align_corners=False))[:, 0]
        best = scores.topk(uncertain, dim=1).indices.unsqueeze(-1).expand(-1, -1, 2)
        rest = torch.rand(len(own), num_points - uncertain, 2, device=logits.device)[own]
        return torch.cat([candidates.gather(1, best), rest], dim=1)


def _settings(config: Any, num_classes: int) -> Mask2FormerConfig:
    """For decoder and loss."""
    return _loss_settings(
        config,
        num_classes,
        feature_size=config.width,
        mask_feature_size=config.width,
        hidden_dim=config.width,
        decoder_layers=config.decoder_layers + 1,  # transformers counts the prediction before the first layer
        num_attention_heads=config.heads,
        dim_feedforward=config.decoder_feedforward,
        dropout=config.dropout,
        feature_strides=list(STRIDES),
    )


def _loss_settings(config: Any, num_classes: int, **more: Any) -> Mask2FormerConfig:
    settings = Mask2FormerConfig(
        num_queries=config.queries,
        train_num_points=config.points,
        oversample_ratio=config.oversample,
        importance_sample_ratio=config.importance,
        class_weight=config.class_weight,
        mask_weight=config.mask_weight,
        dice_weight=config.dice_weight,
        no_object_weight=config.no_object_weight,
        **more,
    )
    settings.num_labels = num_classes
    return settings


def _initialise(transformer: Any) -> None:
    """The authors' initialisation of the masked-attention decoder: Xavier in its layers, PyTorch's elsewhere."""
    for parameter in transformer.decoder.layers.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def _initialise_pixels(pixel_decoder: hf.Mask2FormerPixelDecoder) -> None:
    """The authors' initialisation of the pixel decoder: Xavier, and sampling offsets on a ring."""
    nn.init.normal_(pixel_decoder.level_embed)
    for parameter in pixel_decoder.encoder.layers.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in pixel_decoder.encoder.modules():
        if isinstance(module, hf.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
            _initialise_offsets(module)


@torch.no_grad()
def _initialise_offsets(attention: hf.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention) -> None:
    """Each attention head samples in its own direction, 1, 2, ... cells away; all points have equal weight."""
    angles = torch.arange(attention.n_heads) * (2 * math.pi / attention.n_heads)
    ring = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (heads, 2)
    ring = ring / ring.abs().amax(dim=-1, keepdim=True)
    distance = torch.arange(1, attention.n_points + 1)
    offsets = ring[:, None, None] * distance[:, None]  # (heads, 1, points, 2)
    attention.sampling_offsets.weight.zero_()
    attention.sampling_offsets.bias.copy_(offsets.expand(-1, attention.n_levels, -1, -1).flatten())
    attention.attention_weights.weight.zero_()
    for linear in (attention.attention_weights, attention.value_proj, attention.output_proj):
        linear.bias.zero_()


class Fusion(DPTFeatureFusionLayer):
    """transformers' fusion block, with the projection before the enlargement: a quarter of the work, the same map.

    Both are linear and the weights of an enlarged cell sum to one, so the order changes rounding alone.
    """

    def forward(self, hidden_state: Tensor, residual: Tensor | None = None) -> Tensor:
        """The map (B, C, H, W), with a finer one added, as (B, C, 2 H, 2 W)."""
        if residual is not None:
            hidden_state = hidden_state + self.residual_layer1(same_size(residual, hidden_state))
        projected = self.projection(self.residual_layer2(hidden_state))
        return nn.functional.interpolate(projected, scale_factor=2.0, mode="bilinear", align_corners=self.align_corners)


def same_size(values: Tensor, like: Tensor) -> Tensor:
    """``values`` at the height and width of ``like``."""
    size = (like.shape[2], like.shape[3])
    if values.shape[2:] == size:
        return values
    return nn.functional.interpolate(values, size=size, mode="bilinear", align_corners=False)


def build_fusion(width: int, channels: tuple[int, ...], *, batch_norm: bool) -> nn.Module:
    """DPT's fusion blocks for maps of ``width``, fine to coarse -> fused maps, coarse to fine, each twice as large."""
    settings = DPTConfig(neck_hidden_sizes=[], fusion_hidden_size=width, use_batch_norm_in_fusion_residual=batch_norm)
    stage = DPTFeatureFusionStage(settings)
    stage.layers.extend(Fusion(settings) for _ in channels)
    stage.layers[0].residual_layer1 = nn.Identity()  # the coarsest map has nothing to be added to
    return stage
