"""The pixel contrast against closed forms and an independent restatement."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segdistill.config import UserError
from segdistill.methods import pixel_contrast
from segdistill.methods.pixel_contrast import PixelContrast, info_nce

CUES = ("fusion", "mask", "class", "uniform")
GRID = (4, 6)


def build(channels=5, seed=0, **settings):
    torch.manual_seed(seed)
    return PixelContrast(PixelContrast.Config(**({"hidden": 8, "width": 4, "anchors": 24} | settings)), channels)


def two_objects(batch=2):
    """Left and right halves are objects of one class, predicted with certainty by queries 0 and 1; class 2 of 3."""
    ids = torch.ones(batch, *GRID, dtype=torch.int64)
    ids[:, :, GRID[1] // 2 :] = 2
    masks = torch.full((batch, 3, *GRID), -30.0)
    masks[:, 0][ids == 1] = 30.0
    masks[:, 1][ids == 2] = 30.0
    classes = torch.full((batch, 3, 4), -30.0)
    classes[:, :2, 2] = 30.0
    classes[:, 2, 3] = 30.0
    return ids, masks, classes


def everywhere(batch):
    return torch.arange(GRID[0] * GRID[1]).expand(batch, -1)


def features(batch=2, channels=5, seed=1):
    torch.manual_seed(seed)
    return torch.randn(2, batch, channels, *GRID).unbind()


def test_dissimilarity_is_0_for_equal_and_1_for_disjoint_predictions():
    _, masks, classes = two_objects(batch=1)
    found = build(cue="mask").dissimilarity(masks, classes, GRID, everywhere(1))[0, :, 0]
    same = (torch.arange(24) % 6 < 3)[:, None] == (torch.arange(24) % 6 < 3)[None]
    torch.testing.assert_close(found, (~same).float(), atol=1e-6, rtol=0)
    classes[:, 1] = classes[:, 1].roll(1, dims=-1)  # now another class
    for cue in ("class", "fusion"):
        found = build(cue=cue).dissimilarity(masks, classes, GRID, everywhere(1))[0, :, 0]
        torch.testing.assert_close(found, (~same).float(), atol=1e-6, rtol=0)


def test_two_objects_of_one_class_are_half_apart_for_the_fusion():
    _, masks, classes = two_objects(batch=1)
    found = build().dissimilarity(masks, classes, GRID, everywhere(1))[0, :, 0]
    assert found[0, 5].item() == pytest.approx(0.5)  # the mask half differs, the class half is equal
    assert build(cue="class").dissimilarity(masks, classes, GRID, everywhere(1))[0, 0, 0, 5].item() == pytest.approx(0)


def test_across_images_queries_do_not_count():
    _, masks, classes = two_objects()
    found = build().dissimilarity(masks, classes, GRID, everywhere(2))
    torch.testing.assert_close(found[0, :, 1], torch.zeros(24, 24), atol=1e-6, rtol=0)  # the class part alone
    assert (build(cue="mask").dissimilarity(masks, classes, GRID, everywhere(2))[0, :, 1] == 1).all()


def test_it_equals_a_restatement_in_numpy():
    torch.manual_seed(3)
    masks, classes = torch.randn(2, 5, 8, 12), torch.randn(2, 5, 4)
    found = build().dissimilarity(masks, classes, GRID, everywhere(2)).numpy()

    def softmax(x, axis):
        e = np.exp(x - x.max(axis=axis, keepdims=True))
        return e / e.sum(axis=axis, keepdims=True)

    grid = F.interpolate(masks, size=GRID, mode="bilinear", align_corners=False).numpy().reshape(2, 5, 24)
    p_m, p_c = softmax(grid, 1), softmax(classes.numpy(), 2)
    for b in range(2):
        for p in (0, 7, 23):
            for other in range(2):
                for q in (1, 7, 12):
                    votes = [sum(p_m[i, k, j] * p_c[i, k] for k in range(5)) for i, j in ((b, p), (other, q))]
                    y = votes if b != other else [np.r_[p_m[b, :, j], v] for j, v in ((p, votes[0]), (q, votes[1]))]
                    y = [v / np.linalg.norm(v) for v in y]
                    assert found[b, p, other, q] == pytest.approx(max(0, 1 - y[0] @ y[1]), abs=1e-6)


def test_the_loss_is_log_of_one_plus_r_when_all_similarities_are_equal():
    assert info_nce(torch.full((2, 3), 0.7), torch.full((2, 3, 9), 0.7)).item() == pytest.approx(np.log(10))
    positive, negative = torch.randn(2, 3), torch.randn(2, 3, 9)
    expected = -(positive.exp() / (positive.exp() + negative.exp().sum(-1))).log().mean()
    assert info_nce(positive, negative).item() == pytest.approx(expected.item(), rel=1e-6)
    clipped = info_nce(positive, negative, margin=0.5)
    assert clipped.item() == pytest.approx(info_nce(positive, (negative - 0.5).clamp(min=0)).item())


def share_of_same_object(cue):
    ids, masks, classes = two_objects(batch=4)
    masks, classes = masks / 10, classes / 10  # not certain
    torch.manual_seed(5)
    masks = masks + 0.5 * torch.randn_like(masks)
    method = build(cue=cue, negatives=6, candidates="within")
    drawn, anchors = method.draw(masks, classes, GRID, everywhere(4)), everywhere(4)
    flat = (ids + 10 * torch.arange(4)[:, None, None]).flatten()
    own = (ids + 10 * torch.arange(4)[:, None, None]).flatten(1).gather(1, anchors)
    return (flat[drawn] == own[..., None]).float().mean().item()


def test_the_fusion_draws_fewer_negatives_of_the_same_object_than_the_class_and_no_cue():
    shares = {cue: np.mean([share_of_same_object(cue) for _ in range(3)]) for cue in CUES}
    assert shares["mask"] < shares["uniform"]
    assert shares["fusion"] < shares["class"] - 0.1  # one class: the class cue cannot tell the objects apart
    assert shares["class"] == pytest.approx(shares["uniform"], abs=0.1)


@pytest.mark.parametrize("candidates", ["within", "across", "both"])
def test_negatives_are_distinct_and_never_the_anchor(candidates):
    _, masks, classes = two_objects()
    method = build(candidates=candidates, negatives=20)
    drawn = method.draw(masks, classes, GRID, everywhere(2))
    assert all(len(set(row.tolist())) == 20 for row in drawn.flatten(0, 1))
    own = torch.arange(2)[:, None] * 24 + everywhere(2)
    assert not (drawn == own[..., None]).any()
    within = drawn // 24 == torch.arange(2)[:, None, None]
    assert {"within": within.all(), "across": (~within).all(), "both": within.any() and (~within).any()}[candidates]


def test_other_images_are_missing_in_a_batch_of_one():
    _, masks, classes = two_objects(batch=1)
    weak, strong = features(batch=1)
    with pytest.raises(UserError, match="a batch needs several images"):
        build(candidates="across")(weak, strong, masks, classes)


def test_no_gradient_reaches_the_sampler_and_the_strong_features():
    method, (weak, strong) = build(), features()
    _, masks, classes = two_objects()
    for each in (weak, strong, masks, classes):
        each.requires_grad_()
    method(weak, strong, masks, classes)["pixel_contrast"].backward()
    assert weak.grad.abs().max() > 0
    assert all(each.grad is None for each in (strong, masks, classes))
    assert all(parameter.grad.abs().max() > 0 for parameter in method.parameters())


def test_the_order_of_the_queries_does_not_matter():
    method, (weak, strong) = build(), features()
    torch.manual_seed(2)
    masks, classes, order = torch.randn(2, 3, *GRID), torch.randn(2, 3, 4), torch.tensor([2, 0, 1])
    losses = []
    for kept in (slice(None), order):
        torch.manual_seed(7)
        losses.append(method(weak, strong, masks[:, kept], classes[:, kept])["pixel_contrast"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_finite_in_bfloat16_and_with_extreme_logits():
    method, (weak, strong) = build(), features()
    masks, classes = 1e4 * torch.randn(2, 3, *GRID), 1e4 * torch.randn(2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(weak.bfloat16(), strong.bfloat16(), masks.bfloat16(), classes.bfloat16())["pixel_contrast"]
    assert loss.isfinite()
    assert loss.dtype == torch.float32


def test_diagnostics_count_negatives_on_other_objects():
    ids, masks, classes = two_objects()
    ids[1] = -1  # not labelled
    method, (weak, strong) = build(cue="mask", negatives=12, candidates="within"), features()
    method(weak, strong, masks, classes, ids)
    assert method.diagnostics["inter_instance"].item() == pytest.approx(1.0)  # certain masks: never the same object
    assert -2 <= method.diagnostics["contrast_margin"].item() <= 2
    method(weak, strong, masks, classes, torch.zeros_like(ids))
    assert "inter_instance" not in method.diagnostics


def test_diagnostics_are_those_of_all_processes(monkeypatch):
    """Also in a process whose anchors are on no object: all must log the same names."""
    monkeypatch.setattr(pixel_contrast, "total", lambda counts: counts + torch.tensor([3.0, 4.0]))
    ids, masks, classes = two_objects()
    method = build()
    method(*features(), masks, classes, torch.zeros_like(ids))
    assert method.diagnostics["inter_instance"].item() == 0.75


def test_the_temperature_changes_linearly():
    method = build(temperature=0.3, last_temperature=0.1)
    values = []
    for done in (0.0, 0.5, 1.0):
        method.set_progress(done)
        values.append(method.temperature)
    assert values == pytest.approx([0.3, 0.2, 0.1])


CHANGED = {"weight": 0.2, "cue": "class", "candidates": "within", "negatives": 5, "anchors": 3, "temperature": 0.5,
           "last_temperature": 0.9, "margin": 0.1, "hidden": 6, "width": 3}  # fmt: skip


@pytest.mark.parametrize("field", PixelContrast.Config.model_fields)
def test_every_setting_changes_the_outcome(field):
    weak, strong = features()
    torch.manual_seed(2)
    masks, classes, outcomes = torch.randn(2, 3, *GRID), torch.randn(2, 3, 4), []
    for settings in ({"negatives": 10}, {"negatives": 10} | {field: CHANGED[field]}):
        method = build(**settings)
        method.set_progress(0.5)
        torch.manual_seed(7)
        outcomes.append(method(weak, strong, masks, classes)["pixel_contrast"].item())
    assert outcomes[0] != outcomes[1]
