import pytest
import torch
from torch import nn
from transformers import DPTConfig
from transformers.models.dpt.modeling_dpt import DPTFeatureFusionStage

from segdistill.heads import mask2former_parts as parts


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("sides", [(16, 8, 4, 2), (15, 8, 4, 2)])
def test_fusion_is_transformers_and_projects_before_it_enlarges(batch_norm, sides):
    channels = (4, 5, 6, 7)
    torch.manual_seed(0)
    settings = DPTConfig(
        neck_hidden_sizes=list(channels), fusion_hidden_size=8, use_batch_norm_in_fusion_residual=batch_norm
    )
    theirs = DPTFeatureFusionStage(settings)
    theirs.layers[0].residual_layer1 = nn.Identity()
    torch.manual_seed(0)
    ours = parts.build_fusion(8, channels, batch_norm=batch_norm)
    for (name, own), (other, weights) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(own, weights)
    seen: list[tuple[int, ...]] = []
    for layer in ours.layers:
        layer.projection.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[2:])))
    maps = [torch.randn(2, 8, side, 2 * side, dtype=torch.float64) for side in sides]
    for own, other in zip(ours.double()(maps), theirs.double()(maps), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-12)
    assert seen == [(2, 4), (4, 8), (8, 16), (16, 32)]  # not the enlarged maps
