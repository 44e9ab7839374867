"""Augmentation: shapes, labels that stay on their pixels, and settings that each change what comes out."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from segdistill.data.dataset import Sample
from segdistill.data.transforms import IGNORE, DistillAugment, DistillTransform, TaskAugment, TaskTransform

SIZE = (32, 64)


def sample(size=(48, 96), seed=0):
    """A picture whose red says the label: blocks of classes 0 to 3, red = 60 * class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, (size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    image[..., 0] = 60 * label
    return Sample(image, label, "d", "x")


def draw(transform, given=None, seed=0):
    torch.manual_seed(seed)
    return transform(given or sample())


def plain(**changes):
    return DistillAugment(**({"rand_augment": None, "erase": 0.0, "flip": 0.0} | changes))


def test_distillation_crops_have_the_wanted_size_and_no_label():
    out = draw(DistillTransform(DistillAugment(), SIZE))
    assert set(out) == {"image"}
    assert out["image"].dtype == torch.uint8
    assert out["image"].shape == (3, *SIZE)


def test_the_whole_image_comes_through_unchanged_where_nothing_is_asked_for():
    given = sample(SIZE)
    out = draw(DistillTransform(plain(crop_scale=(1.0, 1.0), crop_ratio=(2.0, 2.0)), SIZE), given)
    assert torch.equal(out["image"], torch.from_numpy(given.image).permute(2, 0, 1))
    flipped = draw(DistillTransform(plain(crop_scale=(1.0, 1.0), crop_ratio=(2.0, 2.0), flip=1.0), SIZE), given)
    assert torch.equal(flipped["image"], out["image"].flip(-1))


def test_keep_aspect_takes_crops_of_the_images_own_shape():
    config = plain(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    given = sample(SIZE)
    kept = draw(DistillTransform(config.model_copy(update={"keep_aspect": True}), SIZE), given)["image"]
    assert torch.equal(kept, torch.from_numpy(given.image).permute(2, 0, 1))
    assert not torch.equal(draw(DistillTransform(config, SIZE), given)["image"], kept)


def test_erasing_hides_a_rectangle_behind_noise():
    given = Sample(np.zeros((*SIZE, 3), np.uint8), None, "d", "x")
    changed = (draw(DistillTransform(plain(erase=1.0), SIZE), given)["image"] > 0).any(0)
    rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
    box = changed[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert 0.02 <= changed.float().mean() <= 0.34
    assert box.float().mean() > 0.6  # the rest is noise that was clamped to black


@pytest.mark.parametrize("transform", [DistillTransform(DistillAugment(), SIZE), TaskTransform(TaskAugment(), SIZE)])
def test_draws_depend_on_torchs_generator_alone_and_leave_the_others_as_they_were(transform):
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    one = draw(transform)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    random.seed(2)
    np.random.seed(2)
    again = draw(transform)
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(draw(transform, seed=1)["image"], one["image"])


DISTILL = {"crop_scale": (0.9, 1.0), "crop_ratio": (1.0, 1.1), "keep_aspect": True, "flip": 1.0, "erase": 1.0,
           "rand_augment": "rand-m1-n1"}  # fmt: skip
TASK = {"scale": (1.5, 1.6), "max_share": 0.1, "tries": 1, "flip": 1.0, "photometric": False}


@pytest.mark.parametrize(
    ("config", "transform", "changes"),
    [(DistillAugment, DistillTransform, DISTILL), (TaskAugment, TaskTransform, TASK)],
)
def test_every_setting_changes_what_comes_out(config, transform, changes):
    assert set(changes) == set(config.model_fields)
    base = {"tries": {"max_share": 0.1}, "max_share": {}}
    for name, value in changes.items():
        companions = base.get(name, {})
        one, two = transform(config(**companions), SIZE), transform(config(**companions, **{name: value}), SIZE)
        pairs = [(draw(one, seed=seed)["image"], draw(two, seed=seed)["image"]) for seed in range(4)]
        assert any(not torch.equal(a, b) for a, b in pairs), name


@pytest.mark.parametrize("scale", [(0.5, 0.5), (1.0, 1.0), (2.0, 2.0)])
def test_a_label_stays_on_its_pixels_and_padding_is_ignored(scale):
    transform = TaskTransform(TaskAugment(scale=scale, photometric=False), SIZE)
    for seed in range(4):
        out = draw(transform, seed=seed)
        assert out["image"].shape == (3, *SIZE)
        assert (out["label"].shape, out["label"].dtype) == (SIZE, torch.int64)
        assert set(out["label"].unique().tolist()) <= {0, 1, 2, 3, IGNORE}
        known = out["label"] != IGNORE
        assert (known.float().mean() < 1) == (scale[0] < 1)
        assert (out["image"][:, ~known] == 0).all()
        error = (out["image"][0].float() - 60 * out["label"])[known].abs()
        assert (error < 2).float().mean() > 0.5  # red says the class, but for blended borders
        assert error.median() == 0


def test_a_crop_of_one_class_is_drawn_again():
    label = np.zeros((32, 256), np.uint8)
    label[:, 192:] = 1  # a crop of 64 columns is balanced in a quarter of the places
    given = Sample(np.zeros((32, 256, 3), np.uint8), label, "d", "x")
    config = TaskAugment(scale=(1.0, 1.0), max_share=0.9, photometric=False)

    def mixed(tries):
        transform = TaskTransform(config.model_copy(update={"tries": tries}), SIZE)
        return sum(len(draw(transform, given, seed)["label"].unique()) > 1 for seed in range(40))

    assert mixed(1) < 20 < 36 < mixed(20)
