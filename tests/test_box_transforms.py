"""Augmented boxes stay on their objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segdistill.data.box_transforms import BoxAugment, BoxTransform
from segdistill.data.dataset import Sample
from segdistill.objects import Objects

BOXES = [[8.0, 4.0, 24.0, 20.0], [40.0, 10.0, 56.0, 30.0]]


def sample(boxes=BOXES, size=(40, 64)):
    """Light rectangles on brown, one for each box."""
    image = np.full((*size, 3), (90, 60, 30), np.uint8)
    for left, top, right, bottom in np.array(boxes, int).reshape(-1, 4):
        image[top:bottom, left:right] = (255, 240, 225)
    objects = Objects.of_boxes(boxes, list(range(len(boxes))), [False] * len(boxes), size)
    return Sample(image, None, "here", "0", objects)


def transformed(seed=0, size=(40, 64), data=None, **settings):
    torch.manual_seed(seed)
    return BoxTransform(BoxAugment(**settings), size)(data or sample())


@pytest.mark.parametrize("seed", range(12))
def test_boxes_follow_scale_crop_and_flip(seed):
    batch = transformed(seed, scale=(0.5, 2.0), keep=0.01)
    assert batch["image"].shape == (3, 40, 64)
    light = (batch["image"] > 200).all(dim=0)
    covered = torch.zeros(40, 64, dtype=torch.bool)
    for left, top, right, bottom in batch["boxes"].round().int().tolist():
        covered[top:bottom, left:right] = True
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 40
        assert light[top + 1 : bottom - 1, left + 1 : right - 1].all()
    border = torch.nn.functional.max_pool2d(covered[None].float(), 5, 1, 2)[0] > 0
    assert not (light & ~border).any()


def test_the_defaults_show_the_whole_image_as_large_as_it_fits():
    batch = transformed(size=(80, 200), flip=0)
    assert torch.equal(batch["boxes"], 2 * torch.tensor(BOXES, dtype=torch.float64))
    assert (batch["image"][:, :, 128:].float().std(dim=(1, 2)) == 0).all()  # padding
    mirrored = transformed(flip=1)["boxes"]
    assert torch.equal(mirrored, torch.tensor([[40, 4, 56, 20], [8, 10, 24, 30]], dtype=torch.float64))


def test_boxes_of_which_too_little_is_left_are_dropped():
    few, many = (sum(len(transformed(s, scale=(2, 2), keep=keep)["boxes"]) for s in range(20)) for keep in (0.9, 0.05))
    assert 0 < few < many


def test_masks_give_the_same_boxes_as_annotations():
    masks = [np.zeros((40, 64), bool) for _ in BOXES]
    for mask, (left, top, right, bottom) in zip(masks, np.array(BOXES, int), strict=True):
        mask[top:bottom, left:right] = True
    objects = Objects.of_masks(masks, [0, 1], [False, False], (40, 64))
    drawn = Sample(sample().image, None, "here", "0", objects)
    one, other = transformed(3, scale=(0.5, 2)), transformed(3, data=drawn, scale=(0.5, 2))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("change", [{"scale": (0.5, 0.6)}, {"flip": 1.0}, {"photometric": True}])
def test_every_setting_matters(change):
    before, after = (transformed(1, **{"flip": 0.0, **settings}) for settings in ({}, change))
    assert not torch.equal(before["image"], after["image"])


def test_an_image_without_objects_has_no_boxes():
    batch = transformed(data=sample([]))
    assert batch["boxes"].shape == (0, 4)
    assert len(batch["classes"]) == 0
