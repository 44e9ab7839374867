"""Rare-class sampling: its formula, and samples that are a function of (seed, stage, slot)."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch

from segdistill.config import UserError
from segdistill.data.dataset import Dataset, Sample
from segdistill.data.loader import StepBatches
from segdistill.data.rare_class import (
    FILE,
    Draws,
    RareClassBatches,
    RareClassConfig,
    count_pixels,
    probabilities,
    read_pixels,
    write_pixels,
)
from segdistill.data.transforms import TaskAugment, TaskTransform

PIXELS = torch.tensor([[900, 100, 0], [800, 0, 200], [990, 10, 0], [1000, 0, 0]])
CONFIG = RareClassConfig(min_pixels=50, temperature=0.3)


class Labelled(Dataset):
    """Images of 16 x 32 pixels with two classes; two of them have a third one in their corner."""

    names, sizes = ("a", "b", "c"), (6,)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        label = np.random.default_rng(index).integers(0, 2, (16, 32)).astype(np.uint8)
        if index in (1, 4):
            label[:6, : 4 + index] = 2
        label[15, 31] = 255
        return Sample(np.repeat(label[..., None] * 20, 3, axis=2), label, "here", str(index))


def test_classes_are_drawn_by_the_softmax_of_what_they_lack():
    shares = np.array([3690, 110, 200]) / 4000
    expected = np.exp((1 - shares) / 0.3)
    np.testing.assert_allclose(probabilities(PIXELS.sum(0), 0.3).numpy(), expected / expected.sum(), rtol=1e-12)
    assert probabilities(PIXELS.sum(0), 0.01).argmax() == 1  # the rarest


def test_the_draws_have_the_classes_shares_and_images_with_enough_of_the_class():
    draws = Draws(CONFIG, PIXELS, (0, "task"))
    drawn = [draws.at(slot) for slot in range(6000)]
    assert all(PIXELS[image, number] >= 50 for number, image in drawn)
    found = Counter(number for number, _ in drawn)
    expected = probabilities(PIXELS.sum(0), 0.3)
    for number in range(3):
        assert found[number] / 6000 == pytest.approx(expected[number].item(), abs=0.02)
    among = Counter(image for number, image in drawn if number == 0)
    assert len(among) == 4
    assert max(among.values()) / min(among.values()) < 1.3
    assert drawn[:50] == [Draws(CONFIG, PIXELS, (0, "task")).at(slot) for slot in range(50)]
    assert drawn[:50] != [Draws(CONFIG, PIXELS, (1, "task")).at(slot) for slot in range(50)]


def test_classes_without_an_image_that_has_enough_are_left_out():
    draws = Draws(RareClassConfig(min_pixels=150), PIXELS, (0,))
    assert {draws.at(slot)[0] for slot in range(200)} <= {0, 2}
    with pytest.raises(UserError, match="rare_class: no image has 2000 pixels of any class, at most 1000; lower min_p"):
        Draws(RareClassConfig(min_pixels=2000), PIXELS, (0,))


def batches_of(config=None, rank=0, world_size=1, size=(8, 8)):
    data = Labelled()
    config = config or RareClassConfig(min_pixels=24, temperature=0.01)
    pixels = torch.tensor(count_pixels(data, 0, lambda *_: None))
    transform = TaskTransform(TaskAugment(scale=(1, 1)), size)
    return RareClassBatches(config, Draws(config, pixels, (0,)), data, transform, batch=4, seed=(0,), rank=rank,
                            world_size=world_size)  # fmt: skip


def test_pixels_are_counted_per_image_without_the_ignored_ones():
    data = Labelled()
    reported = []
    counts = count_pixels(data, 0, lambda *line: reported.append(line))
    assert counts == [
        [int((sample.label == number).sum()) for number in range(3)] for sample in map(data.__getitem__, range(6))
    ]
    assert {sum(row) for row in counts} == {16 * 32 - 1}
    assert reported[-1] == ("counting classes", 6, 6)


def test_any_number_of_processes_reads_the_same_samples_at_any_step():
    whole, halves = batches_of(), [batches_of(rank=rank, world_size=2) for rank in range(2)]
    for step in (0, 5, 2):
        parts = torch.stack([half[step]["image"] for half in halves], 1).flatten(0, 1)
        assert torch.equal(whole[step]["image"], parts)
        assert whole.indices(step)[::2] == halves[0].indices(step)


def test_crops_are_redrawn_until_they_show_the_class():
    """The rare class covers the top left corner of two images; crops without it are common."""
    shown = {}
    for tries in (1, 60):
        config = RareClassConfig(min_pixels=24, temperature=0.01, crop_share=0.5, tries=tries)
        made = batches_of(config, size=(12, 16))
        found = []
        for step in range(20):
            for position, label in enumerate(made[step]["label"]):
                number, image = made.draws.at(step * 4 + position)
                assert image == made.indices(step)[position]
                found.append(bool((label == number).sum() >= 12))
        shown[tries] = np.mean(found)
    assert shown[1] < 0.7 < 0.95 < shown[60]


def test_one_try_draws_the_crop_of_plain_sampling():
    """The random stream of a slot is that of the loader: only the image differs."""
    made = batches_of(RareClassConfig(min_pixels=24, tries=1))
    plain = StepBatches(made.dataset, made.transform, batch=4, seed=(0,))
    plain.indices = made.indices
    assert torch.equal(made[3]["image"], plain[3]["image"])


def test_the_counts_are_read_from_their_file_if_they_are_the_stages(tmp_path):
    assert read_pixels(tmp_path, "a") is None
    write_pixels(tmp_path, "a", ("x", "y", "z"), PIXELS.tolist())
    assert torch.equal(read_pixels(tmp_path, "a"), PIXELS)
    assert read_pixels(tmp_path, "b") is None
    text = json.loads((tmp_path / FILE).read_text())
    assert text["totals"] == {"x": 3690, "y": 110, "z": 200}
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text().replace("900 100", "901 100"))
    assert read_pixels(tmp_path, "a") is None
