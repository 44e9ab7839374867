"""HRDA's two scales: the fused map against NumPy, the crops, the loss, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fake_encoder import FakeEncoder, seeded
from segdistill.config import UserError, parse
from segdistill.export.graph import Graph
from segdistill.heads import DAFormer
from segdistill.models import HRDA, Segmenter
from segdistill.models.hrda import fuse
from segdistill.ops import generator
from segdistill.recipe import Recipe
from segdistill.stages.base import ModelConfig
from segdistill.tasks.table import TASKS

K, TAPS = 3, (0, 1, 2, 3)


def build(seed=0, **settings) -> HRDA:
    """A network on patches of 8 pixels with detail crops of 16 x 32 pixels."""
    scales = {"detail": (16, 32), "attention_width": 8} | settings
    config = DAFormer.Config(width=8, dropout=0.0, two_scale=scales)

    def make():
        encoder = FakeEncoder(6)
        return TASKS["semantic"].build(encoder, DAFormer(config, (6,) * 4, (8,) * 4, K), TAPS, K)

    return seeded(make, seed)


def picture(height=32, width=64, batch=2):
    return torch.rand(batch, 3, height, width, generator=generator("picture", height))


def doubled(values: np.ndarray) -> np.ndarray:
    """Bilinear enlargement of the last two axes by 2: cell centres at halves, the border repeated."""
    for axis in (-2, -1):
        side = values.shape[axis]
        places = (np.arange(2 * side) + 0.5) / 2 - 0.5
        values = np.apply_along_axis(lambda row, at=places, n=side: np.interp(at, np.arange(n), row), axis, values)
    return values


def restated(context, attention, details, corners):
    """The definition, crop by crop and cell by cell."""
    _, _, h, w = context.shape
    canvas, times = np.zeros((*context.shape[:2], 2 * h, 2 * w)), np.zeros((2 * h, 2 * w))
    inside = np.zeros((h, w))
    p, q = details.shape[-2:]
    for crop, (y, x) in zip(details, corners, strict=True):
        canvas[:, :, y // 4 : y // 4 + p, x // 4 : x // 4 + q] += crop
        times[y // 4 : y // 4 + p, x // 4 : x // 4 + q] += 1
        inside[y // 8 : y // 8 + p // 2, x // 8 : x // 8 + q // 2] = 1
    canvas /= np.maximum(times, 1)
    attention = attention * inside
    return doubled((1 - attention) * context) + doubled(attention) * canvas


@pytest.mark.parametrize("corners", [((8, 16),), ((0, 0),), ((16, 32),), ((0, 0), (8, 16)), ((0, 0), (16, 32), (8, 8))])
def test_the_fused_map_equals_its_definition(corners):
    rng = np.random.default_rng(len(corners))
    context, attention = rng.normal(size=(2, K, 4, 8)), rng.uniform(size=(2, K, 4, 8))
    details = rng.normal(size=(len(corners), 2, K, 4, 8))
    expected = restated(context, attention, details, corners)
    ours = fuse(*map(torch.tensor, (context, attention, details)), corners).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_at_the_border_of_the_crop_the_attention_fades_and_beyond_it_the_context_is_alone():
    context, attention = torch.full((1, 1, 4, 8), 2.0), torch.ones(1, 1, 4, 8)
    details = torch.full((1, 1, 1, 4, 8), 10.0)  # rows 2 to 5 and columns 4 to 11 of the fused map's 8 x 16
    fused = fuse(context, attention, details, ((8, 16),))[0, 0]
    middle = fused[4]
    # From the inside: detail alone, then 1/4 context, then (outside, where the detail is 0) 3/4 context, then context.
    assert middle[5:11].tolist() == [10.0] * 6
    assert [middle[4], middle[3], middle[2]] == [0.75 * 10 + 0.25 * 2, 0.75 * 2, 2.0]
    assert [middle[11], middle[12], middle[13]] == [8.0, 1.5, 2.0]


def test_the_network_is_what_the_parts_give_alone():
    model, images = build().eval(), picture()
    half = images.unflatten(2, (16, 2)).unflatten(4, (32, 2)).mean((3, 5))  # halving bilinearly is averaging 2 x 2
    with torch.no_grad():
        decoded = model.decode(model.features(images))
        encoded = model.encoder(half, TAPS)
        maps = tuple(tokens.mT.unflatten(2, grid) for tokens, grid in zip(encoded.tokens, encoded.grids, strict=True))
        context, attention = model.head.decode(maps), model.head.attend(maps)
    details = []
    for y, x in decoded.corners:
        crop = Segmenter(model.encoder, model.head, TAPS, K).eval()
        part = images[:, :, y : y + 16, x : x + 32]
        with torch.no_grad():
            details.append(crop.decode(crop.features(part)))
    expected = restated(*(part.numpy() for part in (context, attention, torch.stack(details))), decoded.corners)
    np.testing.assert_allclose(decoded.fused.numpy(), expected, rtol=0, atol=1e-5)
    assert (attention > 0).all()
    assert (attention < 1).all()


def test_a_context_of_no_whole_cells_is_padded():
    model, images = build().eval(), picture(40, 72)
    half = images.unflatten(2, (20, 2)).unflatten(4, (36, 2)).mean((3, 5))
    padded = torch.nn.functional.pad(half, (0, 4, 0, 4), mode="replicate")
    with torch.no_grad():
        features = model.features(images)
        assert features.grid == (3, 5)
        assert features.cells == (5, 9)
        assert model.decode(features).fused.shape == (2, K, 10, 18)
        torch.testing.assert_close(features.tokens, model.encoder(padded, TAPS).tokens)


def test_crops_cover_the_image_in_evaluation_and_are_drawn_in_training():
    model = build()
    size, corners = model.eval().crops(48, 64)
    assert size == (16, 32)
    assert corners == tuple((y, x) for y in (0, 8, 16, 24, 32) for x in (0, 16, 32))
    drawn = {seeded(lambda: model.train().crops(48, 64)[1][0], seed) for seed in range(200)}
    assert drawn == {(y, x) for y in range(0, 33, 8) for x in range(0, 33, 8)}
    assert model.eval().crops(16, 16) == ((16, 16), ((0, 0),))


def test_the_loss_is_that_of_the_fused_map_and_of_the_crop():
    model, images = build(detail_weight=0.25), picture()
    labels = torch.randint(0, K, (2, 32, 64), generator=generator("labels"))
    labels[0, :4] = 255
    decoded = seeded(lambda: model.train().decode(model.features(images)))
    terms = model.loss_of(decoded, {"label": labels})
    [(y, x)] = decoded.corners

    def entropy(logits, labels):
        scores = torch.nn.functional.interpolate(logits.double(), scale_factor=4, mode="bilinear").detach().numpy()
        log = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        known = labels.numpy() != 255
        picked = np.take_along_axis(log, np.where(known, labels.numpy(), 0)[:, None], 1)[:, 0]
        return -picked[known].mean()

    assert terms["cross_entropy"].item() == pytest.approx(0.75 * entropy(decoded.fused, labels), abs=1e-5)
    crop = labels[:, y : y + 16, x : x + 32]
    assert terms["detail"].item() == pytest.approx(0.25 * entropy(decoded.details[0], crop), abs=1e-5)


def test_the_gradient_reaches_every_parameter():
    model = build().train()
    labels = torch.randint(0, K, (2, 32, 64), generator=generator("labels"))
    sum(model.loss({"image": (255 * picture()).byte(), "label": labels}).values()).backward()
    silent = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.abs().max() > 0]
    assert not silent


@pytest.mark.parametrize("change", [{"detail": (8, 32)}, {"detail_weight": 0.5}, {"attention_width": 4}])
def test_every_setting_matters(change):
    def loss(model):
        decoded = seeded(lambda: model.train().decode(model.features(picture())))
        return sum(model.loss_of(decoded, {"label": torch.zeros(2, 32, 64, dtype=torch.int64)}).values()).item()

    assert loss(build()) != loss(build(**change))


def test_images_of_any_size_are_scored_and_the_state_loads_again():
    one, other = build(1).eval(), build(2).eval()
    with torch.no_grad():
        assert one.scores(picture(37, 50)).shape == (2, K, 37, 50)
        assert one.padded(37, 50) == (40, 56)
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.scores(picture()), other.scores(picture()))
        assert one.predict(picture()).shape == (2, 32, 64)


def test_parts_of_the_features_are_those_of_the_images():
    model, images = build().eval(), picture(batch=3)
    with torch.no_grad():
        features = model.features(images)
        some, alone = features.part(rows=slice(1, 3)), model.features(images[1:3])
        torch.testing.assert_close(model.decode(some).fused, model.decode(alone).fused)
    assert [tuple(tokens.shape) for tokens in features.blank().tokens] == [(1, 8, 6)] * 4
    assert features.blank().detail.tokens[0].shape == (len(features.corners), 8, 6)


def test_what_two_scales_cannot_do_is_refused_in_one_line():
    model = build()
    for call, message in (
        (lambda: model.decode(model.encoder(picture(), TAPS)), "needs features of both scales"),
        (lambda: model.features(picture(28, 64)), "28 x 64 is not divisible by 8"),
        (lambda: build(detail=(12, 32)).features(picture()), r"two_scale.detail: \(12, 32\) is not divisible by 8"),
        (lambda: Graph(model), "cannot be exported"),
        (lambda: DAFormer(DAFormer.Config(width=8), (6,), (8,), K).attend((torch.ones(1, 6, 2, 2),)), "has one scale"),
    ):
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


HEAD = {"type": "daformer", "width": 8, "two_scale": {"detail": [16, 32]}}


@pytest.mark.parametrize(
    ("size", "stage", "teacher", "message"),
    [
        ([32, 60], {}, None, "32 x 60 is not divisible by 8"),
        ([32, 64], {"method": {"type": "mse"}}, None, "a head with two_scale trains without a distillation term"),
        ([32, 64], {"method": {"type": "logit_kd"}}, HEAD, "its method compares class scores at a single scale"),
    ],
)
def test_recipes_that_cannot_work_are_refused(size, stage, teacher, message):
    student = {"encoder": {"name": "world_student"}, "head": HEAD}
    values = {
        "name": "x",
        "data": {"size": size, "classes": "world13"},
        "student": student,
        "teacher": {"encoder": {"name": "world_teacher"}, "head": teacher or {"type": "semfpn"}},
        "stages": [{"type": "task", "name": "task", "data": {"domains": ["game"], "images": 1}, "steps": 1} | stage],
    }
    with pytest.raises(UserError, match=message):
        parse(Recipe, values)


def test_a_head_without_two_scales_gives_the_usual_network():
    config = parse(ModelConfig, {"encoder": {"name": "world_student"}, "head": {"type": "daformer", "width": 8}})
    head = DAFormer(config.head.settings, (6,), (8,), K)
    assert type(TASKS["semantic"].build(FakeEncoder(6), head, (0,), K)) is Segmenter
    assert type(build()) is HRDA
