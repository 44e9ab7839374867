"""The authors' task head: mmdet's names and shapes into our Mask2Former."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from official import dinov2_state, noise
from segdistill.config import UserError
from segdistill.heads.mask2former import Mask2Former
from segdistill.ops import generator
from segdistill.weights.heads import load_head_weights, mask2former_state

CLASSES, QUERIES, WIDTH, CHANNELS = 5, 6, 64, 24
ENCODER_FFN, HEAD_FFN, HEADS, LAYERS = 32, 48, 8, 2


@pytest.fixture(scope="module")
def head() -> Mask2Former:
    config = Mask2Former.Config(
        queries=QUERIES, width=WIDTH, encoder_layers=LAYERS, decoder_layers=LAYERS, heads=HEADS,
        encoder_feedforward=ENCODER_FFN, decoder_feedforward=HEAD_FFN,
    )  # fmt: skip
    return Mask2Former(config, (CHANNELS,) * 4, (16,) * 4, CLASSES).eval()


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}


def mmdet_shapes() -> dict[str, tuple[int, ...]]:
    """Every parameter of mmdet 3's Mask2FormerHead with its MSDeformAttnPixelDecoder, written out."""
    points = HEADS * 3 * 4  # three levels, four points
    shapes: dict[str, tuple[int, ...]] = {}
    for level in range(3):
        conv = f"pixel_decoder.input_convs.{level}"
        shapes |= {f"{conv}.conv.weight": (WIDTH, CHANNELS, 1, 1), f"{conv}.conv.bias": (WIDTH,)} | norm(f"{conv}.gn")
    for layer in range(LAYERS):
        b = f"pixel_decoder.encoder.layers.{layer}"
        shapes |= linear(f"{b}.self_attn.sampling_offsets", 2 * points, WIDTH)
        shapes |= linear(f"{b}.self_attn.attention_weights", points, WIDTH)
        shapes |= linear(f"{b}.self_attn.value_proj", WIDTH, WIDTH) | linear(f"{b}.self_attn.output_proj", WIDTH, WIDTH)
        shapes |= linear(f"{b}.ffn.layers.0.0", ENCODER_FFN, WIDTH) | linear(f"{b}.ffn.layers.1", WIDTH, ENCODER_FFN)
        shapes |= norm(f"{b}.norms.0") | norm(f"{b}.norms.1")
    shapes |= {"pixel_decoder.level_encoding.weight": (3, WIDTH)}
    shapes |= {"pixel_decoder.lateral_convs.0.conv.weight": (WIDTH, CHANNELS, 1, 1)}
    shapes |= {"pixel_decoder.output_convs.0.conv.weight": (WIDTH, WIDTH, 3, 3)}
    shapes |= norm("pixel_decoder.lateral_convs.0.gn") | norm("pixel_decoder.output_convs.0.gn")
    shapes |= {"pixel_decoder.mask_feature.weight": (WIDTH, WIDTH, 1, 1), "pixel_decoder.mask_feature.bias": (WIDTH,)}
    for layer in range(LAYERS):
        b = f"transformer_decoder.layers.{layer}"
        for attention in ("self_attn", "cross_attn"):
            shapes |= {f"{b}.{attention}.attn.in_proj_weight": (3 * WIDTH, WIDTH)}
            shapes |= {f"{b}.{attention}.attn.in_proj_bias": (3 * WIDTH,)}
            shapes |= linear(f"{b}.{attention}.attn.out_proj", WIDTH, WIDTH)
        shapes |= linear(f"{b}.ffn.layers.0.0", HEAD_FFN, WIDTH) | linear(f"{b}.ffn.layers.1", WIDTH, HEAD_FFN)
        shapes |= norm(f"{b}.norms.0") | norm(f"{b}.norms.1") | norm(f"{b}.norms.2")
    shapes |= norm("transformer_decoder.post_norm")
    shapes |= {"query_embed.weight": (QUERIES, WIDTH), "query_feat.weight": (QUERIES, WIDTH)}
    shapes |= {"level_embed.weight": (3, WIDTH)} | linear("cls_embed", CLASSES + 1, WIDTH)
    for layer in (0, 2, 4):
        shapes |= linear(f"mask_embed.{layer}", WIDTH, WIDTH)
    return shapes


def task_checkpoint() -> dict[str, Tensor]:
    head = {f"decode_head.{key}": noise(*shape, name=key) for key, shape in mmdet_shapes().items()}
    return head | {f"backbone.{key}": value for key, value in dinov2_state().items()}


def test_every_tensor_of_the_head_finds_its_place(tmp_path, head):
    content = task_checkpoint()
    torch.save({"meta": {}, "state_dict": content}, tmp_path / "iter_40000.pth")
    report = load_head_weights(head, str(tmp_path / "iter_40000.pth"), "mask2former", "abcde")
    ours = head.state_dict()
    assert set(report.loaded) == {key for key in ours if not key.startswith("criterion.")}
    assert set(report.dropped) == {key for key in content if key.startswith("backbone.")} | {"meta"}
    pairs = {
        "pixel_decoder.level_encoding.weight": "pixel_decoder.level_embed",
        "pixel_decoder.input_convs.2.conv.bias": "pixel_decoder.input_projections.2.0.bias",
        "pixel_decoder.encoder.layers.1.norms.1.weight": "pixel_decoder.encoder.layers.1.final_layer_norm.weight",
        "pixel_decoder.lateral_convs.0.gn.bias": "pixel_decoder.adapter_1.1.bias",
        "transformer_decoder.layers.0.norms.0.bias": "transformer.decoder.layers.0.cross_attn_layer_norm.bias",
        "transformer_decoder.layers.0.norms.1.bias": "transformer.decoder.layers.0.self_attn_layer_norm.bias",
        "transformer_decoder.layers.0.norms.2.bias": "transformer.decoder.layers.0.final_layer_norm.bias",
        "transformer_decoder.layers.1.ffn.layers.1.bias": "transformer.decoder.layers.1.fc2.bias",
        "mask_embed.4.bias": "transformer.decoder.mask_predictor.mask_embedder.2.0.bias",
        "query_feat.weight": "transformer.queries_features.weight",
        "query_embed.weight": "transformer.queries_embedder.weight",
        "level_embed.weight": "transformer.level_embed.weight",
        "cls_embed.weight": "classifier.weight",
    }
    for theirs, mine in pairs.items():
        assert torch.equal(ours[mine], content[f"decode_head.{theirs}"]), theirs
    assert sum(value.numel() for key, value in ours.items() if not key.startswith("criterion.")) == sum(
        value.numel() for key, value in content.items() if key.startswith("decode_head.")
    )


@torch.no_grad()
def test_attention_computes_what_torchs_does(head):
    """mmcv wraps nn.MultiheadAttention, positions added to query and key; one packed matrix there, three here."""
    shapes = {key: shape for key, shape in mmdet_shapes().items() if ".layers.0.self_attn.attn." in key}
    stored = {key: 0.3 * noise(*shape, name=key) for key, shape in shapes.items() if "transformer_decoder" in key}
    theirs = nn.MultiheadAttention(WIDTH, HEADS)
    theirs.load_state_dict({key.split(".attn.")[1]: value for key, value in stored.items()})
    prefix = "transformer.decoder.layers.0.self_attn."
    attention = head.transformer.decoder.layers[0].self_attn
    attention.load_state_dict({key.removeprefix(prefix): value for key, value in mask2former_state(stored).items()})
    query, place = (torch.randn(QUERIES, 2, WIDTH, generator=generator(name)) for name in ("query", "place"))
    ours = attention(hidden_states=query, position_embeddings=place, attention_mask=None, output_attentions=True)[0]
    expected = theirs(query + place, query + place, query)[0]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("decode_head.query_feat.weight"),
            "missing transformer.queries_features.weight;",
        ),
        (lambda s: s.update({"decode_head.extra": torch.ones(1)}), "missing nothing; unexpected extra"),
        (
            lambda s: s.update({"decode_head.cls_embed.bias": torch.ones(12)}),
            r"classifier.bias \(12,\) instead of \(6,\)",
        ),
        (lambda s: [s.pop(key) for key in list(s) if re.match("decode_head", key)], r"has neither decode_head\.\* nor"),
    ],
)
def test_another_head_is_a_user_error(tmp_path, head, change, message):
    content = task_checkpoint()
    change(content)
    torch.save({"state_dict": content}, tmp_path / "iter.pth")
    with pytest.raises(UserError, match=message) as error:
        load_head_weights(head, str(tmp_path / "iter.pth"), "mask2former", "abcde")
    assert "\n" not in str(error.value)
