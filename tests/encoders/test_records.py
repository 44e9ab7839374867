"""What a record says is what timm builds; a record of any other timm backbone is derived, and mistakes are named."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg, is_model

from segdistill.config import UserError, parse
from segdistill.encoders import ENCODERS, Encoder, EncoderConfig, record_of
from segdistill.encoders.anytimm import blueprint
from segdistill.encoders.record import block_taps, stage_taps

SMALLEST = ("world_student", "dinov2_s_reg", "dinov3_s", "dinov3_convnext_ti", "deit_ti", "eva02_ti", "sam_b",
            "world_resnet", "world_mit", "resnet18", "resnet18_os16", "resnet18_os8")  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_every_record_describes_its_encoder(name):
    record = ENCODERS[name]
    with blueprint():
        encoder = Encoder(EncoderConfig(name=name))
    backbone = encoder.backbone
    assert sum(parameter.numel() for parameter in encoder.parameters()) == record.parameters
    assert record.taps[-1] == record.depth - 1
    assert record.licence
    assert record.family
    assert encoder.grid == tuple(side // record.patch for side in record.image_size)
    spec = encoder.spec((-1, *record.taps))
    assert (spec.channels[0], spec.depth) == (record.width, record.depth)
    assert spec.cls_channels == (record.width if record.has_cls else None)
    assert (getattr(backbone, "cls_token", None) is not None) == record.has_cls
    infos = backbone.feature_info  # timm's own: channels and stride of every block or stage
    assert len(infos) == record.depth
    for tap, width, stride in zip(record.taps, spec.channels[1:], encoder.strides(record.taps), strict=True):
        assert (infos[tap]["num_chs"], infos[tap]["reduction"]) == (width, stride)


@pytest.mark.parametrize("name", SMALLEST)
def test_tokens_have_the_shapes_that_the_record_promises(name):
    record = ENCODERS[name]
    taps = (-1, 0, record.depth - 1)
    with blueprint():
        encoder = Encoder(EncoderConfig(name=name))
        features = encoder(torch.empty(2, 3, 2 * record.patch, 3 * record.patch), taps)
    grids = [(2 * record.patch // stride, 3 * record.patch // stride) for stride in encoder.strides(taps)]
    assert list(features.grids) == grids
    assert grids[0] == features.grid == (2, 3)
    shapes = [(2, h * w, width) for (h, w), width in zip(grids, encoder.spec(taps).channels, strict=True)]
    assert [tuple(tokens.shape) for tokens in features.tokens] == shapes
    assert (None if features.cls is None else features.cls.shape[1]) == encoder.spec().cls_channels


def test_the_weights_that_a_record_names_are_known_to_timm():
    for name, record in ENCODERS.items():
        if record.timm_weights is None:
            assert record.family in ("world", "ViT") or record.hub == f"nvidia/{name.replace('_', '-')}"
            continue
        assert is_model(record.timm_name), name
        known = get_pretrained_cfg(record.timm_weights, allow_unregistered=False)
        assert record.licence.lower().split()[0] in known.license, name
        assert record.statistics == (known.mean, known.std)
        if record.sized:
            assert (3, *record.image_size) == tuple(known.input_size), name


def test_images_are_normalised_with_the_statistics_of_the_weights():
    with blueprint():
        eva, deit = (Encoder(EncoderConfig(name=name)) for name in ("eva02_ti", "deit_ti"))
    assert ENCODERS["eva02_ti"].statistics[0] == (0.48145466, 0.4578275, 0.40821073)
    assert ENCODERS["deit_ti"].statistics[0] == ENCODERS["world_teacher"].statistics[0] == (0.485, 0.456, 0.406)
    assert {*dict(eva.named_buffers()), *dict(deit.named_buffers())} >= {"mean", "std"}
    assert "mean" not in eva.state_dict()


@pytest.mark.parametrize(
    ("depth", "taps"),
    [(6, (1, 2, 3, 5)), (12, (3, 5, 7, 11)), (24, (7, 11, 15, 23)), (32, (7, 15, 23, 31)), (40, (9, 19, 29, 39)),
     (2, (0, 0, 0, 1)), (1, (0, 0, 0, 0))],
)  # fmt: skip
def test_heads_read_the_papers_blocks_or_those_at_the_same_depth(depth, taps):
    assert block_taps(depth) == taps


@pytest.mark.parametrize(
    ("strides", "taps"),
    [((4, 8, 16, 32), (0, 1, 2, 3)), ((2, 4, 8, 16, 32), (1, 2, 3, 4)), ((4, 4, 8, 16, 16, 32), (1, 2, 4, 5)),
     ((7, 14, 14), (0, 0, 0, 2)), ((16,) * 12, (3, 5, 7, 11))],
)  # fmt: skip
def test_heads_read_the_last_stage_of_each_of_the_four_coarsest_strides(strides, taps):
    assert stage_taps(strides) == taps


def test_a_timm_backbone_gets_its_record_from_itself():
    record = record_of("timm:test_convnext")
    with torch.device("meta"):
        bare = timm.create_model("test_convnext", num_classes=0)
    assert record.stages == tuple((info["num_chs"], info["reduction"]) for info in bare.feature_info)
    assert record.parameters == sum(parameter.numel() for parameter in bare.parameters()) + 3  # the hidden colour
    assert (record.patch, record.width, record.taps, record.has_cls) == (32, 64, (0, 1, 2, 3), False)
    assert record.licence == "see the model's page"
    assert record_of("timm:test_convnext") is record
    tagged = record_of("timm:test_vit.r160_in1k")
    assert (tagged.patch, tagged.depth, tagged.width, tagged.has_cls, tagged.plain) == (16, 6, 64, True, True)
    assert tagged.statistics == ((0.5,) * 3, (0.5,) * 3)


def test_deriving_a_record_draws_no_random_number():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    record_of("timm:test_resnet")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "dinov3"}, "unknown encoder 'dinov3': did you mean 'dinov3_"),
        ({"name": "resnet34"}, "unknown encoder 'resnet34': did you mean 'timm:resnet34'"),
        ({"name": "timm:convnext_tinny"}, "timm has no backbone 'convnext_tinny': did you mean 'convnext_tiny'"),
        ({"name": "timm:test_vit.r160"}, "knows no weights 'test_vit.r160': did you mean 'test_vit.r160_in1k'"),
        ({"name": "timm:pit_ti_224"}, "timm's pit_ti_224 cannot be an encoder.*27 x 27 for 224 x 224"),
        ({"name": "timm:test_resnet", "patch": 16}, "is not a plain ViT, its patch of 32 is fixed: leave `patch` out"),
        ({"name": "timm:test_resnet", "image_size": [64, 64]}, "takes images of any size: leave `image_size` out"),
        ({"name": "dinov3_convnext_ti", "image_size": [64, 64]}, "takes images of any size: leave `image_size` out"),
        ({"name": "sam_b", "patch": 8}, "sam_b is not a plain ViT"),
        ({"name": "timm:test_resnet", "layer_scale": True}, "is not a plain ViT: leave `layer_scale` out"),
        ({"name": "timm:test_vit", "image_size": [60, 64]}, "60 x 64 is not divisible by the patch 16"),
        ({"name": "timm:efficientformer_l1", "image_size": [64, 64]}, r"cannot be built for \(64, 64\)"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_user_errors(settings, message):
    with pytest.raises(UserError, match=message) as error:
        parse(EncoderConfig, settings, "student")
    assert "\n" not in str(error.value)
