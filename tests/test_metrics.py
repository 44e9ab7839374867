import math

import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassJaccardIndex

from segdistill.config import UserError
from segdistill.metrics import ConfusionMatrix


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
