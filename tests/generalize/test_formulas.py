"""Each baseline's formula: the golden values of the published code, and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from checks import wave
from segdistill.config import UserError
from segdistill.generalize import (
    GENERALIZERS,
    TLDR,
    AdvStyle,
    Facts,
    FeatureDistance,
    Seen,
    Shade,
    advstyle,
    shade,
    tldr,
)
from segdistill.generalize.feature_distance import lengths
from segdistill.generalize.things import ThingsConfig, reduced, thing_classes
from segdistill.generalize.wct import NOISE, transfer
from segdistill.ops import generator
from segdistill.types import Features

S, T = wave((2, 4, 4, 4), 0.3, 0.2), wave((2, 4, 4, 4), 0.7, 0.5)
LABELS = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 255], [2, 2, 2, 1], [2, 0, 2, 2]])
NAMES = ("road", "car", "person")


def tokens(maps):
    return maps.flatten(2).transpose(1, 2)


def noise(name, *shape):
    return torch.randn(shape, generator=generator("generalize", name), dtype=torch.float64)


def features(*taps, grid=(4, 4)):
    return Features(tuple(taps), None, grid)


# --- golden values --------------------------------------------------------------------------------------------------


def test_advstyle_equals_the_authors_pseudo_code():
    images, labels = wave((2, 3, 4, 4), 0.3, 0.2), (torch.arange(32) % 3).reshape(2, 4, 4)
    kernel = wave((3, 3, 1, 1), 0.7, 0.1)
    restyled = advstyle.ascended(images, 1.0, lambda x: F.cross_entropy(F.conv2d(x, kernel), labels))
    losses = [
        F.cross_entropy(F.conv2d(x, kernel), torch.cat([labels] * (len(x) // 2))).item()
        for x in (images, restyled, torch.cat([images, restyled]))
    ]
    assert losses == pytest.approx([1.4191514837087622, 1.5590549557852638, 1.489103219747013], rel=1e-12)


def test_shade_equals_the_authors_functions():
    assert 10 * shade.consistency(wave((4, 3, 2, 2), 0.9)).item() == pytest.approx(1.6971967852560663, rel=1e-12)
    distance = shade.mean_squares(tokens(S) - tokens(T)).mean().item()
    assert distance == pytest.approx(0.9843026328879314, rel=1e-12)
    assert reduced(LABELS[None], (2, 2), 0.75, (0, 1, 2)).tolist() == [[[0, 1], [2, 2]]]


def test_tldr_and_daformer_equal_the_authors_functions():
    grams = tldr.gram(tokens(S)), tldr.gram(tokens(T))
    assert tldr.gram_distance(*grams).item() == pytest.approx(0.165179478404006, rel=1e-12)
    assert int(tldr.gained(grams[1], grams[0], 0.1).sum()) == 9
    assert lengths(tokens(S) - tokens(T)).mean().item() == pytest.approx(1.7940502984267175, rel=1e-12)


# --- NumPy ----------------------------------------------------------------------------------------------------------


def test_advstyle_is_one_step_of_plain_gradient_ascent_in_numpy():
    """The loss is linear in the pixels, so the slopes have a closed form."""
    images, slope = noise("x", 2, 3, 4, 5), noise("slope", 2, 3, 4, 5)
    made = advstyle.ascended(images, 0.7, lambda x: (x * slope).sum())
    x, g = images.numpy(), slope.numpy()
    mean = x.mean((2, 3), keepdims=True)
    std = np.sqrt(x.var((2, 3), ddof=1, keepdims=True) + 1e-5)
    flat = (x - mean) / std
    mean = mean + 0.7 * g.sum((2, 3), keepdims=True)
    std = std + 0.7 * (g * flat).sum((2, 3), keepdims=True)
    np.testing.assert_allclose(made.numpy(), flat * std + mean, rtol=1e-12)


@pytest.mark.parametrize("step", [0.1, 1.0, 3.0])
def test_advstyles_step_is_an_ascent_and_its_images_are_pixels(step):
    images, kernel = noise("pixels", 4, 3, 8, 8).sigmoid(), noise("kernel", 5, 3, 3, 3)
    labels = torch.randint(0, 5, (4, 8, 8), generator=generator("labels"))

    def loss(x):
        return F.cross_entropy(F.conv2d(x, kernel, padding=1), labels)

    assert loss(advstyle.ascended(images, step, loss)) > loss(images)
    made = AdvStyle(AdvStyle.Config(step=1e4), Facts(NAMES, (4,))).restyle(images, None, loss)
    assert not made.requires_grad
    assert (made.min(), made.max()) == (0, 1)


def test_advstyle_ascends_in_full_precision_under_half():
    """Slopes of single pixels vanish in fp16."""
    images, kernel = noise("pixels", 2, 3, 8, 8).sigmoid().float(), noise("kernel", 5, 3, 3, 3).float()
    labels, seen = torch.randint(0, 5, (2, 8, 8), generator=generator("labels")), []

    def loss(x):
        scores = F.conv2d(x, kernel, padding=1)
        seen.append(scores.dtype)
        return F.cross_entropy(scores.float(), labels)

    exact = advstyle.ascended(images, 1.0, loss)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            made = advstyle.ascended(images, 1.0, loss)
        torch.testing.assert_close(made, exact, rtol=0, atol=0.0 if dtype is torch.float16 else 0.02)
    assert seen == [torch.float32, torch.float32, torch.bfloat16]


def test_restyled_maps_have_the_statistics_that_they_are_given():
    maps, styles = noise("maps", 3, 4, 6, 6), noise("styles", 3, 8).exp()
    made = shade.restyled(maps, styles)
    np.testing.assert_allclose(made.mean((2, 3)), styles[:, :4], rtol=1e-6)
    np.testing.assert_allclose(made.numpy().std((2, 3), ddof=1), styles[:, 4:], rtol=1e-5)
    own = shade.style_of(maps)
    np.testing.assert_allclose(own[:, :4], maps.numpy().mean((2, 3)), rtol=1e-10)
    np.testing.assert_allclose(own[:, 4:], np.sqrt(maps.numpy().var((2, 3), ddof=1) + 1e-7), rtol=1e-10)


def test_prototypes_are_the_farthest_points():
    points = noise("points", 40, 3)
    chosen = shade.farthest_points(points, 12, 7).tolist()
    assert chosen[0] == 7
    x = points.numpy()
    for number in range(1, 12):
        nearest = np.min([np.linalg.norm(x - x[each], axis=1) for each in chosen[:number]], axis=0)
        assert chosen[number] == nearest.argmax()
    corners = torch.tensor([[0.0, 0], [9, 9], [0.1, 0], [9, 0], [0, 9], [5, 4]])
    assert set(shade.farthest_points(corners, 4, 0).tolist()) == {0, 1, 3, 4}
    with pytest.raises(UserError, match="shade: 41 prototypes of 40 styles; lower prototypes"):
        shade.farthest_points(points, 41, 0)


def test_shade_mixes_its_prototypes_as_the_weights_say(monkeypatch):
    part = Shade(Shade.Config(prototypes=4, retrospection=0), Facts(NAMES, (5,), 3))
    styles = noise("known styles", 30, 6).exp().float()
    part.renew(styles)
    drawn = []
    kept = shade.own_rows
    monkeypatch.setattr(shade, "own_rows", lambda whole: drawn.append(kept(whole)) or drawn[-1])
    early = noise("early", 2, 3, 5, 5).float().requires_grad_()
    made = part.alter(early)
    assert torch.equal(made[:2], early)
    weights = drawn[0].numpy()
    np.testing.assert_allclose(weights.sum(1), 1)
    mixed = weights @ part.prototypes.numpy().astype(float)
    np.testing.assert_allclose(made[2:].detach().mean((2, 3)), mixed[:, :3], rtol=1e-4)
    np.testing.assert_allclose(made[2:].detach().std((2, 3)), mixed[:, 3:], rtol=1e-4)
    again = part.alter(early)
    assert not torch.equal(again, made)  # two scales of one image have different styles
    made[2:].sum().backward()
    assert early.grad is not None


def test_dirichlet_weights_mostly_choose_one_of_many_prototypes():
    """With a concentration of 1 / K a single weight dominates; with a high one the mix is even."""
    for concentration, low, high in ((None, 0.5, 0.75), (100.0, 0.0, 0.1)):  # the Golomb-Dickman constant is 0.62
        part = Shade(Shade.Config(prototypes=64, concentration=concentration, retrospection=0), Facts(NAMES, (5,), 64))
        part.prototypes[:, :64] = torch.eye(64)  # the new means are the weights
        part.prototypes[:, 64:] = 1.0
        torch.manual_seed(0)
        weights = part.alter(torch.randn(100, 64, 4, 4))[100:].mean((2, 3))
        assert low <= weights.max(1).values.mean() <= high


def test_consistency_is_the_jensen_shannon_divergence():
    from scipy.spatial.distance import jensenshannon

    logits = noise("logits", 6, 4, 3, 5)
    p, q = np.split(logits.softmax(1).numpy(), 2)
    assert shade.consistency(logits).item() == pytest.approx((jensenshannon(p, q, axis=1) ** 2).mean(), rel=1e-9)
    assert shade.consistency(torch.cat([logits[:3], logits[:3]])).item() == pytest.approx(0, abs=1e-12)
    assert shade.consistency(logits * 1e4).isfinite()


def test_labels_are_reduced_to_cells_that_are_almost_one_class():
    labels = torch.randint(0, 2, (3, 12, 8), generator=generator("reduced"))
    labels[0, :4, :4], labels[1, 4:8, 4:] = 2, 255
    made = reduced(labels, (3, 2), 0.75, (1, 2))
    for image, row, column in np.ndindex(3, 3, 2):
        cell = labels[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].numpy()
        shares = {each: (cell == each).mean() for each in (1, 2)}
        expected = next((each for each, share in shares.items() if share >= 0.75), 255)
        assert made[image, row, column] == expected


def thing_mean(each):
    """The mean of ``each`` (views * B, N) over the cells of cars and persons in LABELS and its mirror image."""
    inside = np.array([[False, True, True, True], [True, False, True, True]] * (len(each) // 2))
    return each[inside].mean()


SEEN = Seen(
    labels=torch.stack([LABELS, LABELS.flip(1)]),
    features=features(noise("own", 4, 4, 6), grid=(2, 2)),
    reference=features(noise("start", 2, 4, 6), grid=(2, 2)),
    logits=noise("class logits", 4, 3, 2, 2),
)


@pytest.mark.parametrize("views", [1, 2])
def test_feature_distance_is_the_mean_norm_on_things(views):
    seen = Seen(SEEN.labels, SEEN.features.part(rows=slice(2 * views)), SEEN.reference)
    part = FeatureDistance(FeatureDistance.Config(weight=0.3), Facts(NAMES, (6,)))
    target = np.concatenate([SEEN.reference.tokens[0].numpy()] * views)
    expected = 0.3 * thing_mean(np.linalg.norm(SEEN.features.tokens[0].numpy()[: 2 * views] - target, axis=-1))
    assert part.terms(seen)["feature_distance"].item() == pytest.approx(expected, rel=1e-5)


def test_retrospection_is_the_mean_square_on_things_of_both_views():
    part = Shade(Shade.Config(prototypes=2), Facts(NAMES, (6,), 3))
    target = np.concatenate([SEEN.reference.tokens[0].numpy()] * 2)
    expected = thing_mean(((SEEN.features.tokens[0].numpy() - target) ** 2).mean(-1))
    terms = part.terms(SEEN)
    assert terms["retrospection"].item() == pytest.approx(expected, rel=1e-5)
    assert terms["consistency"].item() == pytest.approx(10 * shade.consistency(SEEN.logits).item(), rel=1e-5)


def test_equal_features_give_no_distance_and_a_gradient_of_zero():
    own = noise("same", 2, 4, 6).requires_grad_()
    seen = Seen(SEEN.labels, features(own, grid=(2, 2)), features(own.detach(), grid=(2, 2)))
    term = FeatureDistance(FeatureDistance.Config(), Facts(NAMES, (6,))).terms(seen)["feature_distance"]
    term.backward()
    assert term.item() == 0
    assert torch.equal(own.grad, torch.zeros_like(own))


def test_without_things_in_the_batch_the_distances_are_zero():
    nothing = Seen(torch.zeros(2, 4, 4, dtype=torch.int64), SEEN.features, SEEN.reference, SEEN.logits)
    assert FeatureDistance(FeatureDistance.Config(), Facts(NAMES, (6,))).terms(nothing)["feature_distance"] == 0
    assert Shade(Shade.Config(prototypes=2), Facts(NAMES, (6,), 3)).terms(nothing)["retrospection"] == 0


def test_tldrs_terms_in_numpy():
    shapes = ((4, 16, 3), (4, 4, 5))
    own = [noise(f"tldr {i}", *shape) for i, shape in enumerate(shapes)]
    start, styles = ([noise(f"{name} {i}", 2, *shape[1:]) for i, shape in enumerate(shapes)] for name in ("f", "r"))
    seen = Seen(SEEN.labels, features(*own), features(*start), None, features(*styles), progress=0.25)
    config = TLDR.Config(regularisation=(0.5, 0.3), generalisation=(0.7,), threshold=0.05)
    terms = TLDR(config, Facts(NAMES, (3, 5))).terms(seen)

    def gram(x):
        return np.einsum("bnc,bnd->bcd", x, x) / x.shape[1]

    grams = [[gram(x.numpy()) for x in level] for level in zip(own, start, styles, strict=True)]
    kept = sum(
        weight * np.sqrt(((both[:2] - frozen) ** 2).sum()) / both.shape[-1]
        for weight, (both, frozen, _) in zip((0.5, 0.3), grams, strict=True)
    )
    both, _, other = grams[0]
    mask = (both[2:] - both[:2]) > 0.05
    widened = 0.7 * np.sqrt(((mask * (other - both[2:])) ** 2).sum()) / 3
    assert 0 < mask.sum() < mask.size
    assert terms["texture_regularisation"].item() == pytest.approx(0.75 * kept, rel=1e-5)
    assert terms["texture_generalisation"].item() == pytest.approx(0.75 * widened, rel=1e-5)


@pytest.mark.parametrize(("regularisation", "generalisation"), [((0.5, 0.3, 0.2), (0.7,)), ((0.5,), (0.7, 0.2))])
def test_only_weighted_gram_matrices_are_computed_and_values_do_not_change_by_a_bit(
    monkeypatch, regularisation, generalisation
):
    """Against all matrices of all taps."""
    config = TLDR.Config(regularisation=regularisation, generalisation=generalisation)
    shapes = [(4, 48, 16), (4, 24, 24), (4, 12, 40)]
    own, start, styles = ([noise(f"{who} {level}", *shape).float() for level, shape in enumerate(shapes)]
                          for who in ("own", "start", "styles"))  # fmt: skip
    start, styles = [x[:2] for x in start], [x[2:] for x in styles]
    kept, widened, found = [], [], []
    for each in own:
        each.requires_grad_()
    for both, first, style in zip(*([tldr.gram(x) for x in level] for level in (own, start, styles)), strict=True):
        kept.append(tldr.gram_distance(both[:2], first))
        widened.append(tldr.gram_distance(both[2:], style, tldr.gained(both[2:], both[:2], config.threshold)))
    old = [torch.stack([weight * value for weight, value in zip(weights, values, strict=False)]).sum()
           for weights, values in ((regularisation, kept), (generalisation, widened))]  # fmt: skip
    gram = tldr.gram
    monkeypatch.setattr(tldr, "gram", lambda x: found.append(len(x)) or gram(x))
    seen = Seen(torch.zeros(2, 4, 4, dtype=torch.int64), features(*own), features(*start), styles=features(*styles))
    new = list(TLDR(config, Facts(NAMES, (16, 24, 40))).terms(seen).values())
    assert sum(found) == 2 * len(regularisation) + 2 * len(generalisation) + sum(
        2 * (1 + (level < len(generalisation))) for level in range(max(len(regularisation), len(generalisation)))
    )
    assert torch.equal(torch.stack(new), torch.stack(old))
    for ours, theirs in zip(*(torch.autograd.grad(sum(x), own, allow_unused=True) for x in (new, old)), strict=True):
        assert (ours is None) == (theirs is None) or not theirs.any()
        assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_the_transfer_gives_the_styles_mean_and_covariance(block):
    """Content with enough variance, in the middle of the range so that nothing is clamped."""
    content = 0.5 + 0.1 * noise("content", 2, 3, 32, 32)
    style = 0.5 + 0.03 * F.avg_pool2d(noise("style", 2, 3, 34, 34), 3, 1) + 0.01 * noise("grain", 2, 3, 32, 32)
    made = transfer(content, style, block)

    def cells(images):
        blocks = images.reshape(2, 3, 32 // block, block, 32 // block, block)
        return blocks.permute(0, 2, 4, 1, 3, 5).reshape(2, -1, 3 * block * block).numpy()

    for result, wanted in zip(cells(made), cells(style), strict=True):
        np.testing.assert_allclose(result.mean(0), wanted.mean(0), atol=1e-5)
        expected = np.cov(wanted.T, bias=True) + NOISE * np.eye(len(wanted.T))
        np.testing.assert_allclose(np.cov(result.T, bias=True), expected, atol=2e-5)


def test_the_transfer_keeps_sizes_that_blocks_do_not_fill_and_flat_images_finite():
    content, style = torch.full((2, 3, 30, 45), 0.5), torch.rand(2, 3, 17, 19)
    made = transfer(content, style, 4)
    assert made.shape == content.shape
    assert made.isfinite().all()
    assert made.std() < 0.3
    same = torch.rand(1, 3, 32, 32)
    assert (transfer(same, same, 4) - same).abs().max() < 0.01


# --- settings -------------------------------------------------------------------------------------------------------


def test_things_are_chosen_by_name():
    assert thing_classes(ThingsConfig(), NAMES) == (1, 2)
    assert thing_classes(ThingsConfig(), [name.title() for name in NAMES]) == (1, 2)
    assert thing_classes(ThingsConfig(things=("road",)), NAMES) == (0,)
    with pytest.raises(UserError, match="things: the data has no class 'tree'; allowed: road, car, person"):
        thing_classes(ThingsConfig(things=("tree",)), NAMES)
    with pytest.raises(UserError, match=r"things: the data has none of traffic light, .*; allowed: grass"):
        thing_classes(ThingsConfig(), ("grass",))
    with pytest.raises(UserError, match="tldr: regularisation has 4 weights, the head reads 2 taps"):
        TLDR(TLDR.Config(), Facts(NAMES, (3, 5)))


@pytest.mark.parametrize("name", GENERALIZERS)
def test_terms_are_finite_scalars_with_gradients_in_half_precision(name):
    """In bf16 autocast on bf16 features, and near their value in full precision."""
    part = GENERALIZERS[name](GENERALIZERS[name].Config(), Facts(NAMES, (6, 6, 6, 6), 3))
    taps = [noise(f"tap {i}", 4, 4, 6).float() for i in range(4)]

    def seen(dtype):
        own = [tap.to(dtype, copy=True).requires_grad_() for tap in taps]
        frozen, styles = (features(*(tap[:2].to(dtype) * 1.5 for tap in taps), grid=(2, 2)) for _ in range(2))
        return own, Seen(SEEN.labels, features(*own, grid=(2, 2)), frozen, SEEN.logits.to(dtype), styles)

    exact = part.terms(seen(torch.float32)[1])
    own, half = seen(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        terms = part.terms(half)
    assert set(terms) == set(exact)
    assert (name == "advstyle") == (not terms)
    for key, term in terms.items():
        assert (term.shape, term.dtype) == ((), torch.float32)
        torch.testing.assert_close(term, exact[key], rtol=0.05, atol=1e-5)
    if terms:
        sum(terms.values()).backward()
        assert own[-1].grad.isfinite().all()
        assert own[-1].grad.abs().sum() > 0
