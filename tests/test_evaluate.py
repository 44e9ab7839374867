import json
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F

from fake_world import K, batches, make, share_of_two
from segdistill.config import UserError
from segdistill.evaluate import DomainResult, evaluate, fit, prepare, retention, summary
from segdistill.metrics import ConfusionMatrix
from segdistill.segmenter import Window


def result(hits, misses):
    matrix = ConfusionMatrix(2)
    matrix.counts += torch.tensor([[hits, misses], [misses, hits]])
    return DomainResult(matrix, 1)


def test_every_domain_has_its_own_confusion_matrix():
    segmenter, domains = make(), {"clear": batches(0), "night": batches(1, count=3)}
    results = evaluate(segmenter, domains)
    segmenter.eval()
    assert {name: r.images for name, r in results.items()} == {"clear": 4, "night": 6}
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
    first, second = (evaluate(segmenter, {"a": batches(0)})["a"].confusion.counts for _ in range(2))
    assert [module.training for module in segmenter.modules()] == before
    assert torch.equal(first, second)


def test_flags_come_back_after_an_error():
    segmenter, wrong = make().train(), batches(0)
    wrong[0]["label"][0, 0, 0] = 7
    with pytest.raises(UserError, match="label id 7"):
        evaluate(segmenter, {"a": wrong})
    assert segmenter.training
    assert segmenter.decoder.dropout.training


def test_a_batch_may_be_an_object_with_float_images():
    data = batches(0)
    objects = [SimpleNamespace(image=b["image"].float() / 255, label=b["label"].to(torch.uint8)) for b in data]
    results = evaluate(make(), {"dicts": data, "objects": objects})
    assert torch.equal(results["dicts"].confusion.counts, results["objects"].confusion.counts)


def test_labels_decide_the_resolution():
    """Images are resized and predicted by windows, the scores brought to the label's size; labels stay as they are."""
    segmenter, (batch,) = make().eval(), batches(0, count=1, size=(48, 64))
    window = Window(size=(16, 16), stride=(8, 8))
    got = evaluate(segmenter, {"a": [batch]}, window=window, resize=(24, 32))["a"].confusion.counts
    small = F.interpolate(batch["image"].float() / 255, size=(24, 32), mode="bilinear")
    scores = F.interpolate(segmenter.window_scores(small, window), size=(48, 64), mode="bilinear")
    expected = ConfusionMatrix(K)
    expected.add(scores.argmax(1), batch["label"])
    assert torch.equal(got, expected.counts)
    assert not torch.equal(got, evaluate(segmenter, {"a": [batch]})["a"].confusion.counts)


def test_precision_is_entered_around_the_prediction(monkeypatch):
    segmenter, seen = make(), []
    predict = segmenter.predict

    def spy(*args):
        seen.append(torch.is_autocast_enabled("cpu"))
        return predict(*args)

    monkeypatch.setattr(segmenter, "predict", spy)
    evaluate(segmenter, {"a": batches(0, 1)}, precision=lambda: torch.autocast("cpu", torch.bfloat16))
    assert seen == [True]


def test_progress_counts_images():
    class Loader(list):
        dataset = range(4)

    seen = []
    evaluate(make(), {"a": Loader(batches(0)), "b": batches(1, 1)}, progress=lambda *what: seen.append(what))
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
    matrix = ConfusionMatrix(3)
    matrix.counts += torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    values = json.loads(json.dumps(DomainResult(matrix, 2).as_dict(), allow_nan=False))
    assert values == {
        "miou": pytest.approx((3 / 4 + 4 / 5) / 2),
        "iou": [pytest.approx(3 / 4), pytest.approx(4 / 5), None],
        "accuracy": 7 / 8,
        "mean_accuracy": pytest.approx((3 / 4 + 1) / 2),
        "images": 2,
        "confusion": [[3, 1, 0], [0, 4, 0], [0, 0, 0]],
    }
    assert DomainResult(ConfusionMatrix(2), 0).as_dict()["miou"] is None


def test_the_mean_is_over_unseen_domains_only():
    results = {"game": result(10, 0), "night": result(1, 1), "fog": result(3, 1)}
    assert summary(results, ["night", "fog"]) == pytest.approx((1 / 3 + 3 / 5) / 2)
    assert summary(results, []) is None
    with pytest.raises(UserError, match="unseen domain 'nigth' was not evaluated: did you mean 'night'"):
        summary(results, ["nigth"])


def test_retention():
    assert retention(0.3, 0.4) == pytest.approx(0.75)
    assert retention(0.3, 0.0) is None
    assert retention(None, 0.4) is None
    assert retention(0.3, None) is None


def test_two_processes_agree_with_one(tmp_path):
    """Confusion matrices and image counts are summed; the number of masks of a step, 1 and 4 here, is averaged."""
    mp.spawn(share_of_two, (tmp_path,), nprocs=2)
    alone = evaluate(make(), {"a": batches(0, count=3)})["a"].as_dict()
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {"mean": 2.5, **alone}
