"""Augmentation of images with objects: ids stay exact, on their pixels, and without those that are not in the crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from segdistill.data.dataset import Sample
from segdistill.data.object_transforms import ObjectAugment, ObjectTransform, Window, compact
from segdistill.data.targets import collated, objects_of
from segdistill.data.transforms import MEAN_COLOR
from segdistill.objects import Objects

SIZE = (32, 64)
PLAIN = {"scale": (1.0, 1.0), "flip": 0.0, "photometric": False}


def scene(count: int, size=(48, 96), *, layers=1, seed=0) -> Sample:
    """Blocks of random ids up to ``count``; red and green of the image give the id of the first layer."""
    rng = np.random.default_rng(seed)
    h, w = size[0] // 4, size[1] // 4
    ids = rng.integers(0, count + 1, (layers, h, w)).astype(np.int32).repeat(4, 1).repeat(4, 2)
    for upper in range(1, layers):  # an object is in one layer only
        ids[upper][np.isin(ids[upper], ids[:upper])] = 0
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    image[..., 0], image[..., 1] = ids[0] % 256, ids[0] // 256
    void = np.zeros(size, bool)
    void[: size[0] // 8] = True
    classes, crowd = np.arange(count) % 5, np.arange(count) % 7 == 0
    return Sample(image, None, "d", "x", Objects(ids, classes.astype(np.int64), crowd, void))


def draw(config: ObjectAugment, sample: Sample, size=SIZE, seed=0):
    torch.manual_seed(seed)
    return ObjectTransform(config, size)(sample)


@pytest.mark.parametrize("count", [0, 1, 60, 300])
def test_a_sample_is_unchanged_where_nothing_is_drawn(count):
    sample = scene(count, SIZE)
    out = draw(ObjectAugment(**PLAIN), sample)
    assert torch.equal(out["image"], torch.from_numpy(sample.image).permute(2, 0, 1))
    kept = compact(sample.objects)
    assert torch.equal(out["ids"], torch.from_numpy(kept.ids))
    assert (out["ids"].dtype, out["classes"].dtype, out["void"].dtype) == (torch.int32, torch.int64, torch.bool)
    assert out["classes"].tolist() == kept.classes.tolist()
    assert out["crowd"].tolist() == kept.crowd.tolist()
    assert torch.equal(out["void"], torch.from_numpy(sample.objects.void))


@pytest.mark.parametrize(("scale", "share"), [((0.5, 0.5), 0.0), ((1.0, 1.0), 1.0), ((2.0, 2.0), 0.5)])
def test_ids_above_255_stay_exact_and_on_their_pixels(scale, share):
    sample = scene(700, SIZE)
    for seed in range(4):
        out = draw(ObjectAugment(**PLAIN | {"scale": scale, "flip": 0.5}), sample, seed=seed)
        assert out["image"].shape == (3, *SIZE)
        assert (out["ids"].shape, out["void"].shape) == ((1, *SIZE), SIZE)
        inside = (out["image"] != torch.tensor(MEAN_COLOR)[:, None, None]).any(0)
        assert inside.float().mean() > 0.99 if scale[0] >= 1 else inside.float().mean() < 0.3
        assert not out["ids"][0][~inside].any()
        assert out["void"][~inside].all()
        assert set(out["ids"].unique().tolist()) - {0} == set(range(1, len(out["classes"]) + 1))  # none without pixels
        red, green = out["image"][:2].long()
        coded = (green * 256 + red)[inside]
        classes = torch.cat([torch.tensor([-1]), out["classes"]])[out["ids"][0].long()][inside]
        expected = torch.where(coded > 0, (coded - 1) % 5, -1)
        assert (classes == expected).float().mean() >= share  # colours are blended at the borders


@pytest.mark.parametrize(("source", "resized"), [((48, 96), (31, 77)), ((48, 96), (97, 190)), ((48, 96), (48, 96))])
def test_a_window_is_the_crop_of_the_whole_resized_image(source, resized):
    sample = scene(300, source)
    whole = Window(source, resized, (0, 0), resized)
    part = Window(source, resized, (5, 21), (20, 50))
    box = slice(5, 25), slice(21, 71)
    assert (part.nearest(sample.objects.ids) == whole.nearest(sample.objects.ids)[:, *box]).all()
    difference = part.image(sample.image).astype(int) - whole.image(sample.image)[box]
    assert abs(difference).max() <= 1
    image = torch.from_numpy(sample.image).permute(2, 0, 1)
    reference = v2.functional.resize(image, list(resized), antialias=True).permute(1, 2, 0).numpy()
    assert abs(whole.image(sample.image).astype(int) - reference).max() <= 1


def test_objects_outside_the_crop_are_removed_with_their_layers():
    ids = np.zeros((2, 8, 64), np.int32)
    ids[0, :, :4], ids[0, :, 40:44], ids[1, :, 2:6] = 1, 3, 2
    sample = Sample(
        np.zeros((8, 64, 3), np.uint8), None, "d", "x", Objects(ids, np.array([7, 8, 9]), np.zeros(3, bool))
    )
    seen = set()
    for seed in range(30):
        out = draw(ObjectAugment(**PLAIN), sample, (8, 8), seed)
        seen.add((len(out["ids"]), tuple(out["classes"].tolist())))
        assert set(out["ids"].unique().tolist()) - {0} == set(range(1, len(out["classes"]) + 1))
        assert not out["void"].any()
    assert (1, ()) in seen
    assert (1, (9,)) in seen
    assert (2, (7, 8)) in seen


def test_samples_with_different_layers_and_objects_form_a_batch():
    config = ObjectAugment()
    batch = collated([draw(config, scene(count, layers=layers)) for count, layers in ((0, 1), (900, 3), (1, 1))])
    assert batch["image"].shape == (3, 3, *SIZE)
    assert batch["ids"].shape == (3, 3, *SIZE)
    assert [len(objects_of(batch, row).classes) > 0 for row in range(3)][:2] == [False, True]


CHANGES = {"scale": (1.5, 1.6), "flip": 1.0, "photometric": False}


def test_every_setting_changes_what_comes_out_and_draws_follow_the_seed():
    assert set(CHANGES) == set(ObjectAugment.model_fields)
    for name, value in CHANGES.items():
        pairs = [
            (draw(ObjectAugment(), scene(9), seed=seed), draw(ObjectAugment(**{name: value}), scene(9), seed=seed))
            for seed in range(4)
        ]
        assert any(not torch.equal(one["image"], two["image"]) for one, two in pairs), name
    one, again = (draw(ObjectAugment(), scene(9), seed=3) for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one)
