import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from fake_encoder import FakeEncoder, Largest, seeded
from segdistill.config import UserError
from segdistill.heads import Mask2Former, SemFPN
from segdistill.models import Segmenter, Window, positions
from segdistill.ops import maps

K = 4


def make(taps=(0, 1, 2, 3)):
    def build():
        config = SemFPN.Config(width=8, dropout=0.5)
        return Segmenter(FakeEncoder(6), SemFPN(config, (6,) * len(taps), (FakeEncoder.patch,) * len(taps), K), taps, K)

    return seeded(build)


def some_images(batch=2, size=(32, 40)):
    return seeded(lambda: torch.rand(batch, 3, *size), 1)


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (512, [0]),
        (540, [0, 28]),
        (720, [0, 208]),
        (1024, [0, 341, 512]),
        (960, [0, 341, 448]),
        (1280, [0, 341, 682, 768]),
        (300, [0]),
    ],
)
def test_windows_stand_where_the_authors_put_them(length, starts):
    assert positions(length, 512, 341) == starts


def test_maps_are_the_taps_in_order():
    segmenter = make()
    segmenter.taps = (1, 3)
    shallow, deep = maps(segmenter.features(some_images()))
    assert shallow.shape == (2, 6, 4, 5)
    torch.testing.assert_close(shallow, 3 * segmenter.encoder.embed(some_images() - 0.5))
    torch.testing.assert_close(deep / 5, shallow / 3)


def test_one_tap_is_enough():
    assert make(taps=(-1,)).scores(some_images()).shape == (2, K, 32, 40)


@pytest.mark.parametrize("size", [(32, 40), (33, 39), (9, 7), (31, 64)])
def test_scores_of_any_size(size):
    segmenter, images = make().eval(), some_images(size=size)
    padded = F.pad(images, (0, -size[1] % 8, 0, -size[0] % 8), mode="replicate")
    scores = segmenter.scores(images)
    assert scores.shape == (2, K, *size)
    torch.testing.assert_close(scores, segmenter.scores(padded)[..., : size[0], : size[1]])


def some_batch(size=(32, 40)):
    images = seeded(lambda: torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8), 1)
    return {"image": images, "label": seeded(lambda: torch.randint(0, K, (2, *size)), 2)}


def test_the_loss_is_the_heads_on_the_batchs_images_in_0_to_1():
    segmenter, batch = make().eval(), some_batch()
    expected = F.cross_entropy(segmenter.scores(batch["image"] / 255), batch["label"])
    torch.testing.assert_close(segmenter.loss(batch)["cross_entropy"], expected)
    torch.testing.assert_close(segmenter(batch)["cross_entropy"], expected)


def test_a_frozen_encoder_gets_no_gradient_and_stays_in_evaluation_mode():
    segmenter, batch = make(), some_batch()
    sum(segmenter.loss(batch).values()).backward()
    assert segmenter.encoder.embed.weight.grad.abs().max() > 0
    segmenter.zero_grad()
    segmenter.freeze_encoder()
    segmenter.train()
    assert segmenter.encoder_is_frozen
    assert segmenter.head.training
    assert not segmenter.encoder.training
    assert not segmenter.features(batch["image"] / 255).tokens[0].requires_grad
    sum(segmenter.loss(batch).values()).backward()
    assert segmenter.encoder.embed.weight.grad is None
    assert all(p.grad.abs().max() > 0 for p in segmenter.head.parameters())


def test_a_window_of_the_images_size_changes_nothing():
    segmenter, images = make().eval(), some_images()
    whole = segmenter.window_scores(images, Window(size=(32, 40), stride=(16, 16)))
    torch.testing.assert_close(whole, segmenter.scores(images))


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize(("size", "stride"), [((16, 16), (16, 16)), ((16, 24), (10, 7)), ((64, 16), (5, 16))])
def test_overlapping_windows_are_averaged(size, stride, batch):
    segmenter, images = make().eval(), some_images(size=(31, 50))
    total, count = torch.zeros(2, K, 31, 50), torch.zeros(31, 50)
    for top in positions(31, size[0], stride[0]):
        for left in positions(50, size[1], stride[1]):
            place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            total[place] += segmenter.scores(images[place])
            count[place] += 1
    assert count.min() >= 1
    scores = segmenter.window_scores(images, Window(size=size, stride=stride, batch=batch))
    torch.testing.assert_close(scores, total / count)
    assert torch.equal(segmenter.predict(images, Window(size=size, stride=stride)), (total / count).argmax(1))


def test_no_more_windows_at_once_than_asked_for(monkeypatch):
    segmenter, seen = make().eval(), []
    whole = Segmenter.scores
    monkeypatch.setattr(Segmenter, "scores", lambda self, images: seen.append(len(images)) or whole(self, images))
    segmenter.window_scores(some_images(), Window(size=(16, 16), stride=(16, 16), batch=4))
    assert seen == [4, 4, 4]  # 2 images of 2 x 3 windows


def test_prediction_upsamples_scores_not_classes():
    segmenter, images = make().eval(), some_images()
    expected = F.interpolate(segmenter.scores(images), size=(70, 90), mode="bilinear").argmax(1)
    prediction = segmenter.predict(images, size=(70, 90))
    assert torch.equal(prediction, expected)
    assert prediction.dtype == torch.int64
    assert torch.equal(segmenter.predict(images), segmenter.scores(images).argmax(1))


def test_bytes_are_refused():
    with pytest.raises(UserError, match=r"float in \[0, 1\], got torch.uint8: divide 8-bit pixels by 255"):
        make().predict(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


@pytest.mark.parametrize("settings", [{"size": (16, 16)}, {"stride": (0, 341)}, {"batch": 0}])
def test_windows_must_cover_the_image(settings):
    with pytest.raises(ValidationError):
        Window(**settings)


def test_bands_of_windows_come_from_top_to_bottom_and_only_the_rows_of_unfinished_windows_are_kept():
    segmenter, images, window = make().eval(), some_images(size=(96, 24)), Window(size=(16, 16), stride=(8, 8), batch=4)
    with Largest() as largest:
        bands = [band.clone() for band in segmenter.window_bands(images, window)]
    assert torch.equal(torch.cat(bands, dim=2), segmenter.window_scores(images, window))
    assert len(bands) > 8
    assert largest.values < 2 * K * 40 * 24  # far from the 2 x K x 96 x 24 of the whole


def test_a_full_size_image_is_answered_as_by_the_naive_way_in_bounded_memory():
    """2048 x 1024 pixels, fitted into 1024 x 512, windows 512 / 341, 19 classes (spec A.11): 160 MB of scores."""
    config = SemFPN.Config(width=8, dropout=0.0)
    segmenter = seeded(lambda: Segmenter(FakeEncoder(4), SemFPN(config, (4,), (8,), 19), (-1,), 19)).eval()
    image, window = some_images(1, (512, 1024)), Window(size=(512, 512), stride=(341, 341))
    with Largest() as largest, torch.inference_mode():
        classes = segmenter.predict(image, window, (1024, 2048))
    scores = [segmenter.scores(image[..., x : x + 512]) for x in (0, 341, 512)]
    total, count = torch.zeros(1, 19, 512, 1024), torch.zeros(1024)
    for x, score in zip((0, 341, 512), scores, strict=True):
        total[..., x : x + 512] += score
        count[x : x + 512] += 1
    naive = F.interpolate(total / count, size=(1024, 2048), mode="bilinear").argmax(1)
    assert (classes == naive).float().mean() > 1 - 1e-6  # one in a million may be a tie up to rounding
    assert len(classes.unique()) >= 3
    windows = 3 * 19 * 512 * 512  # the scores of the windows in one batch are the largest array
    assert largest.values <= windows < 19 * 1024 * 2048 / 2


@pytest.mark.parametrize("logits", [True, False])
def test_strips_say_how_sure_they_are(logits):
    segmenter, images = make().eval(), some_images()
    segmenter.head.scores_are_logits = logits
    segmenter.head.classifier.bias.data += 5  # positive, as scores that are no logits are
    scores = F.interpolate(segmenter.scores(images), size=(40, 45), mode="bilinear")
    expected = scores.softmax(1) if logits else scores / scores.sum(1, keepdim=True)
    strips = list(segmenter.strips(images, size=(40, 45)))
    assert [(strip.image, strip.top) for strip in strips] == [(0, 0), (1, 0)]
    torch.testing.assert_close(torch.stack([strip.confidence for strip in strips]), expected.amax(1).detach())
    assert Mask2Former.scores_are_logits is False
