"""What Mask2Former borrows from transformers, in a file of its own because transformers takes seconds to import."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as hf

from segdistill.criteria import mean_over_processes
from segdistill.decoders.mask2former import STRIDES, Mask2Former


def build(
    config: Mask2Former.Config, channels: tuple[int, ...], num_classes: int
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Pixel decoder for levels of ``channels``, masked-attention decoder, and set loss."""
    settings = _settings(config, num_classes)
    pixel_decoder = hf.Mask2FormerPixelDecoder(settings, feature_channels=list(channels))
    transformer = hf.Mask2FormerTransformerModule(config.width, settings)
    transformer.decoder.layerdrop = 0.0  # transformers also skips whole layers at the rate of the dropout
    _initialise(pixel_decoder, transformer)
    return pixel_decoder, transformer, SetLoss(settings, weight_dict={})


class SetLoss(hf.Mask2FormerLoss):
    """transformers' set loss, with the number of masks averaged over the processes of torch.distributed."""

    def get_num_masks(self, class_labels: Iterable[Tensor], device: torch.device) -> Tensor:
        """Masks per process, at least 1."""
        return mean_over_processes(sum(len(labels) for labels in class_labels), device).clamp(min=1)


def _settings(config: Mask2Former.Config, num_classes: int) -> Mask2FormerConfig:
    settings = Mask2FormerConfig(
        feature_size=config.width,
        mask_feature_size=config.width,
        hidden_dim=config.width,
        num_queries=config.queries,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.decoder_layers + 1,  # transformers counts the prediction before the first layer
        num_attention_heads=config.heads,
        encoder_feedforward_dim=config.encoder_feedforward,
        dim_feedforward=config.decoder_feedforward,
        dropout=config.dropout,
        feature_strides=list(STRIDES),
        train_num_points=config.points,
        oversample_ratio=config.oversample,
        importance_sample_ratio=config.importance,
        class_weight=config.class_weight,
        mask_weight=config.mask_weight,
        dice_weight=config.dice_weight,
        no_object_weight=config.no_object_weight,
    )
    settings.num_labels = num_classes
    return settings


def _initialise(pixel_decoder: hf.Mask2FormerPixelDecoder, transformer: hf.Mask2FormerTransformerModule) -> None:
    """The authors' initialisation: Xavier in both transformers, sampling offsets on a ring, PyTorch's elsewhere."""
    nn.init.normal_(pixel_decoder.level_embed)
    for layers in (pixel_decoder.encoder.layers, transformer.decoder.layers):
        for parameter in layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
    for module in pixel_decoder.encoder.modules():
        if isinstance(module, hf.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
            _initialise_offsets(module)


@torch.no_grad()
def _initialise_offsets(attention: hf.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention) -> None:
    """Each head looks in its own direction, its points 1, 2, ... cells away; all points weigh the same."""
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
