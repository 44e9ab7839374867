import math

import numpy as np
import pytest
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

from segdistill.config import UserError
from segdistill.metrics.base import RESAMPLES, interval
from segdistill.metrics.confusion import Calibration, ConfusionMatrix, ImageCounts
from segdistill.ops import derive_seed


def maps(seed, classes=5, size=(3, 17, 19)):
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, size, generator=rng)
    guess = torch.where(torch.rand(size, generator=rng) < 0.6, truth, torch.randint(0, classes, size, generator=rng))
    truth[torch.rand(size, generator=rng) < 0.1] = 255
    return guess, truth


def streamed(*batches, classes=5):
    matrix = ConfusionMatrix(classes)
    for guess, truth in batches:
        matrix.add(guess, truth)
    return matrix


def test_it_agrees_with_torchmetrics():
    batches = [maps(seed) for seed in range(3)]
    matrix = streamed(*batches)
    oracles = {
        "counts": MulticlassConfusionMatrix(5, ignore_index=255),
        "iou": MulticlassJaccardIndex(5, average="none", ignore_index=255),
        "miou": MulticlassJaccardIndex(5, average="macro", ignore_index=255),
        "accuracy": MulticlassAccuracy(5, average="micro", ignore_index=255),
        "mean_accuracy": MulticlassAccuracy(5, average="macro", ignore_index=255),
    }
    for guess, truth in batches:
        for oracle in oracles.values():
            oracle.update(guess, truth)
    assert torch.equal(matrix.counts, oracles["counts"].compute())
    torch.testing.assert_close(matrix.iou().float(), oracles["iou"].compute())
    for name in ("miou", "accuracy", "mean_accuracy"):
        assert getattr(matrix, name)() == pytest.approx(oracles[name].compute().item(), abs=1e-6)


def test_by_hand():
    matrix = streamed((torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 1, 1, 255]])), classes=4)
    assert matrix.counts.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert matrix.iou()[:2].tolist() == [0.5, 0.5]
    assert matrix.iou()[2:].isnan().all()
    assert matrix.miou() == 0.5
    assert matrix.accuracy() == pytest.approx(2 / 3)
    assert matrix.mean_accuracy() == 0.75


def test_a_class_that_is_only_predicted_scores_zero():
    matrix = streamed((torch.tensor([[0, 2]]), torch.tensor([[0, 0]])), classes=3)
    assert matrix.iou()[2].item() == 0
    assert matrix.miou() == 0.25
    assert matrix.mean_accuracy() == 0.5


def test_nothing_labelled_is_nan():
    matrix = streamed((torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), 255, dtype=torch.uint8)))
    assert all(math.isnan(score) for score in (matrix.miou(), matrix.accuracy(), matrix.mean_accuracy()))


def test_merging_is_adding_all():
    one, other = streamed(maps(0)), streamed(maps(1))
    one.merge(other)
    assert torch.equal(one.counts, streamed(maps(0), maps(1)).counts)


def test_integer_types_do_not_matter():
    guess, truth = maps(0)
    assert torch.equal(streamed((guess.to(torch.uint8), truth.to(torch.uint8))).counts, streamed((guess, truth)).counts)


@pytest.mark.parametrize("label", [5, 254, -1])
def test_a_foreign_label_is_named(label):
    guess, truth = maps(0)
    truth[0, 0, 0] = label
    with pytest.raises(UserError, match=rf"label id {label} is not a class: allowed are 0\.\.4 and 255"):
        streamed((guess, truth))


def test_shapes_must_agree():
    with pytest.raises(UserError, match=r"prediction \(1, 2\) and label \(1, 3\) differ"):
        streamed((torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)))


def test_only_scores_of_the_same_classes_merge():
    with pytest.raises(UserError, match="of 3 classes into scores of 5"):
        ConfusionMatrix(5).merge(ConfusionMatrix(3))


def test_calibration_agrees_with_torchmetrics():
    oracle, ours = MulticlassCalibrationError(5, n_bins=15, norm="l1", ignore_index=255), Calibration()
    for seed in range(3):
        _, truth = maps(seed)
        rng = torch.Generator().manual_seed(seed)
        probability = (3 * torch.randn(3, 5, 17, 19, generator=rng)).softmax(dim=1)
        confidence, guess = probability.max(dim=1)
        oracle.update(probability, truth)
        ours.add(confidence, guess, truth)
    assert ours.error() == pytest.approx(oracle.compute().item(), abs=1e-6)


def test_calibration_by_hand():
    """Two bins: 0.9 and 0.92, of which one is right; 0.3, which is right; what is ignored has no say."""
    ours = Calibration()
    label = torch.tensor([1, 1, 2, 255])
    ours.add(torch.tensor([0.92, 0.9, 0.3, 1.0]), torch.tensor([1, 0, 2, 0]), label)
    assert ours.error() == pytest.approx((2 * abs(0.5 - 0.91) + abs(1 - 0.3)) / 3, abs=1e-7)
    assert ours.sums[0].sum() == 3
    certain = Calibration()
    certain.add(torch.ones(4), torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.uint8))
    assert certain.error() == 0
    assert math.isnan(Calibration().error())


def dense(counts):
    tables = np.zeros((counts.size, counts.num_classes**2), np.int64)
    tables[counts.images, counts.cells] = counts.counts
    return tables.reshape(counts.size, counts.num_classes, counts.num_classes)


def some_images(count=7, classes=4):
    rng = np.random.default_rng(count)
    tables = [rng.integers(0, 50, (classes, classes)) * (rng.random((classes, classes)) < 0.4) for _ in range(count)]
    tables[2][:] = 0  # an image without labels
    return np.array(tables)


def test_images_are_kept_without_their_zeros_and_come_back():
    tables = some_images()
    counts = ImageCounts.of(4, list(tables))
    assert np.array_equal(dense(counts), tables)
    assert (counts.counts > 0).all()
    assert len(counts.cells) == (tables > 0).sum() < tables.size / 2
    empty = ImageCounts.of(4, [])
    assert (empty.size, len(empty.cells)) == (0, 0)


def test_resampling_scores_the_drawn_images_as_one_data_set():
    tables = some_images()
    tables[:, 3, :] = tables[:, :, 3] = 0
    tables[0, 3, 3] = 5  # one image alone has class 3: many draws miss it, and leave it out
    scores, seen = ImageCounts.of(4, list(tables)).resampled("fog"), []
    rng = np.random.default_rng(derive_seed("bootstrap", "fog"))
    for weights in rng.multinomial(7, np.full(7, 1 / 7), size=RESAMPLES)[:50]:
        matrix = ConfusionMatrix(4)
        matrix.counts += torch.from_numpy(np.tensordot(weights, tables, 1))
        seen.append(matrix.miou())
    assert scores[:50] == pytest.approx(seen)
    assert not np.array_equal(scores, ImageCounts.of(4, list(tables)).resampled("rain"))
    assert interval(scores) == pytest.approx(np.percentile(scores, [2.5, 97.5]))


def test_one_image_or_no_label_has_no_interval():
    tables = list(some_images())
    assert interval(ImageCounts.of(4, tables[:1]).resampled("a")) is None
    assert interval(ImageCounts.of(4, [tables[2], tables[2]]).resampled("a")) is None
