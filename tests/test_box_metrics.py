"""Scores of boxes, against Pascal VOC's rule written down a second time, and against COCO's own library."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from segdistill.metrics.average_precision import voc_ap
from segdistill.metrics.base import draws
from segdistill.metrics.boxes import BoxMetric, BoxSamples, match_boxes
from segdistill.objects import Detections, Objects

SIZE, CLASSES = (120, 160), 3


def boxes(rng, count):
    corner, side = rng.integers(0, 100, (count, 2)), rng.integers(2, 60, (count, 2))
    return np.concatenate([corner, corner + side], axis=1).astype(float)


def pairs_of(seed, images=8, levels=30):
    """Objects, some of them difficult, and detections near them, some twice, and elsewhere; scores tie."""
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(images):
        truth = boxes(rng, int(rng.integers(0, 9)))
        kinds = rng.integers(0, CLASSES, len(truth))
        objects = Objects.of_boxes(truth, kinds, rng.random(len(truth)) < 0.25, SIZE)
        near = np.repeat(truth, 2, axis=0) + rng.integers(-6, 7, (2 * len(truth), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        found = np.concatenate([near, boxes(rng, 6)])
        guesses = np.concatenate([np.repeat(kinds, 2), rng.integers(0, CLASSES, 6)])
        scores = np.sort(rng.integers(1, levels, len(found)) / levels)[::-1].astype(np.float32)
        order = rng.permutation(len(found))
        pairs.append((Detections(scores, guesses[order], [], SIZE, found[order]), objects))
    return pairs


def metric_of(pairs):
    metric = BoxMetric(CLASSES)
    for index, (found, truth) in enumerate(pairs):
        metric.add(index, found, truth)
    return metric


def devkit(pairs, kind, *, points):
    """AP of a class as VOCevaldet.m computes it: pixels counted from 1, ends included."""
    rows = [
        (-float(found.scores[place]), image, int(place))
        for image, (found, _) in enumerate(pairs)
        for place in np.flatnonzero(found.classes == kind)
    ]
    right, wrong, taken, total = [], [], set(), 0
    for _, truth in pairs:
        total += sum(1 for own, hard in zip(truth.classes, truth.crowd, strict=True) if own == kind and not hard)
    if not total:
        return None
    for _, image, place in sorted(rows, key=lambda row: row[0]):
        found, truth = pairs[image]
        left, top, last_x, last_y = found.boxes[place] + (1, 1, 0, 0)
        best, chosen = -np.inf, None
        for number, own in enumerate(truth.classes):
            if own != kind:
                continue
            a, b, c, d = truth.boxes[number] + (1, 1, 0, 0)
            width = min(last_x, c) - max(left, a) + 1
            height = min(last_y, d) - max(top, b) + 1
            if width > 0 and height > 0:
                area = (last_x - left + 1) * (last_y - top + 1) + (c - a + 1) * (d - b + 1) - width * height
                if width * height / area > best:
                    best, chosen = width * height / area, number
        hit = best >= 0.5
        ignored = hit and truth.crowd[chosen]
        first = hit and not ignored and (image, chosen) not in taken
        taken |= {(image, chosen)} if first else set()
        right.append(float(first))
        wrong.append(float(not first and not ignored))
    tp, fp = np.cumsum(right), np.cumsum(wrong)
    recall, precision = tp / total, tp / np.maximum(tp + fp, 1e-12)
    if points:
        return sum(max(precision[recall >= t], default=0.0) for t in np.arange(0, 1.1, 0.1)) / 11
    mrec, mpre = np.r_[0, recall, 1], np.r_[0, precision, 0]
    for place in range(len(mpre) - 2, -1, -1):
        mpre[place] = max(mpre[place], mpre[place + 1])
    steps = np.flatnonzero(mrec[1:] != mrec[:-1]) + 1
    return float(((mrec[steps] - mrec[steps - 1]) * mpre[steps]).sum())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("points", [False, True])
def test_ap50_is_that_of_the_development_kit(seed, points):
    pairs = pairs_of(seed)
    found = voc_ap(metric_of(pairs).samples().matches, CLASSES, points=points)[:, 0, 0]
    wanted = [devkit(pairs, kind, points=points) for kind in range(CLASSES)]
    assert found == pytest.approx([np.nan if each is None else each for each in wanted], abs=1e-9, nan_ok=True)
    assert 0 < np.nanmean(found) < 1


def coco_numbers(pairs):
    """AP, AP50 and AP75 of COCO's library; difficult objects are crowds."""
    images, truth, results = [], [], []
    for index, (found, objects) in enumerate(pairs, 1):
        images.append({"id": index, "height": SIZE[0], "width": SIZE[1]})
        for (a, b, c, d), kind, crowd in zip(objects.boxes, objects.classes, objects.crowd, strict=True):
            box = [a, b, c - a, d - b]
            truth.append({"id": len(truth) + 1, "image_id": index, "category_id": int(kind) + 1, "bbox": box,
                          "area": box[2] * box[3], "iscrowd": int(crowd)})  # fmt: skip
        for (a, b, c, d), kind, score in zip(found.boxes, found.classes, found.scores, strict=True):
            results.append({"image_id": index, "category_id": int(kind) + 1, "bbox": [a, b, c - a, d - b],
                            "score": float(score)})  # fmt: skip
    categories = [{"id": kind + 1, "name": str(kind)} for kind in range(CLASSES)]
    content = {"images": images, "annotations": truth, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(content)
        evaluation = COCOeval_faster(known, known.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


@pytest.mark.parametrize("seed", range(4))
def test_coco_ap_is_that_of_its_library(seed):
    pairs = pairs_of(seed)
    scores = metric_of(pairs).samples().scores()
    assert [scores[key] for key in ("ap", "coco_ap50", "ap75")] == pytest.approx(coco_numbers(pairs), abs=1e-9)


def test_a_result_has_its_interval_and_the_score_of_every_class():
    metric = metric_of(pairs_of(1))
    result = metric.result("here")
    low, high = result["ap50_interval"]
    assert low <= result["ap50"] <= high
    assert len(result["ap50_by_class"]) == CLASSES
    assert np.nanmean(np.array(result["ap50_by_class"], float)) == pytest.approx(result["ap50"])
    samples = metric.samples()
    assert result["ap50_interval"] == pytest.approx(np.quantile(samples.resampled("here"), (0.025, 0.975)).tolist())
    again = BoxSamples.of_arrays(samples.arrays())
    assert np.array_equal(again.resampled("here"), samples.resampled("here"))
    assert again.by_image().shape == (samples.size,)


@pytest.mark.parametrize(("box", "expected"), [((0, 0, 100, 140), np.nan), ((0, 0, 30, 30), 0.0)])
def test_an_image_with_a_false_positive_alone_scores_0_by_the_rules_of_pascal_voc(box, expected):
    """A box on a difficult object is none, also where COCO counts it at a stricter threshold."""
    size, kind = (200, 200), np.zeros(1, np.int64)
    found = Detections(np.ones(1, np.float32), kind, [], size, np.array([box], float))
    truth = Objects.of_boxes(np.array([[0.0, 0, 100, 100]]), kind, np.array([True]), size)
    assert metric_of([(found, truth)]).samples().by_image() == pytest.approx([expected], nan_ok=True)


def test_a_drawn_image_counts_as_often_as_it_was_drawn():
    pairs = pairs_of(3, images=4, levels=10**6)
    weights = draws("here", 4)[:3]
    found = voc_ap(metric_of(pairs).samples().matches, CLASSES, weights)
    for number, row in enumerate(weights):
        repeated = [pair for pair, times in zip(pairs, row, strict=True) for _ in range(int(times))]
        whole = voc_ap(metric_of(repeated).samples().matches, CLASSES)[:, 0, 0]
        assert found[:, 0, number] == pytest.approx(whole, nan_ok=True)


def test_each_object_counts_once_and_difficult_ones_never():
    truth = Objects.of_boxes([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]], [0, 0], [False, True], SIZE)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 9, 10], [20, 20, 40, 40.0]])
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    found = Detections(scores, np.zeros(3, np.int64), [], SIZE, boxes)
    matches = match_boxes(found, truth)
    assert (matches.right[:, -1] & 1).tolist() == [1, 0, 0]
    assert (matches.wrong[:, -1] & 1).tolist() == [0, 1, 0]
    assert matches.counted[:, -1].tolist() == [True, False]
