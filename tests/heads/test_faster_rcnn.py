"""The detection head: its pyramid's strides, its losses, its settings."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from fake_encoder import seeded
from segdistill.config import UserError
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.heads import FasterRCNN
from segdistill.heads.base import HeadConfig
from segdistill.heads.faster_rcnn import SIDES

SMALL = {"width": 8, "hidden": 16, "anchors": (8, 16, 32, 64, 128), "proposals": 30, "region_samples": 32,
         "box_samples": 16, "least_score": 0.0}  # fmt: skip
LOSS = {"width": 4, "hidden": 8, "anchors": (4, 8, 16, 32, 64), "proposals": 5, "region_samples": 4, "box_samples": 3}
FOUND = {"least_score": 0.3, "nms": 0.05, "most": 3}
BOXES = [torch.tensor([[4.0, 6, 30, 40], [40, 10, 60, 30]]), torch.zeros(0, 4)]
CLASSES = [torch.tensor([0, 2]), torch.zeros(0, dtype=torch.int64)]


def build(strides=(8,), seed=0, **settings):
    config = FasterRCNN.Config(**(SMALL | settings))
    return seeded(lambda: FasterRCNN(config, (6,) * len(strides), strides, 3), seed)


def some_maps(strides=(8,), size=(64, 96), batch=2):
    return seeded(lambda: tuple(torch.randn(batch, 6, size[0] // s, size[1] // s) for s in strides), 1)


def loss(head, maps, seed=0):
    return seeded(lambda: head.box_loss(head.decode(maps), BOXES, CLASSES), seed)


@pytest.mark.parametrize("strides", [(4,), (8,), (14,), (16,), (32,), (4, 8, 16, 32)])
def test_every_level_has_its_stride_and_the_anchors_are_centred_on_its_cells(strides):
    head, size = build(strides), (224, 448)
    pyramid = head.decode(some_maps(strides, size))
    assert pyramid.image == size
    assert pyramid.size == size
    shapes = [tuple(level.shape[-2:]) for level in pyramid.levels]
    assert shapes == [(-(-size[0] // side), -(-size[1] // side)) for side in SIDES]
    _, images = pyramid.first(2)
    anchors = head.regions.anchor_generator(images, pyramid.levels)[0]
    start = 0
    for (rows, columns), side, width in zip(shapes, SIDES, SMALL["anchors"], strict=True):
        part = anchors[start : start + 3 * rows * columns].reshape(rows, columns, 3, 4)
        centres = (part[..., :2] + part[..., 2:]) / 2
        assert torch.equal(centres[..., 0], (torch.arange(columns) * side)[None, :, None].expand(rows, columns, 3))
        assert torch.equal(centres[..., 1], (torch.arange(rows) * side)[:, None, None].expand(rows, columns, 3))
        square = part[0, 0, 1]
        assert (square[2] - square[0]).item() == pytest.approx(width, abs=1)
        start += 3 * rows * columns
    assert start == len(anchors)


def test_an_image_without_a_whole_number_of_cells_is_scaled_exactly():
    head = build((14,))
    pyramid = head.decode(some_maps((14,), (84, 126)))  # 5.25 x 7.875 cells of 16 pixels
    assert (pyramid.image, pyramid.size) == ((84, 126), (80, 128))
    assert torch.allclose(pyramid.scale, torch.tensor([128 / 126, 80 / 84] * 2))
    full = max((boxes[:, 2].max().item() for boxes, _, _ in head.eval().found(pyramid)))
    assert full <= 126 + 1e-4


@pytest.mark.parametrize("strides", [(2,), (64,), (4, 8, 16), (8, 16, 32, 64)])
def test_an_encoder_without_the_strides_is_a_users_mistake(strides):
    with pytest.raises(UserError, match="faster_rcnn needs maps of one stride") as error:
        build(strides)
    assert "\n" not in str(error.value)


def test_a_plain_encoder_gives_the_last_map_after_the_final_norm():
    assert FasterRCNN.taps_of((3, 5, 7, 11), (16,) * 4) == (-1,)
    assert FasterRCNN.taps_of((0, 1, 2, 3), (4, 8, 16, 32)) == (0, 1, 2, 3)


def test_the_size_of_the_papers_student():
    """Table 10's: 17.9 M trained with a frozen encoder; 40.3 M with DeiT-S at 608 x 1008."""
    encoder = build_encoder(EncoderConfig(name="deit_s", image_size=(608, 1008)), seed=0)
    head = FasterRCNN(FasterRCNN.Config(), encoder.spec((-1,)).channels, encoder.strides((-1,)), 20)
    sizes = [sum(p.numel() for p in module.parameters()) / 1e6 for module in (head, encoder)]
    assert sizes[0] == pytest.approx(17.9, abs=0.05)
    assert sum(sizes) == pytest.approx(40.3, abs=0.2)


@pytest.mark.parametrize("strides", [(8,), (4, 8, 16, 32)])
def test_gradient_reaches_every_parameter_and_every_map_that_is_read(strides):
    head, maps = build(strides), tuple(m.requires_grad_() for m in some_maps(strides))
    terms = loss(head, maps)
    assert set(terms) == {"objectness", "region", "class", "box"}
    assert all(term.shape == () and term.isfinite() and term.dtype == torch.float32 for term in terms.values())
    sum(terms.values()).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert all(m.grad.abs().max() > 0 for m in maps)


def test_images_without_boxes_have_a_finite_loss():
    head = build()
    terms = seeded(lambda: head.box_loss(head.decode(some_maps()), BOXES[1:] * 2, CLASSES[1:] * 2), 0)
    assert all(term.isfinite() for term in terms.values())
    assert terms["box"] == 0


def test_decoded_images_beyond_the_targets_have_no_part_in_the_loss():
    head, maps = build(), some_maps(batch=3)
    both, two = loss(head, maps), loss(head, tuple(m[:2] for m in maps))
    for key, term in two.items():
        torch.testing.assert_close(both[key], term)


def test_bfloat16_is_near_float32():
    head, maps = build(), some_maps()
    exact = loss(head, maps)
    with torch.autocast("cpu", torch.bfloat16):
        rough = loss(head, maps)
    assert all(term.dtype == torch.float32 for term in rough.values())
    assert sum(rough.values()).item() == pytest.approx(sum(exact.values()).item(), rel=0.2)


def test_two_objects_are_learnt_and_found():
    head, maps = build(width=16, hidden=64, least_score=0.5), some_maps(batch=2)
    optimiser = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for step in range(60):
        optimiser.zero_grad()
        sum(loss(head, maps, step).values()).backward()
        optimiser.step()
    with torch.no_grad():
        first, second = head.found(head.decode(maps))
    boxes, scores, classes = first
    assert scores.diff().le(0).all()
    for box, kind in zip(BOXES[0], CLASSES[0], strict=True):
        assert box_iou(box[None], boxes[classes == kind]).max() > 0.6
    assert len(second[0]) == 0


def test_batch_order_does_not_matter_to_what_is_found():
    head, maps = build().eval(), some_maps(batch=3)
    with torch.no_grad():
        one = head.found(head.decode(maps))
        other = head.found(head.decode(tuple(m.flip(0) for m in maps)))
    for (boxes, scores, _), (again, others, _) in zip(one, other[::-1], strict=True):
        torch.testing.assert_close(boxes, again, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(scores, others)


def test_there_is_a_case_for_every_setting():
    assert {*LOSS, *FOUND} == set(FasterRCNN.Config.model_fields) - set(HeadConfig.model_fields)


@pytest.mark.parametrize("field", LOSS)
def test_every_setting_of_training_matters(field):
    losses = [sum(loss(build(**change), some_maps()).values()).item() for change in ({}, {field: LOSS[field]})]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("field", FOUND)
def test_every_setting_of_prediction_matters(field):
    found = [
        len(build(**change).found(build(**change).decode(some_maps()))[0][0]) for change in ({}, {field: FOUND[field]})
    ]
    assert found[1] < found[0]


def test_state_round_trip():
    one, other, maps = build(seed=1), build(seed=2), some_maps()
    before = other.found(other.decode(maps))[0][1]
    other.load_state_dict(one.state_dict())
    assert not torch.equal(before, other.found(other.decode(maps))[0][1])
    assert torch.equal(one.found(one.decode(maps))[0][0], other.found(other.decode(maps))[0][0])
