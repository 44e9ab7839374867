"""Augmentation: shapes, labels that stay on their pixels, and settings that each change what comes out."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG
from torchvision.transforms import v2

from segdistill.data.dataset import Sample
from segdistill.data.photometric import Distortion, distort, draw_distortion
from segdistill.data.transforms import (
    IGNORE,
    MEAN,
    MEAN_COLOR,
    STD,
    DistillAugment,
    DistillTransform,
    TaskAugment,
    TaskTransform,
    _pixels,
)

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
    noise = []
    for seed in range(20):
        image = draw(DistillTransform(plain(erase=1.0), SIZE), given, seed)["image"]
        changed = (image > 0).any(0)
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        assert 0.02 <= changed.float().mean() <= 0.34
        assert changed[box].float().mean() > 0.99
        noise.append(image[:, *box].flatten(1))
    normalized = (torch.cat(noise, 1).double() / 255 - torch.tensor(MEAN)[:, None]) / torch.tensor(STD)[:, None]
    assert normalized.mean(1).abs().max() < 0.05  # a standard normal, of which 5 % lie outside black and white
    assert (normalized.std(1) - 0.96).abs().max() < 0.03


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
        assert (out["image"][:, ~known] == torch.tensor(MEAN_COLOR)[:, None]).all()
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


def test_padding_is_not_distorted_and_lies_at_the_right_and_at_the_bottom_also_of_a_flipped_crop():
    transform = TaskTransform(TaskAugment(scale=(0.5, 0.5), flip=1.0), SIZE)
    for seed in range(8):
        out = draw(transform, seed=seed)
        h, w = SIZE[0] // 2, SIZE[1] // 2
        assert (out["label"][:h, :w] != IGNORE).all()
        outside = torch.ones(SIZE, dtype=torch.bool)
        outside[:h, :w] = False
        assert (out["label"][outside] == IGNORE).all()
        assert (out["image"][:, outside] == torch.tensor(MEAN_COLOR)[:, None]).all()


def test_an_untouched_pixel_survives_the_normalisation_around_erasing():
    every = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[:, None]
    assert torch.equal(_pixels(v2.functional.normalize(every.float() / 255.0, MEAN, STD)), every)


AUTHORS = "rand-m9-mstd0.5-inc1"


def test_posterize_to_0_bits_is_black_as_it_was_for_the_authors():
    """RandAugment's strength is drawn from N(9, 0.5), cut at 10: 1 in 44 draws keeps 0 bits."""
    operations = {op.name: op for op in DistillTransform(DistillAugment(rand_augment=AUTHORS), SIZE).rand_augment.ops}
    posterize = operations["PosterizeIncreasing"]
    posterize.prob, posterize.magnitude_std = 1.0, 0
    image = Image.fromarray(sample().image)
    for magnitude, bits in ((0, 4), (2.4, 4), (2.5, 3), (5, 2), (9.99, 1), (10, 0)):
        posterize.magnitude = magnitude
        expected = np.asarray(image) & (0xFF << (8 - bits) & 0xFF)
        assert np.array_equal(np.asarray(posterize(image)), expected), magnitude


@pytest.mark.parametrize("name", sorted({"Posterize", "PosterizeOriginal", "PosterizeIncreasing"}))
@pytest.mark.parametrize("magnitude", [0, 1, 9, 10])
def test_every_posterize_of_timm_works_at_every_strength(name, magnitude):
    transform = DistillTransform(DistillAugment(rand_augment=f"rand-m{magnitude}-n1"), SIZE).rand_augment
    operation = next(op for op in transform.ops if op.name.startswith("Posterize"))
    operation.level_fn, operation.prob, operation.magnitude = LEVEL_TO_ARG[name], 1.0, magnitude
    assert operation(Image.fromarray(sample().image)).size == (96, 48)


def recipes():
    return sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def augmentations():
    """The distinct augmentation settings of all shipped recipes' stages, defaults filled in."""
    found = {}
    for path in recipes():
        values = yaml.safe_load(path.read_text())
        for stage in values["stages"] if values.get("task", "semantic") == "semantic" else ():
            for part in (stage, stage.get("proxy") or {}):
                task = stage["type"] == "task" and part is stage
                config = (TaskAugment if task else DistillAugment)(**part.get("augment", {}))
                found[config.model_dump_json() + str(task)] = config
    return list(found.values())


@pytest.mark.parametrize("config", augmentations(), ids=lambda config: type(config).__name__)
def test_the_augmentation_of_every_shipped_recipe_runs_thousands_of_times(config):
    task = isinstance(config, TaskAugment)
    transform = (TaskTransform if task else DistillTransform)(config, SIZE)
    given = [sample(seed=seed) for seed in range(8)]
    for seed in range(1000 if task else 4000):
        out = draw(transform, given[seed % 8], seed)
        assert out["image"].shape == (3, *SIZE)


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "photometric.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: str(case["drawn"]))
def test_distortion_equals_values_that_opencv_computed(case):
    """Of a picture of 8 x 6 with greys, pure and random colours; OpenCV's fixed-point hue may round another way."""
    image = torch.tensor(GOLDEN["image"], dtype=torch.uint8).permute(2, 0, 1)
    out = distort(image, Distortion(**case["drawn"])).permute(1, 2, 0).int()
    error = (out - torch.tensor(case["out"])).abs()
    colored = "hue" in case["drawn"] or "saturation" in case["drawn"]
    assert error.max() <= (8 if len(case["drawn"]) > 1 else 1) * colored
    assert error.float().mean() < 0.1


def test_distortion_is_drawn_from_the_authors_ranges_each_step_with_probability_a_half():
    torch.manual_seed(0)
    drawn = [draw_distortion() for _ in range(4000)]
    for name, low, high in (
        ("brightness", -32, 32),
        ("contrast", 0.5, 1.5),
        ("saturation", 0.5, 1.5),
        ("hue", -18, 17),
    ):
        values = [getattr(one, name) for one in drawn if getattr(one, name) is not None]
        assert abs(len(values) / 4000 - 0.5) < 0.03
        assert low <= min(values) < low + 0.01 * (high - low) + 1e-9
        assert high - 0.01 * (high - low) - 1e-9 < max(values) <= high
        assert abs(np.mean(values) - (low + high) / 2) < 0.03 * (high - low)
    assert {one.hue for one in drawn} == {None, *range(-18, 18)}
    assert abs(np.mean([one.contrast_first for one in drawn]) - 0.5) < 0.03


def test_distortion_never_exchanges_colour_channels():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[0], image[1] = 200, 90
    torch.manual_seed(0)
    for _ in range(500):
        drawn = draw_distortion()
        out = distort(image, Distortion(drawn.brightness, drawn.contrast, drawn.saturation, None)).float().mean((1, 2))
        assert out[0] >= out[1] >= out[2]
