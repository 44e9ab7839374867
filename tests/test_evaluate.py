import json

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torchmetrics.classification import MulticlassCalibrationError

from fake_encoder import FakeEncoder, Held, Largest, seeded
from fake_world import K, batches, make, score, share_of_two
from segdistill.config import UserError
from segdistill.data.dataset import Protocol
from segdistill.heads import SemFPN
from segdistill.metrics.confusion import ConfusionMatrix
from segdistill.metrics.unlabelled import Note
from segdistill.models import Segmenter, Window, bands, fit, prepare
from segdistill.ops import derive_seed
from segdistill.runs.evaluation import mean_interval, mean_score, retention, retention_interval
from segdistill.tasks.semantic import SemanticMetric


def of_images(*tables):
    """The metric after images with these confusion matrices."""
    metric = SemanticMetric(len(tables[0]) if tables else 2)
    for number, table in enumerate(tables):
        metric.confusion.counts += torch.tensor(table)
        metric.seen[number] = np.array(table), Note(1, 1)
    return metric


def counts_of(metric):
    return metric.samples().counts


def summary(metrics, unseen):
    return mean_score({name: metric.result(name) for name, metric in metrics.items()}, "miou", unseen)


def result(hits, misses):
    return of_images([[hits, misses], [misses, hits]])


def test_every_domain_has_its_own_confusion_matrix():
    segmenter, domains = make(), {"clear": batches(0), "night": batches(1, count=3)}
    results = score(segmenter, domains)
    segmenter.eval()
    assert {name: counts_of(r).size for name, r in results.items()} == {"clear": 4, "night": 6}
    for name, data in domains.items():
        expected = ConfusionMatrix(K)
        for batch in data:
            expected.add(segmenter.predict(batch["image"].float() / 255), batch["label"])
        assert torch.equal(results[name].confusion.counts, expected.counts)


def test_training_flags_come_back_and_dropout_was_off():
    segmenter = make()
    segmenter.freeze_encoder()
    segmenter.train()
    before = [module.training for module in segmenter.modules()]
    first, second = (score(segmenter, {"a": batches(0)})["a"].confusion.counts for _ in range(2))
    assert [module.training for module in segmenter.modules()] == before
    assert torch.equal(first, second)


def test_flags_come_back_after_an_error():
    segmenter, wrong = make().train(), batches(0)
    wrong[0]["label"][0, 0, 0] = 7
    with pytest.raises(UserError, match="label id 7"):
        score(segmenter, {"a": wrong})
    assert segmenter.training
    assert segmenter.head.dropout.training


def test_labels_decide_the_resolution():
    """Images are resized and predicted by windows, the scores brought to the label's size; labels stay as they are."""
    segmenter, (batch,) = make().eval(), batches(0, count=1, size=(48, 64))
    window = Window(size=(16, 16), stride=(8, 8))
    protocol = Protocol(resize=(24, 32), window=(16, 16), stride=(8, 8))
    got = score(segmenter, {"a": [batch]}, protocols={"a": protocol})["a"].confusion.counts
    small = F.interpolate(batch["image"].float() / 255, size=(24, 32), mode="bilinear")
    scores = F.interpolate(segmenter.window_scores(small, window), size=(48, 64), mode="bilinear")
    expected = ConfusionMatrix(K)
    expected.add(scores.argmax(1), batch["label"])
    assert torch.equal(got, expected.counts)
    assert not torch.equal(got, score(segmenter, {"a": [batch]})["a"].confusion.counts)
    assert torch.equal(got, score(segmenter, {"a": [batch]}, protocols={"a": Protocol(resize=(24, 32))},
                                     window=window)["a"].confusion.counts)  # fmt: skip


def test_every_domain_is_seen_as_its_own_protocol_says(monkeypatch):
    seen, whole = [], Segmenter.scores
    monkeypatch.setattr(Segmenter, "scores", lambda self, x: seen.append(tuple(x.shape[-2:])) or whole(self, x))
    protocols = {"b": Protocol(resize=(16, 32)), "c": Protocol(window=(16, 24), stride=(8, 8))}
    domains = {name: batches(0, count=1) for name in "abc"}
    score(make(), domains, protocols=protocols)
    assert seen == [(24, 32), (16, 21), (16, 24), (16, 24)]  # 2 images of 2 x 2 windows, four at a time
    seen.clear()
    score(make(), domains, protocols=protocols, window=Window(size=(8, 8), stride=(8, 8), batch=100))
    assert seen == [(8, 8)] * 3  # the given window takes the place of all others, the resizing stays


def test_precision_is_entered_around_the_prediction(monkeypatch):
    segmenter, seen = make(), []
    scores = segmenter.scores

    def spy(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return scores(*args)

    monkeypatch.setattr(segmenter, "scores", spy)
    score(segmenter, {"a": batches(0, 1)}, precision=lambda: torch.autocast("cpu", torch.bfloat16))
    assert seen == [True]


def test_progress_counts_images():
    class Loader(list):
        dataset = range(4)

    seen = []
    score(make(), {"a": Loader(batches(0)), "b": batches(1, 1)}, progress=lambda *what: seen.append(what))
    assert seen == [("a", 2, 4), ("a", 4, 4), ("b", 2, None)]


@pytest.mark.parametrize(
    ("size", "box", "expected"),
    [
        ((1024, 2048), (512, 1024), (512, 1024)),
        ((720, 1280), (720, 1280), (720, 1280)),
        ((1080, 1920), (540, 960), (540, 960)),
        ((600, 600), (512, 1024), (512, 512)),
        ((2000, 1000), (512, 1024), (1024, 512)),  # the box lies along the longer side
        ((1052, 1914), (512, 1024), (512, 932)),
    ],
)
def test_images_are_fitted_into_the_box_and_keep_their_aspect(size, box, expected):
    assert fit(size, box) == expected


def test_prepare_gives_the_unit_interval():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert prepare(image)[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    torch.testing.assert_close(prepare(prepare(image), (2, 2)), prepare(image)[..., :2, :2])


def test_as_dict_is_plain_json():
    tables = [[3, 0, 0], [0, 2, 0], [0, 0, 0]], [[0, 1, 0], [0, 2, 0], [0, 0, 0]]
    values = json.loads(json.dumps(of_images(*tables).result("a"), allow_nan=False))
    assert values.pop("miou_interval") == pytest.approx([1 / 3, 1])  # the second image twice: 0 and 2/3
    assert values == {
        "miou": pytest.approx((3 / 4 + 4 / 5) / 2),
        "iou": [pytest.approx(3 / 4), pytest.approx(4 / 5), None],
        "accuracy": 7 / 8,
        "mean_accuracy": pytest.approx((3 / 4 + 1) / 2),
        "calibration_error": None,
        "confidence": 0,
        "images": 2,
        "confusion": [[3, 1, 0], [0, 4, 0], [0, 0, 0]],
    }
    empty = of_images().result("a")
    assert (empty["miou"], empty["miou_interval"], empty["images"]) == (None, None, 0)


def test_scores_of_images_add_up_and_stand_in_the_order_of_the_data_set():
    data = batches(0, count=3)
    forward, backward = (score(make(), {"a": order})["a"] for order in (data, data[::-1]))
    for name in ("images", "cells", "counts"):
        assert (getattr(counts_of(forward), name) == getattr(counts_of(backward), name)).all()
    assert forward.result("a") == backward.result("a")
    one = score(make(), {"a": [{key: value[1:] for key, value in data[1].items()}]})["a"]
    assert np.array_equal(counts_of(forward).cells[counts_of(forward).images == 3], counts_of(one).cells)
    assert counts_of(forward).counts.sum() == forward.confusion.counts.sum() == 6 * 24 * 32
    without = [{key: value for key, value in batch.items() if key != "index"} for batch in data]
    assert score(make(), {"a": without})["a"].result("a") == forward.result("a")


def test_no_array_grows_with_classes_times_height(monkeypatch):
    """1000 rows, 19 classes: nothing is larger than the image itself, whose full scores are six times its size."""
    monkeypatch.setattr(bands, "BAND", 2**17)
    config = SemFPN.Config(width=8, dropout=0.0)
    segmenter = seeded(lambda: Segmenter(FakeEncoder(4), SemFPN(config, (4,), (8,), 19), (-1,), 19))
    (batch,) = batches(0, count=1, size=(1000, 200))
    batch = {key: value[:1] for key, value in batch.items()}
    with Largest() as largest:
        result = score(segmenter, {"a": [batch]}, window=Window(size=(64, 64), stride=(48, 48)))["a"]
    assert largest.values == 3 * 1000 * 200
    assert result.confusion.counts.sum() == 1000 * 200


def test_memory_grows_with_the_image_and_not_with_its_scores(monkeypatch):
    """Per pixel of a taller image 12 bytes more, those of its three floats; scores of 19 classes would take 76."""
    monkeypatch.setattr(bands, "BAND", 2**15)
    config = SemFPN.Config(width=8, dropout=0.0)
    segmenter = seeded(lambda: Segmenter(FakeEncoder(4), SemFPN(config, (4,), (8,), 19), (-1,), 19))
    window, width, most = Window(size=(64, 64), stride=(48, 48)), 112, {}
    for height in (304, 1168):
        (batch,) = batches(0, count=1, size=(height, width))
        with Held() as held:
            score(segmenter, {"a": [{key: value[:1] for key, value in batch.items()}]}, window=window)
        most[height] = held.most
    assert most[304] > 19 * 64 * width * 4  # the rows that unfinished windows reach
    assert 12 <= (most[1168] - most[304]) / (864 * width) < 12.5


def test_calibration_is_that_of_the_softmax_at_the_labels_size():
    segmenter, data = make().eval(), batches(0, size=(25, 30))
    oracle = MulticlassCalibrationError(K, n_bins=15, norm="l1", ignore_index=255)
    data[0]["label"][0, :5] = 255
    for batch in data:
        scores = F.interpolate(segmenter.scores(prepare(batch["image"], (20, 24))), size=(25, 30), mode="bilinear")
        oracle.update(scores, batch["label"])
    got = score(segmenter, {"a": data}, protocols={"a": Protocol(resize=(20, 24))})["a"]
    assert got.result("a")["calibration_error"] == pytest.approx(oracle.compute().item(), abs=1e-6)


def test_the_mean_is_over_unseen_domains_only():
    results = {"game": result(10, 0), "night": result(1, 1), "fog": result(3, 1)}
    assert summary(results, ["night", "fog"]) == pytest.approx((1 / 3 + 3 / 5) / 2)
    assert summary(results, []) is None
    assert summary({"dark": of_images([[0, 0], [0, 0]])}, ["dark"]) is None  # no pixel has a label
    with pytest.raises(UserError, match="unseen domain 'nigth' was not evaluated: did you mean 'night'"):
        summary(results, ["nigth"])


def test_retention():
    assert retention(0.3, 0.4) == pytest.approx(0.75)
    assert retention(0.3, 0.0) is None
    assert retention(None, 0.4) is None
    assert retention(0.3, None) is None


def test_intervals_draw_images_within_each_domain_and_put_each_draw_to_both_models():
    rng = np.random.default_rng(0)

    def model(share):
        """Two domains of images of very different difficulty, of whose pixels ``share`` less are wrong."""
        domains = {}
        for name, images in (("night", 9), ("fog", 14)):
            wrong = [int(share * w) for w in rng.integers(0, 80, images)]
            domains[name] = of_images(*[[[100 - w, w], [w, 100 - w]] for w in wrong])
        return domains

    student, unseen = model(1.0), ["night", "fog"]
    samples = {name: metric.samples() for name, metric in student.items()}
    counts = {name: kept.counts for name, kept in samples.items()}
    low, high = mean_interval(samples, unseen)
    assert low < summary(student, unseen) < high
    draws = []
    for name, size in (("night", 9), ("fog", 14)):
        own = np.random.default_rng(derive_seed("bootstrap", name))
        weights = own.multinomial(size, np.full(size, 1 / size), size=1000)
        tables = np.zeros((size, 4))
        np.add.at(tables, (counts[name].images, counts[name].cells), counts[name].counts)
        total = weights @ tables
        draws.append((total[:, 0] / (200 * size - total[:, 3]) + total[:, 3] / (200 * size - total[:, 0])) / 2)
    assert [low, high] == pytest.approx(np.percentile(np.mean(draws, axis=0), [2.5, 97.5]))
    assert mean_interval(samples, unseen) == [low, high]
    assert retention_interval(samples, samples, unseen) == [1, 1]  # as no interval of two independent draws would be
    rng = np.random.default_rng(0)
    teacher = model(0.5)
    below, above = retention_interval(samples, {name: metric.samples() for name, metric in teacher.items()}, unseen)
    assert below < summary(student, unseen) / summary(teacher, unseen) < above
    assert above - below < (high - low) / summary(teacher, unseen)
    assert mean_interval(samples, []) is retention_interval(samples, samples, []) is None


def test_two_processes_agree_with_one(tmp_path):
    """All scores are the same to the last digit; the number of masks of a step, 1 and 4 here, is averaged."""
    mp.spawn(share_of_two, (tmp_path,), nprocs=2)
    alone = score(make(), {"a": batches(0, count=3)})["a"].result("a")
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {"mean": 2.5, **alone}
