"""Adaptation of the open-vocabulary teacher: what is trained, on what, by which loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

import tiny_vocab
from segdistill.config import UserError, parse
from segdistill.data.targets import collated, object_targets
from segdistill.models.open_vocabulary import OpenVocabulary, OpenVocabularyConfig
from segdistill.models.open_vocabulary_tuning import (
    DetectorTuning,
    SegmenterTuning,
    _labels,
    dice_loss,
    sigmoid_focal,
)
from segdistill.objects import Objects
from segdistill.types import Batch, LossTerms

CLASSES = ("person", "train", "traffic light")
SIZE = (40, 56)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    top = tmp_path_factory.mktemp("networks")
    return tiny_vocab.detector(top / "detector"), tiny_vocab.segmenter(top / "segmenter")


def teacher(folders: tuple[Path, Path], part: Any, **settings: Any) -> OpenVocabulary:
    base = {"detector": str(folders[0]), "segmenter": str(folders[1])}
    found = OpenVocabulary(parse(OpenVocabularyConfig, base | settings), CLASSES)
    found.tune(part)
    return found.train()


def loss_of(own: OpenVocabulary, part: str) -> Callable[[Batch], LossTerms]:
    if part == "detector":
        return partial(own.detector_loss, settings=DetectorTuning())
    return partial(own.segmenter_loss, settings=SegmenterTuning())


def objects(*kinds: int, crowd: tuple[int, ...] = (), void: bool = False) -> Objects:
    """Boxes side by side, each of 10 x 20 pixels; one object without pixels at the end."""
    ids = np.zeros((1, *SIZE), np.int32)
    for number in range(len(kinds)):
        ids[0, 5:15, 22 * number : 22 * number + 20] = number + 1
    classes = np.array([*kinds, 0])
    unknown = np.zeros(SIZE, bool)
    unknown[:, 30:] = void
    return Objects(ids, classes, np.isin(np.arange(len(classes)), crowd), unknown if void else None)


def second(kind: int) -> Objects:
    """Only the second box."""
    found = objects(0, kind)
    return Objects(np.where(found.ids == 2, 1, 0).astype(np.int32), np.array([kind]), np.zeros(1, bool))


def batch(*samples: Objects) -> Batch:
    random = np.random.default_rng(0)
    rows = []
    for each in samples:
        pixels = random.integers(0, 100, (3, *SIZE)).astype(np.uint8)
        for layer in each.ids:
            pixels[:, layer > 0] += (50 * (1 + each.classes[layer[layer > 0] - 1])).astype(np.uint8)
        rows.append({"image": torch.tensor(pixels), **object_targets(each)})
    return collated(rows)


def test_boxes_and_phrases_of_the_labels(folders) -> None:
    own = teacher(folders, "detector", prompt={"person": ["person", "rider"]})
    places = {kind: own.prompt.phrase_of(kind) for kind in range(3)}
    found = _labels(objects(1, 0, crowd=(1,)), places, torch.device("cpu"))
    assert found["class_labels"].tolist() == [2]  # after the two phrases of "person"
    assert found["boxes"].tolist() == [pytest.approx([10 / 56, 10 / 40, 20 / 56, 10 / 40])]


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_detector_loss_is_that_of_transformers(folders, auxiliary) -> None:
    own = teacher(folders, "detector")
    own.eval()
    inputs = batch(objects(1, 0), objects(2))
    terms = own.detector_loss(inputs, DetectorTuning(auxiliary=auxiliary))
    assert set(terms) == {"class", "box", "giou"}
    detector = own.detector
    places = {kind: kind for kind in range(3)}
    labels = [_labels(each, places, torch.device("cpu")) for each in (objects(1, 0), objects(2))]
    detector.network.config.auxiliary_loss = auxiliary
    pixels = detector.pixels(inputs["image"].float() / 255)
    wanted = detector.network(**pixels, **detector.text(detector.prompt.chunks[0], 2), labels=labels).loss
    assert torch.allclose(sum(terms.values()), wanted, rtol=1e-5)
    detector.network.config.auxiliary_loss = False


def test_a_split_prompt_is_learned_in_parts(folders, tmp_path) -> None:
    short = tiny_vocab.detector(tmp_path / "short", text=7)
    own = teacher((short, folders[1]), "detector")
    assert len(own.prompt.chunks) == 2
    own.eval()
    inputs = batch(objects(0, 2))
    both = own.detector_loss(inputs, DetectorTuning())
    total = dict.fromkeys(both, 0.0)
    for names, sample in ((CLASSES[:2], objects(0)), (CLASSES[2:], second(0))):
        part = OpenVocabulary(own.config, names).eval()
        terms = part.detector_loss(collated([object_targets(sample)]) | {"image": inputs["image"]}, DetectorTuning())
        total = {name: total[name] + value / 2 for name, value in terms.items()}
    assert all(torch.allclose(value, total[name], rtol=1e-4) for name, value in both.items())


# In transformers the first stage's proposals have no gradient and Swin's last norm is not used; SAM's masks come from
# boxes and the first mask token, and its IoU has no loss.
SILENT = {
    "detector": ("model.text_backbone.", "model.enc_output", "model.encoder_output_bbox_embed.",
        "model.backbone.conv_encoder.model.swin.layernorm."),
    "segmenter": (
        "vision_encoder.", "no_memory_embedding", "prompt_encoder.mask_embed.",
        "mask_decoder.iou_prediction_head.", "mask_decoder.pred_obj_score_head.",
        *(f"mask_decoder.output_hypernetworks_mlps.{number}." for number in (1, 2, 3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("part", ["detector", "segmenter"])
def test_gradients_reach_what_is_trained_and_nothing_else(folders, part) -> None:
    own = teacher(folders, part)
    with torch.no_grad():
        for each in own.parameters():  # layers that start at zero would stop the gradient
            each += 0.02 * torch.randn(each.shape, generator=torch.Generator().manual_seed(each.numel()))
    inputs = batch(objects(0, 1), objects(2))
    terms = loss_of(own, part)(inputs)
    assert all(torch.isfinite(value) for value in terms.values())
    sum(terms.values()).backward()
    other = own.segmenter if part == "detector" else own.detector
    assert all(each.grad is None and not each.requires_grad for each in other.parameters())
    for name, each in getattr(own, part).network.named_parameters():
        silent = name.startswith(SILENT[part])
        moved = each.grad is not None and bool(each.grad.any())
        if name.startswith("model.text_backbone.") or name.startswith(("vision_encoder.", "no_memory")):
            assert each.grad is None and not each.requires_grad, name
        else:
            assert each.requires_grad, name
        assert moved != silent, name


@pytest.mark.parametrize(("part", "lr"), [("detector", 2e-3), ("segmenter", 1e-2)])
def test_a_few_steps_reduce_the_loss_and_leave_the_rest(folders, part, lr) -> None:
    own = teacher(folders, part)
    settings: Any = DetectorTuning() if part == "detector" else SegmenterTuning()
    loss = loss_of(own, part)
    groups = [{"params": each["params"], "lr": lr * each["lr_scale"]} for each in own.groups(settings)]
    trained = {id(each) for group in groups for each in group["params"]}
    frozen = {name: each.clone() for name, each in own.named_parameters() if id(each) not in trained}
    assert all(("text_backbone" in name or not name.startswith(part)) or "vision" in name or "no_memory" in name
               for name in frozen)  # fmt: skip
    optimizer = torch.optim.AdamW(groups)
    inputs = batch(objects(0, 1), objects(2))
    values = []
    for _ in range(12):
        value = sum(loss(inputs).values())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.9 * values[0]
    assert all(torch.equal(each, frozen[name]) for name, each in own.named_parameters() if name in frozen)


@pytest.mark.parametrize("part", ["detector", "segmenter"])
def test_images_without_objects(folders, part) -> None:
    own = teacher(folders, part)
    inputs = batch(objects(), objects(0, crowd=(0,)))
    terms = loss_of(own, part)(inputs)
    total = sum(terms.values())
    assert torch.isfinite(total)
    total.backward()
    if part == "segmenter":
        assert total == 0
    else:
        assert terms["box"] == terms["giou"] == 0 < terms["class"]


def test_the_largest_objects_are_learned(folders) -> None:
    own = teacher(folders, "segmenter").eval()
    sample = objects(0, 1)
    sample.ids[0, 5:15, :4] = 0  # the first is smaller now
    both, alone = (collated([object_targets(each)]) for each in (sample, second(1)))
    image = {"image": batch(sample)["image"]}
    one, alone, both = (
        own.segmenter_loss(targets | image, SegmenterTuning(most=most))
        for targets, most in ((both, 1), (alone, 9), (both, 9))
    )
    assert all(torch.equal(one[name], alone[name]) and not torch.equal(one[name], both[name]) for name in one)


def test_pixels_without_annotation_do_not_count(folders) -> None:
    own = teacher(folders, "segmenter").eval()
    terms = [own.segmenter_loss(batch(objects(0, void=void)), SegmenterTuning()) for void in (False, True)]
    assert not torch.equal(terms[0]["focal"], terms[1]["focal"])
    logits, truth = torch.randn(2, 6, 6), (torch.rand(2, 6, 6) > 0.5).float()
    counted = torch.ones(1, 6, 6, dtype=torch.bool)
    counted[:, 3:] = False
    for function in (sigmoid_focal, dice_loss):
        part = function(logits, truth, counted)
        assert torch.allclose(part, function(logits[:, :3], truth[:, :3], counted[:, :3]))


def test_weights_of_the_segmenter_loss(folders) -> None:
    own = teacher(folders, "segmenter").eval()
    inputs = batch(objects(0))
    plain, other = (
        own.segmenter_loss(inputs, SegmenterTuning(focal_weight=f, dice_weight=d)) for f, d in ((1, 1), (20, 3))
    )
    assert torch.allclose(other["focal"], 20 * plain["focal"])
    assert torch.allclose(other["dice"], 3 * plain["dice"])


def test_focal_and_dice() -> None:
    logits, truth = torch.randn(3, 5, 7), (torch.rand(3, 5, 7) > 0.5).float()
    every = torch.ones(1, 5, 7, dtype=torch.bool)
    wanted = sigmoid_focal_loss(logits, truth, alpha=0.25, gamma=2).mean(dim=(1, 2))
    assert torch.allclose(sigmoid_focal(logits, truth, every), wanted)
    chance = logits.sigmoid().numpy()
    for value, p, t in zip(dice_loss(logits, truth, every).tolist(), chance, truth.numpy(), strict=True):
        assert value == pytest.approx(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1), rel=1e-5)


def test_groups_and_schedules(folders) -> None:
    settings = DetectorTuning()
    own = teacher(folders, "detector")
    backbone, rest = own.groups(settings)
    assert (backbone["lr_scale"], rest["lr_scale"], rest["weight_decay"]) == (0.1, 1.0, 0.01)
    names = {id(each): name for name, each in own.detector.network.named_parameters()}
    assert all(names[id(each)].startswith("model.backbone.") for each in backbone["params"])
    assert not any(names[id(each)].startswith(("model.backbone.", "model.text_backbone.")) for each in rest["params"])
    lr = settings.schedule()
    assert [lr(step, 1000) for step in (0, 699, 700, 899, 900)] == pytest.approx([5e-5, 5e-5, 5e-6, 5e-6, 5e-7])
    own.tune("segmenter")
    (group,) = own.groups(SegmenterTuning())
    assert (group["lr_scale"], group["weight_decay"]) == (1.0, 1e-4)
    lr = SegmenterTuning().schedule()
    assert [lr(step, 100) for step in (0, 50, 99)] == pytest.approx([5e-6, 2.5e-6, 5e-8])


@pytest.mark.parametrize("milestones", [(0.9, 0.7), (0.5, 0.5), (0.0,), (1.0,)])
def test_bad_milestones(milestones) -> None:
    with pytest.raises(UserError, match="milestones"):
        parse(DetectorTuning, {"milestones": milestones})


def test_nothing_is_trained_by_default(folders) -> None:
    own = teacher(folders, None)
    assert not any(each.requires_grad for each in own.parameters())
    assert not any(each.training for each in own.modules() if each is not own)
