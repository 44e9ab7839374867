"""The instance network: masks from ids, predictions against a restatement, sizes, bounded work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fake_encoder import seeded
from segdistill.config import UserError
from segdistill.data.targets import collated, object_targets, objects_of
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.heads import MaskedDPT
from segdistill.models import InstanceSegmenter
from segdistill.models.instance import TOP, object_masks
from segdistill.objects import Objects, decode

SIZE = (32, 48)


def network(queries=6, classes=3):
    encoder = build_encoder(EncoderConfig(name="world_student", weights="random"), seed=0)
    taps = encoder.record.taps
    config = MaskedDPT.Config(width=64, heads=2, queries=queries, decoder_layers=1, decoder_feedforward=16, points=64,
                              neck_channels=(8, 8, 8, 8))  # fmt: skip
    head = seeded(lambda: MaskedDPT(config, encoder.spec(taps).channels, encoder.strides(taps), classes), 0)
    return InstanceSegmenter(encoder, head, taps, classes).eval()


def some_objects(crowd=(False, False, True)):
    ids = np.zeros((2, *SIZE), np.int32)
    ids[0, 2:10, 3:20] = 1
    ids[1, 6:20, 10:30] = 2  # overlaps the first one
    ids[0, 20:30, 30:40] = 3
    return Objects(ids, np.array([0, 2, 1]), np.array(crowd))


def batch_of(*objects):
    image = torch.zeros(3, *SIZE, dtype=torch.uint8)
    return collated([{"image": image} | object_targets(each) for each in objects])


def empty():
    return Objects(np.zeros((1, *SIZE), np.int32), np.zeros(0, np.int64), np.zeros(0, bool))


def test_masks_are_the_objects_that_count():
    batch = batch_of(some_objects(), empty())
    classes, masks = object_masks(batch, 0)
    assert classes.tolist() == [0, 2]
    assert [int(mask.sum()) for mask in masks] == [8 * 17, 14 * 20]
    assert (masks[1] == torch.tensor(some_objects().ids[1] == 2)).all()
    classes, masks = object_masks(batch, 1)
    assert (len(classes), masks.shape) == (0, (0, *SIZE))


def test_objects_without_pixels_are_left_out():
    objects = some_objects(crowd=(False, False, False))
    ids = objects.ids.copy()
    ids[ids == 1] = 0
    classes, masks = object_masks(batch_of(Objects(ids, objects.classes, objects.crowd)), 0)
    assert classes.tolist() == [2, 1]
    assert len(masks) == 2


def test_a_batch_keeps_every_image_s_objects():
    batch = batch_of(some_objects(), empty())
    assert batch["ids"].shape == (2, 2, *SIZE)
    for row, given in enumerate((some_objects(), empty())):
        found = objects_of(batch, row)
        assert found.classes.tolist() == given.classes.tolist()
        assert found.crowd.tolist() == given.crowd.tolist()
        assert (found.ids[: len(given.ids)] == given.ids).all()


@pytest.mark.parametrize("objects", [some_objects(), empty(), some_objects(crowd=(True, True, True))])
def test_the_loss_is_finite_with_and_without_objects(objects):
    model = network()
    terms = seeded(lambda: model.loss(batch_of(objects, empty())))
    assert set(terms) == {"class", "mask", "dice"}
    assert all(term.isfinite() for term in terms.values())
    sum(terms.values()).backward()


@torch.no_grad()
def test_predictions_equal_a_restatement():
    model, images = network(), seeded(lambda: torch.rand(2, 3, *SIZE))
    found = model.predict(images)
    (classes, masks), _ = model.decoded(images)
    for row, each in enumerate(found):
        probabilities = classes[-1][row].softmax(-1)[:, :-1]
        large = torch.nn.functional.interpolate(masks[-1][row][None], size=SIZE, mode="bilinear")[0]
        expected = []
        for query, share in enumerate(probabilities):
            inside = large[query] > 0
            if inside.any():
                quality = large[query].sigmoid()[inside].mean()
                expected += [(float(p * quality), kind, inside) for kind, p in enumerate(share)]
        expected.sort(key=lambda entry: -entry[0])
        assert len(each) == len(expected)
        assert each.scores == pytest.approx([score for score, *_ in expected], abs=1e-5)
        best = expected[0]
        assert each.classes[0] == best[1]
        assert (decode(each.masks[0]) == best[2].numpy()).all()


def test_any_size_and_another_output_size():
    model = network()
    found = model.predict(torch.rand(1, 3, 21, 35), size=(42, 70))[0]
    assert found.size == (42, 70)
    assert all(decode(runs).shape == (42, 70) for runs in found.masks)
    assert (np.diff(found.scores) <= 0).all()


def test_at_most_a_hundred_predictions():
    model = network(queries=50, classes=8)
    assert len(model.predict(torch.rand(1, 3, *SIZE))[0]) <= TOP


def test_8_bit_images_are_a_mistake():
    with pytest.raises(UserError, match="divide 8-bit pixels by 255"):
        network().predict(torch.zeros(1, 3, *SIZE, dtype=torch.uint8))


def test_painted_detections_do_not_overlap():
    found = network(queries=20).predict(seeded(lambda: torch.rand(1, 3, *SIZE)))[0]
    painted, visible = found.painted(), found.visible()
    masks = [decode(runs) for runs in visible.masks]
    assert sum(mask.astype(int) for mask in masks).max() <= 1
    assert painted.areas().tolist() == [int(mask.sum()) for mask in masks]
    assert (decode(found.masks[0]) == masks[0]).all()  # the best one is whole
