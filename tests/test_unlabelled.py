"""Mean confidence and agreement against NumPy on whole maps; what the evaluation keeps of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from segdistill.metrics.unlabelled import Note, notes_of, object_agreement, object_confidence
from segdistill.models.bands import Strip
from segdistill.objects import Detections, encode
from segdistill.runs.score import read_samples


def maps(seed: int, size: tuple[int, int]):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, size), rng.random(size).astype(np.float32)


def noted(classes, confidence, rows: int) -> Note:
    """The note of an image that comes in strips of some rows."""
    note = Note(*classes.shape)
    for top in range(0, len(classes), rows):
        part = slice(top, top + rows)
        note.add(Strip(0, top, torch.from_numpy(classes[part]), torch.from_numpy(confidence[part])))
    return note


@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
@pytest.mark.parametrize("size", [(9, 14), (300, 200), (129, 40)])
def test_notes_equal_numpy_whatever_the_strips(size, rows):
    classes, confidence = maps(0, size)
    notes = notes_of([noted(classes, confidence, rows)])
    step = math.ceil(max(size) / 128)
    assert notes.confidence[0] == pytest.approx(confidence.astype(np.float64).mean(), rel=1e-12)
    assert np.array_equal(notes.sampled.reshape(notes.shapes[0]), classes[::step, ::step])


def test_agreement_is_the_mean_of_the_images_shares():
    sizes = [(9, 14), (20, 6), (300, 200)]
    first, second = ([noted(*maps(seed + i, size), 4) for i, size in enumerate(sizes)] for seed in (0, 10))
    shares = [np.mean(a.sampled == b.sampled) for a, b in zip(first, second, strict=True)]
    assert notes_of(first).agreement(notes_of(second)) == pytest.approx(np.mean(shares), rel=1e-12)
    assert notes_of(first).agreement(notes_of(first)) == 1
    assert notes_of(first).agreement(notes_of(second[:2])) is None
    assert notes_of([]).agreement(notes_of([])) is None
    assert math.isnan(notes_of([]).mean_confidence)


def test_results_hold_confidence_and_agreement_of_every_domain(finished):
    results = json.loads((finished / "results.json").read_text())
    student, teacher = (read_samples(finished / "scores" / f"{role}.npz") for role in ("student", "teacher"))
    assert results["agreement"].keys() == student.keys() == {"game", "fog", "rain"}
    for name, samples in student.items():
        notes = samples.notes
        assert results["models"]["student"]["domains"][name]["confidence"] == notes.confidence.mean()
        halves = np.split(notes.sampled == teacher[name].notes.sampled, 2)  # two images of one size
        assert results["agreement"][name] == pytest.approx(np.mean(halves))


def found(*objects, boxes=False, size=(20, 20)):
    """Detections of (score, class, left, top, right, bottom)."""
    ordered = sorted(objects, key=lambda each: -each[0])
    masks = []
    for _, _, left, top, right, bottom in ordered:
        mask = np.zeros(size, bool)
        mask[top:bottom, left:right] = True
        masks.append(encode(mask))
    table = np.array([each[2:] for each in ordered], np.float64).reshape(-1, 4)
    one = Detections.of([each[0] for each in ordered], [each[1] for each in ordered], masks, size)
    return replace(one, masks=[], boxes=table) if boxes else one


@pytest.mark.parametrize("boxes", [False, True])
def test_objects_agree_where_both_models_find_them(boxes):
    one = found((0.9, 1, 0, 0, 10, 10), (0.4, 2, 10, 10, 20, 20), boxes=boxes)
    near = found((0.8, 1, 0, 0, 10, 8), boxes=boxes)  # IoU 0.8: seven of COCO's ten thresholds
    assert object_agreement(one, one) == pytest.approx(1)
    assert object_agreement(one, near) == pytest.approx(0.7 * (0.9 + 0.8) / (0.9 + 0.4 + 0.8))
    assert object_agreement(near, one) == object_agreement(one, near)
    other = found((0.9, 3, 0, 0, 10, 10), boxes=boxes)  # the same place, another class
    assert object_agreement(one, other) == 0
    nothing = found(boxes=boxes)
    assert object_agreement(one, nothing) == 0
    assert object_agreement(nothing, nothing) == 1


def test_each_object_is_matched_once():
    one, twice = found((1.0, 0, 0, 0, 10, 10)), found((0.5, 0, 0, 0, 10, 10), (0.5, 0, 0, 0, 10, 10))
    assert object_agreement(one, twice) == pytest.approx(1.5 / 2)


def test_the_confidence_in_objects_is_a_mean_that_the_sure_ones_rule():
    assert object_confidence(found((0.6, 0, 0, 0, 5, 5), (0.6, 1, 5, 5, 9, 9))) == pytest.approx(0.6)
    tail = [(0.01, 0, 0, 0, 5, 5)] * 20
    assert object_confidence(found((0.8, 0, 0, 0, 5, 5), *tail)) == pytest.approx((0.64 + 20e-4) / 1.0, abs=1e-6)
    assert object_confidence(found()) == 0
