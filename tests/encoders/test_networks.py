"""Networks of every kind against timm's own passes; hidden cells, odd sizes and the heads on top of them."""

from __future__ import annotations

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from segdistill.config import UserError
from segdistill.encoders import Encoder, EncoderConfig, build_encoder
from segdistill.encoders.encoder import FullPrecisionAttention
from segdistill.encoders.walks import final_norm, mask_shape, walk_of, walk_sam
from segdistill.heads import HEADS, pyramid
from segdistill.models import Segmenter, Window
from segdistill.ops import generator, tokens_to_map
from segdistill.ops import maps as maps_of
from segdistill.recipe import Recipe
from segdistill.stages.views import student_views
from segdistill.types import Mask
from segdistill.weights import save_encoder

# The size that each is built for; None: for none.
NETWORKS = {
    "timm:test_convnext": None,
    "timm:test_resnet": None,
    "timm:test_efficientnet": None,
    "timm:test_mambaout": None,  # channels last, its final norm behind the pooling
    "timm:test_vit": (32, 48),
    "timm:test_vit2": (32, 48),  # a register and no CLS token
    "timm:test_maxvit": (32, 64),  # windows that take one size only
}


def jitter(module: torch.nn.Module) -> None:
    """Biases and gains are not the initial ones."""
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator("jitter", index)))


def build(name: str, seed: int = 0) -> Encoder:
    config = EncoderConfig(name=name, image_size=NETWORKS.get(name), resample="timm")
    encoder = build_encoder(config, seed=seed).eval()
    jitter(encoder)
    return encoder


@pytest.fixture(scope="module", params=NETWORKS)
def encoder(request) -> Encoder:
    return build(request.param)


def sizes(encoder: Encoder) -> list[tuple[int, int]]:
    """Two that it takes, or its only one."""
    built = NETWORKS[encoder.name] or (2 * encoder.patch, 3 * encoder.patch)
    return [built, (2 * built[0], built[1])] if encoder.record.flexible else [built]


def picture(size: tuple[int, int], batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, *size, generator=generator("picture"))


@torch.no_grad()
def test_equals_timm(encoder):
    for size in sizes(encoder):
        images = picture(size)
        features = encoder(images, (-1, *encoder.record.taps))
        normal = (images - encoder.mean) / encoder.std
        backbone = encoder.backbone
        final, norm = backbone.forward_features(normal), final_norm(backbone)
        if norm is not None:
            final = norm(final)
        if final.ndim == 4:
            last = final.flatten(1, 2) if getattr(backbone, "output_fmt", "") == "NHWC" else final.flatten(2).mT
        else:
            last = final[:, 1:]  # a CLS token or a register
        torch.testing.assert_close(features.tokens[0], last, rtol=1e-5, atol=1e-5)
        wanted = sorted(set(encoder.record.taps))
        maps = backbone.forward_intermediates(normal, wanted, output_fmt="NCHW", intermediates_only=True)
        expected = {tap: map_.flatten(2).mT for tap, map_ in zip(wanted, maps, strict=True)}
        for tap, ours, grid in zip(encoder.record.taps, features.tokens[1:], features.grids[1:], strict=True):
            torch.testing.assert_close(ours, expected[tap], rtol=1e-5, atol=1e-5)
            assert tuple(tokens_to_map(ours, grid).shape[2:]) == tuple(maps[wanted.index(tap)].shape[2:])


@torch.no_grad()
def test_there_is_a_cls_token_where_timm_has_one(encoder):
    features = encoder(picture(sizes(encoder)[0]))
    assert (features.cls is not None) == encoder.record.has_cls
    assert encoder.record.has_cls == (getattr(encoder.backbone, "cls_token", None) is not None)
    if features.cls is not None:
        normal = (picture(sizes(encoder)[0]) - encoder.mean) / encoder.std
        torch.testing.assert_close(features.cls, encoder.backbone.forward_features(normal)[:, 0])


SMALL = {"img_size": (32, 48), "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 0}
VITS = {
    "sam": lambda: VisionTransformerSAM(
        **SMALL, use_rel_pos=True, window_size=2, global_attn_indexes=(1,), neck_chans=8, norm_layer=nn.LayerNorm
    ),
    "distilled": lambda: VisionTransformerDistilled(**SMALL, global_pool="token", dynamic_img_size=True),
    "registers": lambda: VisionTransformer(**SMALL, reg_tokens=3, no_embed_class=True, dynamic_img_size=True),
    "dinov3": lambda: Eva(
        **SMALL, num_reg_tokens=4, use_abs_pos_emb=False, use_rot_pos_emb=True, rope_type="dinov3",
        rope_rotate_half=True, init_values=1e-5, dynamic_img_size=True, global_pool="token",
    ),
    "mixed rotations": lambda: Eva(
        **SMALL, use_rot_pos_emb=True, rope_type="mixed", attn_type="rope", dynamic_img_size=True, global_pool="token"
    ),
}  # fmt: skip
CLS = {"distilled": 2, "registers": 4, "dinov3": 5, "mixed rotations": 1}  # prefix tokens, the CLS token first


@torch.no_grad()
@pytest.mark.parametrize("kind", VITS)
def test_vits_equal_timm_at_any_size(kind):
    torch.manual_seed(0)
    network = VITS[kind]().eval()
    jitter(network)
    mask = torch.zeros(mask_shape(network))
    for size in ((32, 48), (64, 32)):
        images = picture(size)
        tapped, cls = walk_of(network)(network, images, (-1, 0, 2), mask, None)
        final, maps = network.forward_intermediates(images, [0, 2])
        for tap, expected in ((0, maps[0]), (2, maps[1])):
            torch.testing.assert_close(tapped[tap][0], expected.flatten(2).mT, rtol=1e-5, atol=1e-5)
        last = final.flatten(2).mT if kind == "sam" else final[:, CLS[kind] :]
        torch.testing.assert_close(tapped[-1][0], last, rtol=1e-5, atol=1e-5)
        assert [grid for _, grid in tapped.values()] == [(size[0] // 16, size[1] // 16)] * 3
        if kind == "sam":  # its tap -1 is the neck
            assert cls is None
            assert tapped[-1][0].shape[2] == 8
        else:
            torch.testing.assert_close(cls, final[:, 0])


def test_bf16_training_on_a_cpu_keeps_attention_with_a_bias_in_fp32():
    network = VITS["sam"]()
    jitter(network)
    images, mask = picture((32, 48)), torch.zeros(mask_shape(network))
    exact = walk_sam(network, images, (-1,), mask, None)[0][-1][0]
    with torch.autocast("cpu", torch.bfloat16), FullPrecisionAttention():
        rough = walk_sam(network, images, (-1,), mask, None)[0][-1][0]
    assert (rough - exact).abs().mean() < 0.05
    rough.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", VITS)
def test_a_hidden_token_of_a_vit_keeps_its_place_and_shows_no_pixel(kind):
    torch.manual_seed(0)
    network = VITS[kind]().eval()
    jitter(network)
    mask, images = torch.full(mask_shape(network), 0.1), picture((32, 48))
    hidden = torch.zeros(2, 2, 3, dtype=torch.bool)
    hidden[1, 0, 1] = True
    plain, masked = (walk_of(network)(network, images, (-1,), mask, where)[0][-1][0] for where in (None, hidden))
    torch.testing.assert_close(masked[0], plain[0])
    assert (masked[1] - plain[1]).abs().max() > 1e-3
    images[1, :, :16, 16:32] = 0.3
    torch.testing.assert_close(walk_of(network)(network, images, (-1,), mask, hidden)[0][-1][0], masked)


def cells(encoder: Encoder) -> torch.Tensor:
    """Every second cell of the second of two images."""
    h, w = encoder.mask_grid(*sizes(encoder)[0])
    hidden = torch.zeros(2, h * w, dtype=torch.bool)
    hidden[1, ::2] = True
    return hidden


@torch.no_grad()
def test_hiding_acts_on_its_own_sample_and_hides_every_pixel(encoder):
    hidden, size = cells(encoder), sizes(encoder)[0]
    h, w = encoder.mask_grid(*size)
    images = picture(size)
    plain, masked = encoder(images), encoder(images, hidden=hidden)
    torch.testing.assert_close(masked.tokens[0][0], plain.tokens[0][0])
    assert (masked.tokens[0][1] - plain.tokens[0][1]).abs().max() > 1e-3
    pixels = hidden.view(2, 1, h, w).repeat_interleave(encoder.patch, 2).repeat_interleave(encoder.patch, 3)
    changed = torch.where(pixels, 1 - images, images)
    torch.testing.assert_close(encoder(changed, hidden=hidden).tokens[0], masked.tokens[0])
    assert plain.grid == (h, w)


@torch.no_grad()
def test_a_hidden_pixel_has_the_learnt_colour():
    encoder = build("timm:test_convnext")
    hidden, images = cells(encoder), picture(sizes(encoder)[0])
    encoder.mask_token.copy_(torch.tensor([0.5, -1.0, 2.0]).view(1, 3, 1, 1))
    colour = encoder.mask_token[0] * encoder.std + encoder.mean
    images[1, :, :32, :32] = images[1, :, :32, 64:] = images[1, :, 32:, 32:64] = colour
    torch.testing.assert_close(encoder(images, hidden=hidden).tokens[0], encoder(images).tokens[0])


def test_the_mask_starts_as_the_mean_colour_and_learns(encoder):
    assert build_encoder(encoder.config, seed=0).mask_token.abs().max() == 0
    features = encoder(picture(sizes(encoder)[0]), hidden=cells(encoder))
    (gradient,) = torch.autograd.grad(features.tokens[0].square().sum(), encoder.mask_token)
    assert gradient.abs().max() > 0


def test_every_parameter_feeds_a_tap_or_hides(encoder):
    features = encoder(picture(sizes(encoder)[0]), (-1, *encoder.record.taps), cells(encoder))
    sum(tokens.square().sum() for tokens in (*features.tokens, *([] if features.cls is None else [features.cls]))
        ).backward()  # fmt: skip
    silent = [name for name, parameter in encoder.named_parameters() if parameter.grad is None]
    encoder.zero_grad()
    assert not silent


def test_one_pass_of_plain_and_masked_images_equals_two(encoder):
    images, hidden = picture(sizes(encoder)[0]), cells(encoder)
    mask = Mask(samples=torch.tensor([1]), tokens=hidden[1:])
    taps = (encoder.record.taps[0], -1)
    with torch.no_grad():
        views = student_views(encoder, images, taps, mask)
        plain, masked = encoder(images, taps), encoder(images, taps, hidden)
    for tap in range(2):
        torch.testing.assert_close(views.plain.tokens[tap], plain.tokens[tap])
        torch.testing.assert_close(views.masked.tokens[tap], masked.tokens[tap][1:])
    assert views.plain.grids == views.masked.grids == plain.grids
    assert views.masked.part(taps=slice(0, 1)).grid == plain.grids[0]


def test_the_next_size_that_it_takes_is_named(encoder):
    height, width = sizes(encoder)[0]
    assert encoder.padded(height, width) == (height, width)
    assert encoder.padded(height - 3, width - 1) == (height, width)
    with pytest.raises(UserError, match=f"not divisible by the patch {encoder.patch}: pad or resize it"):
        encoder(picture((height - 3, width)))
    if not encoder.record.flexible:
        for call in (lambda: encoder(picture((2 * height, width))), lambda: encoder.padded(2 * height, width)):
            with pytest.raises(UserError, match=f"is built for, {height} x {width}, not {2 * height} x {width}: set"):
                call()


def test_weights_survive_a_round_trip(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    config = encoder.config.model_copy(update={"weights": str(tmp_path)})
    other = build_encoder(config, seed=9).state_dict()
    assert other.keys() == encoder.state_dict().keys()
    assert all(torch.equal(other[key], value) for key, value in encoder.state_dict().items())


def segmenter(encoder: Encoder, kind: str = "semfpn") -> Segmenter:
    small = {"width": 64, "queries": 4, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "points": 16,
             "encoder_feedforward": 8, "decoder_feedforward": 8}  # fmt: skip
    fields = HEADS[kind].Config.model_fields
    known = {key: value for key, value in small.items() if key in fields}
    config = HEADS[kind].Config(**({"width": 8} if kind == "semfpn" else known))
    taps = encoder.record.taps
    torch.manual_seed(0)
    return Segmenter(
        encoder, HEADS[kind](config, encoder.spec(taps).channels, encoder.strides(taps), 5), taps, 5
    ).eval()  # fmt: skip


@torch.no_grad()
def test_images_of_any_size_are_segmented(encoder):
    model = segmenter(encoder)
    height, width = sizes(encoder)[0]
    assert model.scores(picture((height - 5, width - 9))).shape == (2, 5, height - 5, width - 9)
    window = Window(size=(height, width), stride=(height // 2, width))
    assert model.predict(picture((height + 7, width + 3)), window).shape == (2, height + 7, width + 3)


@torch.no_grad()
@pytest.mark.parametrize("kind", [name for name, head in HEADS.items() if head.has_logits])
def test_levels_of_a_hierarchical_network_are_its_own_maps(kind):
    model = segmenter(build("timm:test_convnext"), kind)
    maps = maps_of(model.features(picture((64, 96))))
    assert [tuple(map_.shape[2:]) for map_ in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    levels = pyramid.feature_pyramid(maps, model.head.strides)
    assert all(level is map_ for level, map_ in zip(levels, maps, strict=True))
    assert model.head.scores(maps, (64, 96)).shape == (2, 5, 64, 96)
    labels = torch.zeros(2, 64, 96, dtype=torch.int64)
    assert all(term.isfinite() for term in model.head.loss(maps, labels).values())


@pytest.mark.parametrize(
    ("student", "size", "message"),
    [
        ({"name": "timm:test_convnext"}, [48, 64], "48 x 64 is not divisible by the patch 32"),
        ({"name": "timm:test_maxvit"}, [64, 64], "built for, 160 x 160, not 64 x 64: set its image_size"),
        ({"name": "timm:test_maxvit", "image_size": [64, 64]}, [64, 64], None),
    ],
)
def test_a_recipe_whose_images_do_not_fit_is_refused(student, size, message):
    values = {
        "name": "x",
        "data": {"size": size, "classes": "world13"},
        "student": {"encoder": student, "head": {"type": "semfpn"}},
        "stages": [{"type": "task", "name": "task", "data": {"domains": ["game"], "images": 1}, "steps": 1}],
    }
    if message is None:
        assert Recipe.model_validate(values)
    else:
        with pytest.raises(ValueError, match=message):
            Recipe.model_validate(values)
