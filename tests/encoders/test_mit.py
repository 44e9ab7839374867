"""MiT against transformers, its files, and its counts of parameters."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import SegformerConfig, SegformerForImageClassification

from segdistill.config import UserError
from segdistill.encoders import ENCODERS, EncoderConfig, build_encoder
from segdistill.encoders.mit import SIZES
from segdistill.ops import generator
from segdistill.ops import maps as maps_of


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """transformers' network of the size of MiT-B0, with the norms' epsilon of the authors, and its file."""
    network = SegformerForImageClassification(SegformerConfig(num_labels=3)).eval()
    for index, parameter in enumerate(network.parameters()):
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator("mit", index)))
    folder = tmp_path_factory.mktemp("mit")
    network.save_pretrained(folder)
    return network, folder / "model.safetensors"


@torch.no_grad()
def test_equals_transformers_and_reads_its_file(theirs):
    network, path = theirs
    encoder = build_encoder(EncoderConfig(name="mit_b0", weights=str(path)), seed=0).eval()
    images = torch.rand(2, 3, 64, 96, generator=generator("picture"))
    features = encoder(images, (0, 1, 2, 3, -1))
    expected = network.segformer((images - encoder.mean) / encoder.std, output_hidden_states=True).hidden_states
    for ours, other in zip(maps_of(features)[:4], expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-3)  # norms there add 1e-5, not 1e-6
    assert torch.equal(features.tokens[3], features.tokens[4])
    report = encoder.loaded
    assert set(report.dropped) == {"classifier.weight", "classifier.bias"}
    assert report.missing == ["mask_token"]


def test_reads_the_authors_names_and_no_other_size(theirs, tmp_path):
    encoder = build_encoder(EncoderConfig(name="mit_b0", weights=str(theirs[1])), seed=0)
    names = {"embed": "patch_embed", "blocks": "block", "norm": "norm"}
    state = {}
    for key, value in encoder.backbone.state_dict().items():
        stage, part, rest = key.split(".", 2)
        state[f"{names[part]}{stage[-1]}.{rest}"] = value
    assert {"patch_embed1.proj.weight", "block4.1.attn.kv.bias", "block1.0.attn.sr.weight", "norm3.bias"} <= set(state)
    torch.save(state | {"head.weight": torch.zeros(3, 256), "head.bias": torch.zeros(3)}, tmp_path / "mit_b0.pth")
    other = build_encoder(EncoderConfig(name="mit_b0", weights=str(tmp_path / "mit_b0.pth")), seed=1)
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in other.state_dict().items())
    with pytest.raises(UserError, match="does not fit mit_b1") as error:
        build_encoder(EncoderConfig(name="mit_b1", weights=str(tmp_path / "mit_b0.pth")), seed=0)
    assert "\n" not in str(error.value)
    assert not any(key.startswith("backbone") for key in load_file(theirs[1]))


@pytest.mark.parametrize("size", SIZES)
def test_has_as_many_parameters_as_printed(size):
    printed = {"b0": 3.4, "b1": 13.1, "b2": 24.2, "b3": 44.0, "b4": 60.8, "b5": 81.4}  # millions, SegFormer, Table 1
    assert ENCODERS[f"mit_{size}"].parameters / 1e6 == pytest.approx(printed[size], abs=0.1)


def test_stochastic_depth_is_off_in_evaluation_and_on_in_training():
    encoder = build_encoder(EncoderConfig(name="mit_b0"), seed=0)
    images = torch.rand(2, 3, 64, 64, generator=generator("picture"))
    same = [encoder.eval()(images).tokens[0] for _ in range(2)]
    assert torch.equal(*same)
    torch.manual_seed(3)
    different = [encoder.train()(images).tokens[0] for _ in range(2)]
    assert not torch.equal(*different)
    world = build_encoder(EncoderConfig(name="world_mit"), seed=0).train()
    assert torch.equal(world(images).tokens[0], world(images).tokens[0])
