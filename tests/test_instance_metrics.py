from __future__ import annotations

import io
import json
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist

from instance_cases import cityscapes, coco, detected, detections, disjoint, objects, overlapping
from segdistill.config import UserError
from segdistill.data.targets import collated, object_targets
from segdistill.metrics.average_precision import cityscapes_ap, coco_ap, coco_recall, mean
from segdistill.metrics.base import RESAMPLES, draws
from segdistill.metrics.instances import InstanceMetric, InstanceSamples
from segdistill.metrics.quality import quality
from segdistill.models import Model, View
from segdistill.objects import Objects


def metric_of(pairs, classes, **settings):
    metric = InstanceMetric(classes, **settings)
    for index, (found, truth) in enumerate(pairs):
        metric.add(index, found, truth)
    return metric


def pairs_of(seed, classes, make=overlapping, images=6, most=14, others=25, **settings):
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(images):
        objects = make(rng, int(rng.integers(0, most)), classes)
        pairs.append((detected(rng, objects, int(rng.integers(0, others)), classes, **settings), objects))
    return pairs


def twelve(samples):
    """COCO's numbers in the library's order, -1 where undefined."""
    ap, ar = (partial(table, samples.matches, samples.num_classes) for table in (coco_ap, coco_recall))
    areas = ("small", "medium", "large")
    tables = [ap(), ap()[:, :1], ap()[:, 5:6], *(ap(area=area) for area in areas)]
    tables += [*(ar(limit=limit) for limit in (1, 10, 100)), *(ar(area=area) for area in areas)]
    return np.nan_to_num([mean(table)[0] for table in tables], nan=-1)


CASES = {
    "overlapping": {},
    "disjoint": {"make": partial(disjoint, void=True)},
    "few scores": {"levels": 2, "images": 8},
    "one class": {"classes": 1, "copies": 4},
    "more than 100 detections": {"others": 600, "images": 4},
    "no detections elsewhere": {"others": 1, "copies": 1},
    "hundreds of scores": {"levels": 10**6, "images": 12},
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_coco_scores_are_those_of_the_library(case, seed):
    settings = {"classes": 3} | CASES[case]
    pairs = pairs_of([seed, len(case)], **settings)
    samples = metric_of(pairs, settings["classes"] + 1).samples()  # the last class has neither objects nor detections
    library = coco(pairs, settings["classes"] + 1)
    np.testing.assert_allclose(twelve(samples), library.stats, rtol=0, atol=1e-12)
    assert library.stats[0] > 0
    by_class = library.eval["precision"][:, :, :, 0, 2].mean(axis=(0, 1))
    ours = np.nan_to_num(samples.scores()["ap_by_class"], nan=-1)
    np.testing.assert_allclose(ours, by_class, rtol=0, atol=1e-12)


def test_the_cases_hold_what_they_are_for():
    tables = {case: metric_of(pairs_of([0, len(case)], **{"classes": 3} | CASES[case]), 4) for case in CASES}
    tables = {case: metric.samples().matches for case, metric in tables.items()}
    many = tables["more than 100 detections"]
    assert max(np.bincount(many.images.astype(int) * 4 + many.classes)) > 100
    assert ((many.right[:, 0] | many.wrong[:, 0]) == 0).any()
    everything = tables["overlapping"]
    assert (~everything.counted[:, 0]).any()  # crowds
    assert everything.counted[:, 1:4].any(axis=0).all()  # objects of every size
    assert len(np.unique(tables["few scores"].scores)) == 2


@pytest.mark.parametrize("kind", ["no detections", "no objects", "crowds alone", "empty masks", "nothing"])
def test_coco_scores_of_odd_sets(kind):
    made = pairs_of(3, 2, images=4)
    size = made[0][1].size
    none = objects(size), detections(size)
    pairs = {
        "no detections": [(none[1], truth) for _, truth in made],
        "no objects": [(found, none[0]) for found, _ in made],
        "crowds alone": [
            (found, Objects(truth.ids, truth.classes, np.ones_like(truth.crowd))) for found, truth in made
        ],
        "empty masks": [(detections(size, *[(0.5, 0, (3, 3), (5, 5))] * 3), truth) for _, truth in made],
        "nothing": [(none[1], none[0])] * 2,
    }[kind]
    samples = metric_of(pairs, 2).samples()
    np.testing.assert_allclose(twelve(samples), coco(pairs, 2).stats, rtol=0, atol=1e-12)
    result = metric_of(pairs, 2).result("x")
    assert (result["ap"] is None) == (kind in ("no objects", "crowds alone", "nothing"))
    json.dumps(result, allow_nan=False)


RARE = {
    "of two equal overlaps, the later object is taken": (
        [(0.9, 0, (5, 25), (0, 20)), (0.8, 0, (12, 30), (0, 20))],
        [(0, (0, 20), (0, 20)), (0, (10, 30), (0, 20))],
    ),
    "the 121st detection is right": (
        [(0.9, 0, (90, 99), (90, 99))] * 120 + [(0.1, 0, (0, 20), (0, 20))],
        [(0, (0, 20), (0, 20))],
    ),
    "areas on the bounds of the ranges": (
        [(0.9, 0, (0, 32), (100, 132)), (0.8, 0, (40, 136), (100, 196)), (0.7, 0, (0, 32), (0, 32)),
         (0.6, 0, (40, 136), (0, 96))],
        [(0, (0, 32), (0, 32)), (0, (40, 136), (0, 96))],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RARE)
def test_coco_scores_of_rare_cases(case):
    (found, truth), size = RARE[case], (140, 200)
    masks = []
    for _, rows, columns in truth:
        masks.append(np.zeros(size, bool))
        masks[-1][slice(*rows), slice(*columns)] = True
    pairs = [(detections(size, *found), Objects.of_masks(masks, [0] * len(truth), [False] * len(truth), size))]
    samples = metric_of(pairs, 1).samples()
    np.testing.assert_allclose(twelve(samples), coco(pairs, 1).stats, rtol=0, atol=1e-12)
    assert samples.scores()["ap50"] == pytest.approx([51 / 101, 0, 51 / 101][list(RARE).index(case)], abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_cityscapes_scores_are_those_of_the_official_script(seed, tmp_path, monkeypatch):
    make = partial(disjoint, crowd=0.25, void=seed % 2 > 0)
    pairs = pairs_of(seed, 8, make, images=5, most=25, levels=3 if seed == 2 else 20)
    least = 400 if seed == 1 else 100
    official = cityscapes(pairs, tmp_path, monkeypatch, min_pixels=least)
    samples = metric_of(pairs, 8, min_pixels=least).samples()
    found = cityscapes_ap(samples.matches, 8)[..., 0]
    np.testing.assert_allclose(found, official["resultApMatrix"][0], rtol=0, atol=1e-9)
    scores, averages = samples.scores(), official["averages"]
    assert scores["cityscapes_ap"] == pytest.approx(averages["allAp"], abs=1e-9)
    assert scores["cityscapes_ap50"] == pytest.approx(averages["allAp50%"], abs=1e-9)
    classes = [averages["classes"][name]["ap"] for name in averages["classes"]]
    np.testing.assert_allclose(scores["cityscapes_ap_by_class"], classes, rtol=0, atol=1e-9)
    assert 0.01 < scores["cityscapes_ap"] < 0.9


def test_the_pixels_of_a_small_group_count_twice(tmp_path, monkeypatch):
    size = (40, 60)
    found = detections(size, (0.9, 0, (30, 40), (10, 20)), (0.8, 0, (0, 20), (0, 20)))
    scores = {}
    for group in ((17, 23), (16, 28)):  # columns; 30 and 40 of the first detection's 100 pixels are in the group
        truth = objects(size, (0, (0, 20), (0, 20)), (0, (30, 40), group), crowd=[1])
        folder = tmp_path / str(group)
        folder.mkdir()
        official = cityscapes([(found, truth)], folder, monkeypatch)
        scores[group] = metric_of([(found, truth)], 8).samples().scores()["cityscapes_ap50"]
        assert scores[group] == pytest.approx(official["averages"]["allAp50%"])
    assert scores == {(17, 23): 1.0, (16, 28): 0.25}


def ap50(found, truth, **settings):
    """AP at IoU 0.5 by COCO and by Cityscapes."""
    scores = metric_of([(found, truth)], 1, **settings).samples().scores()
    return pytest.approx(scores["ap50"]), pytest.approx(scores["cityscapes_ap50"])


def test_an_iou_of_one_half_counts_for_coco_alone():
    size = (40, 40)
    half = detections(size, (0.9, 0, (0, 10), (0, 20))), objects(size, (0, (0, 20), (0, 20)))
    assert ap50(*half) == (1, 0)
    more = detections(size, (0.9, 0, (0, 11), (0, 20)))
    assert ap50(more, half[1]) == (1, 1)


def test_a_second_match_is_a_false_positive_for_both():
    size, truth = (40, 40), objects((40, 40), (0, (0, 20), (0, 20)), (0, (20, 40), (20, 40)))
    box = ((0, 20), (0, 20))
    found = detections(size, (0.9, 0, *box), (0.8, 0, *box), (0.7, 0, (20, 40), (20, 40)))
    coco_value = (51 + 50 * 2 / 3) / 101
    points = [(0.5, 1), (0.5, 1 / 2), (1, 2 / 3)]  # recall and precision at each score
    curve = [(0, 1), *points]
    trapezoids = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))
    assert ap50(found, truth) == (coco_value, trapezoids)


def test_void_groups_and_small_objects_are_ignored_by_share():
    size, void = (40, 80), np.zeros((40, 80), bool)
    void[:, 60:] = True
    big, small, group = (0, (0, 20), (0, 20)), (0, (30, 35), (0, 5)), (0, (0, 40), (40, 60))
    truth = objects(size, big, small, group, crowd=[2], void=void)
    right = (0.5, 0, (0, 20), (0, 20))
    for wrong, cost in [
        ((0.9, 0, (0, 40), (59, 80)), False),  # on void
        ((0.9, 0, (0, 9), (39, 60)), False),  # on the group
        ((0.9, 0, (30, 36), (0, 6)), False),  # on the small object
        ((0.9, 0, (20, 30), (45, 65)), False),  # half on the group, half on void
        ((0.9, 0, (20, 30), (20, 39)), True),  # on the background
        ((0.9, 0, (25, 30), (32, 48)), True),  # half on the group
    ]:
        assert ap50(detections(size, wrong, right), truth)[1] == (0.25 if cost else 1), wrong
    assert metric_of([(detections(size, right), truth)], 1).result("x")["cityscapes_ap"] == 1
    found = detections(size, right)
    assert ap50(found, truth, min_pixels=1)[1] == 0.5  # the small object is missed


def test_an_image_drawn_twice_counts_twice():
    pairs = pairs_of(7, 2, images=5, levels=10**6)
    samples = metric_of(pairs, 2).samples()
    for weights in ([2, 0, 1, 3, 1], [0, 0, 5, 0, 0], [1, 1, 1, 1, 1], [0, 4, 0, 1, 0]):
        repeated = [pair for pair, weight in zip(pairs, weights, strict=True) for _ in range(weight)]
        found = mean(coco_ap(samples.matches, 2, np.array([weights], float)))
        assert found[0] == pytest.approx(coco(repeated, 2).stats[0], abs=1e-12)


def test_the_score_of_a_draw_does_not_depend_on_the_other_draws(monkeypatch):
    samples = metric_of(pairs_of(8, 3, images=9, others=40), 3).samples()
    drawn = draws("fog", 9)[:50]
    drawn[[3, 20]] = 1
    together = mean(coco_ap(samples.matches, 3, drawn))
    alone = [mean(coco_ap(samples.matches, 3, draw[None]))[0] for draw in drawn]
    assert together.tolist() == alone
    assert together[3] == together[20] == samples.scores()["ap"]
    monkeypatch.setattr("segdistill.metrics.average_precision.ELEMENTS", 64)
    assert mean(coco_ap(samples.matches, 3, drawn)).tolist() == alone


def test_resampled_ap_surrounds_the_score():
    metric = metric_of(pairs_of(9, 3, images=20), 3)
    samples, result = metric.samples(), metric.result("fog")
    found = samples.resampled("fog")
    assert found.shape == (RESAMPLES,)
    assert np.isfinite(found).all()
    assert result["ap_interval"] == np.quantile(found, (0.025, 0.975)).tolist()
    assert result["ap_interval"][0] < result["ap"] < result["ap_interval"][1]
    assert not np.array_equal(found, samples.resampled("rain"))
    one = metric_of(pairs_of(9, 3, images=1), 3)
    assert np.isnan(one.samples().resampled("fog")).all()
    assert one.result("fog")["ap_interval"] is None


def test_ap_by_image_is_that_of_the_image_alone():
    pairs, size = pairs_of(10, 3, images=6), (140, 180)
    pairs += [(detections(size), objects(size)), (detections(size, (0.2, 0, (0, 9), (0, 9))), objects(size))]
    found = metric_of(pairs, 3).samples().by_image()
    alone = [metric_of([pair], 3).samples().scores()["ap"] for pair in pairs]
    np.testing.assert_array_equal(found[:-1], alone[:-1])
    assert np.isnan(found[-2])
    assert found[-1] == 0
    assert np.isnan(alone[-1])
    assert metric_of([], 3).samples().by_image().shape == (0,)


def test_samples_are_saved_as_plain_arrays():
    samples = metric_of(pairs_of(11, 3), 3).samples()
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **samples.arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as saved:
        arrays = dict(saved)
        again = InstanceSamples.of_arrays(arrays)
    np.testing.assert_equal(again.scores(), samples.scores())
    assert again.size == samples.size
    for name, array in samples.arrays().items():
        assert again.arrays()[name].dtype == array.dtype
        np.testing.assert_array_equal(again.arrays()[name], array)
    del arrays["counted"]
    with pytest.raises(KeyError, match="counted"):
        InstanceSamples.of_arrays(arrays)


@pytest.mark.parametrize("processes", [2, 3])
def test_scores_do_not_depend_on_processes_and_order(processes, monkeypatch):
    pairs = pairs_of(12, 3, images=8, levels=3)
    expected = metric_of(pairs, 3).result("x")
    parts = [InstanceMetric(3) for _ in range(processes)]
    for index in reversed(range(len(pairs))):
        parts[index % processes].add(index, *pairs[index])

    def gather(into, _):
        into[:] = [part.seen for part in reversed(held)]

    held = list(parts)
    whole = InstanceMetric(3)
    for name, value in {"is_initialized": lambda: True, "get_world_size": lambda: processes, "get_rank": int}.items():
        monkeypatch.setattr(dist, name, value)
    monkeypatch.setattr(dist, "all_gather_object", gather)
    whole.merge()
    assert whole.result("x") == expected
    unordered = InstanceMetric(3)
    for index in (5, 2, 7, 0, 1, 3, 6, 4):
        unordered.add(index, *pairs[index])
    assert unordered.result("x") == expected


class Given(Model):
    """Returns detections that were made before, and keeps what it was asked for."""

    def __init__(self, found):
        torch.nn.Module.__init__(self)
        self.found, self.asked = found, []

    def predict(self, images, *, size):
        self.asked.append((tuple(images.shape), float(images.max()), size))
        return [self.found.pop(0) for _ in images]


def test_a_batch_is_predicted_at_the_size_of_its_annotations():
    pairs = pairs_of(13, 3, images=4)
    size = pairs[0][1].size
    image = torch.full((3, 70, 90), 255, dtype=torch.uint8)
    metric, model = InstanceMetric(3), Given([found for found, _ in pairs])
    for rows in ((0, 1), (2, 3)):
        batch = collated([{"image": image, **object_targets(pairs[row][1])} for row in rows])
        metric.update(model, batch, View(resize=(35, 45)))
    assert model.asked == [((2, 3, 35, 45), 1.0, size)] * 2
    assert metric.result("x") == metric_of(pairs, 3).result("x")
    model.found = [found for found, _ in reversed(pairs)]
    by_index = InstanceMetric(3)
    batch = collated([{"image": image, **object_targets(truth)} for _, truth in reversed(pairs)])
    by_index.update(model, batch | {"index": torch.tensor([3, 2, 1, 0])}, View())
    assert by_index.result("x") == metric.result("x")


def test_an_unknown_class_is_one_line():
    size = (20, 20)
    with pytest.raises(UserError, match=r"class 3 of an annotated object is not known: allowed are 0\.\.2"):
        InstanceMetric(3).add(0, detections(size), objects(size, (3, (0, 5), (0, 5))))
    with pytest.raises(AssertionError, match="not a class"):
        InstanceMetric(3).add(0, detections(size, (0.5, 3, (0, 5), (0, 5))), objects(size))
    unsorted = ((0.5, 0, (0, 5), (0, 5)), (0.6, 0, (0, 5), (0, 5)))
    with pytest.raises(AssertionError, match="sorted"):
        InstanceMetric(3).add(0, detections(size, *unsorted), objects(size))
    with pytest.raises(AssertionError, match="sizes differ"):
        InstanceMetric(3).add(0, detections((20, 21)), objects(size))


def test_the_result_has_plain_numbers():
    result = metric_of(pairs_of(14, 2, images=5), 3).result("x")
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["ap_by_class"][2] is result["ap50_by_class"][2] is result["cityscapes_ap_by_class"][2] is None
    assert result["ap"] == pytest.approx(np.mean(result["ap_by_class"][:2]))
    assert result["ap50"] == pytest.approx(np.mean(result["ap50_by_class"][:2]))
    pairs = pairs_of(14, 2, images=5)
    counts = {"images": 5, "objects": sum(int((~o.crowd & (o.areas() > 0)).sum()) for _, o in pairs)}
    assert counts | {"detections": sum(len(found) for found, _ in pairs)} == {
        key: result[key] for key in ("images", "objects", "detections")
    }
    empty = InstanceMetric(2).result("x")
    assert (empty["ap"], empty["cityscapes_ap"], empty["images"], empty["detections"]) == (None, None, 0, 0)


def test_quality_of_pseudo_labels_by_hand():
    size = (40, 80)
    cars, riders = [(0, (0, 20), (0, 20)), (0, (0, 20), (30, 50))], [(1, (25, 40), (0, 20)), (1, (25, 40), (40, 80))]
    truth = objects(size, *cars, *riders, crowd=[3])
    found = detections(
        size,
        (0.9, 0, (0, 20), (0, 20)),  # IoU 1
        (0.8, 0, (0, 16), (30, 50)),  # IoU 0.8
        (0.7, 0, (25, 35), (30, 40)),  # nothing there
        (0.6, 1, (25, 40), (50, 60)),  # on the crowd
        (0.3, 1, (25, 40), (0, 20)),  # below the score
    )
    samples = metric_of([(found, truth)], 2).samples()
    report = quality(samples, 0.5)
    assert report["by_class"] == [
        {"precision": pytest.approx(2 / 3), "recall": 1.0, "mean_iou": pytest.approx(0.9), "labels": 3, "matched": 2,
         "objects": 2},
        {"precision": None, "recall": 0.0, "mean_iou": None, "labels": 0, "matched": 0, "objects": 1},
    ]  # fmt: skip
    assert {key: report[key] for key in ("labels", "matched", "objects")} == {"labels": 3, "matched": 2, "objects": 3}
    assert report["recall"] == pytest.approx(2 / 3)
    everything = quality(samples, 0.0)
    assert (everything["precision"], everything["recall"]) == (pytest.approx(3 / 4), 1.0)
    json.dumps(report, allow_nan=False)


def test_quality_above_a_score_is_that_of_the_kept_detections():
    pairs = pairs_of(15, 3, images=6)
    for score in (0.3, 0.65, 1.0):
        kept = [(found.above(score), truth) for found, truth in pairs]
        assert quality(metric_of(pairs, 3).samples(), score) == quality(metric_of(kept, 3).samples(), 0.0)
