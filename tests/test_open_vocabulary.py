"""The open-vocabulary teacher: prompts, boxes and masks of small random networks in real folders."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_vocab
from segdistill.config import UserError
from segdistill.data.pseudo import PseudoWriter
from segdistill.models.open_vocabulary import OpenVocabulary
from segdistill.models.open_vocabulary_parts import save_licence
from segdistill.models.prompts import Prompt, build_prompt
from segdistill.models.proposals import COUNTS, Found, Limits, Proposals, paint, pick, unmatched
from segdistill.objects import decode
from tiny_vocab import LOW, concepts_config, config, images

CLASSES = ("person", "train", "traffic light")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_vocab.networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def teacher(folders: dict[str, Path]) -> OpenVocabulary:
    return OpenVocabulary(config(folders), CLASSES)


# Prediction


@pytest.mark.parametrize("kind", ["mm-grounding-dino", "grounding-dino", "concepts"])
@pytest.mark.parametrize(("size", "wanted"), [((37, 53), None), ((64, 21), (80, 40))])
def test_detections_of_files(folders, tmp_path, kind, size, wanted) -> None:
    settings = concepts_config(folders, suppress=1.0) if kind == "concepts" else config(folders, kind)
    teacher = OpenVocabulary(settings, CLASSES)
    found = teacher.predict(images(tmp_path, size), wanted)
    assert len(found) == 2
    assert sum(map(len, found)) > 0
    for each, counts in zip(found, teacher.counts, strict=True):
        assert each.size == (wanted or size)
        assert (np.diff(each.scores) <= 0).all()
        assert (each.scores > settings.threshold).all()
        covered = np.sum([decode(runs) for runs in each.masks] or [np.zeros(each.size)], axis=0)
        assert covered.max() <= 1
        assert counts["objects"] == len(each)
        assert counts["boxes"] - counts["large"] - counts["suppressed"] - counts["cut"] - counts["empty_masks"] == len(
            each
        )
        assert sum(counts[f"phrase: {name}"] for name in CLASSES) == counts["boxes"]
    assert sum(counts["objects"] for counts in teacher.counts) == sum(map(len, found))


def test_boxes_are_those_of_transformers(teacher, folders, tmp_path) -> None:
    """Its processor reads the same prompt and the same image, and cuts at the same score of a one-word phrase."""
    from transformers import AutoProcessor

    batch = images(tmp_path, (64, 128), 1)
    processor = AutoProcessor.from_pretrained(folders["mm-grounding-dino"])
    with Image.open(tmp_path / "0.png") as picture, torch.no_grad():
        inputs = processor(images=picture, text=[list(CLASSES)], return_tensors="pt")
        output = teacher.detector.network(**inputs)
        (found,) = teacher.detector(batch)
    assert inputs["input_ids"][0].tolist() == list(teacher.prompt.chunks[0].ids)
    target = processor.post_process_grounded_object_detection(output, threshold=0.0, target_sizes=[(64, 128)])[0]
    corners = (target["boxes"] / torch.tensor([128, 64, 128, 64])).clamp(0, 1)
    assert torch.allclose(found.boxes, corners, atol=1e-5)
    chances = output.logits[0].sigmoid()
    assert torch.allclose(found.scores[:, 0], chances[:, 1], atol=1e-6)  # person
    assert torch.allclose(found.scores[:, 2], chances[:, 5:7].mean(dim=1), atol=1e-6)  # traffic light


def test_masks_are_those_of_transformers(teacher, folders, tmp_path) -> None:
    from transformers import Sam2Processor

    batch = images(tmp_path, (40, 56), 2)
    processor = Sam2Processor(image_processor=teacher.segmenter.processor)
    boxes = torch.tensor([[3.0, 5.0, 30.0, 31.0], [20.0, 1.0, 55.0, 20.0]])
    with Image.open(tmp_path / "1.png") as picture, torch.no_grad():
        inputs = processor(images=picture, input_boxes=[boxes.tolist()], return_tensors="pt")
        output = teacher.segmenter.network(**inputs, multimask_output=False)
        wanted = processor.post_process_masks(output.pred_masks, inputs["original_sizes"])[0][:, 0]
        levels = teacher.segmenter.embed(batch)
        logits, quality = teacher.segmenter.masks(levels, 1, boxes / torch.tensor([56.0, 40.0, 56.0, 40.0]))
    assert torch.allclose(quality, output.iou_scores[0, :, 0], atol=1e-4)
    kinds = torch.zeros(2, dtype=torch.long)
    found = paint(Found(boxes, torch.tensor([0.9, 0.8]), kinds), logits, torch.tensor([0.9, 0.8]), (40, 56))
    assert (decode(found.masks[0]) != wanted[0].numpy()).mean() < 0.01
    hidden = (wanted[1] & ~wanted[0]).numpy()
    second = decode(found.masks[1]) if len(found) > 1 else np.zeros((40, 56), bool)
    assert (second != hidden).mean() < 0.01


def test_nothing_found_is_counted(folders, tmp_path) -> None:
    teacher = OpenVocabulary(config(folders, threshold=0.99), CLASSES)
    assert [len(each) for each in teacher.predict(images(tmp_path, (30, 40)))] == [0, 0]
    total = sum(teacher.counts, Counter())
    assert total["images_without_boxes"] == 2
    assert total["below_threshold"] == total["queries"] == 40
    assert list(unmatched(total, teacher.prompt)) == list(CLASSES)


def test_images_that_are_too_narrow(folders, tmp_path) -> None:
    many = tiny_vocab.detector(tmp_path / "many", queries=100)
    teacher = OpenVocabulary(config(folders | {"many": many}, "many"), CLASSES)
    with pytest.raises(UserError, match=r"fewer feature-map cells than the detector has queries \(100\)"):
        teacher.predict(images(tmp_path, (1, 200)))


def test_the_segmenter_may_rank(folders, tmp_path) -> None:
    batch = images(tmp_path, (48, 48))
    by_detector = OpenVocabulary(config(folders, suppress=1.0), CLASSES).predict(batch)
    by_segmenter = OpenVocabulary(config(folders, suppress=1.0, score="segmenter"), CLASSES).predict(batch)
    assert by_detector[0].scores.max() < 0.4 < by_segmenter[0].scores.min()  # both random, the IoU around one half


def test_prediction_keeps_the_mode(folders, tmp_path) -> None:
    teacher = OpenVocabulary(config(folders), CLASSES)
    batch = images(tmp_path, (32, 32))
    before = teacher.predict(batch)
    teacher.tune("segmenter")
    teacher.train()
    after = teacher.predict(batch)
    assert teacher.training
    assert teacher.segmenter.network.mask_decoder.training
    assert not teacher.segmenter.network.vision_encoder.training
    assert [each.masks for each in before] == [each.masks for each in after]


def test_pseudo_labels_carry_licence_prompt_and_counts(folders, tmp_path) -> None:
    settings = config(folders, licence="Apache-2.0", prompt={"train": ["train", "training"]})
    teacher = OpenVocabulary(settings, CLASSES)
    found = teacher.predict(images(tmp_path, (32, 48)))
    with PseudoWriter(tmp_path / "pseudo.json", CLASSES, teacher.origin("abc")) as writer:
        for number, (each, counts) in enumerate(zip(found, teacher.counts, strict=True)):
            writer.add(f"set/{number}.png", each, counts)
        labels = writer.finish()
    assert labels.info["teacher"] == "mm-grounding-dino + segmenter"
    assert labels.info["licence"] == "Apache-2.0"
    assert labels.info["prompt"] == "person . train . training . traffic light"
    assert labels.info["thresholds"] == {"threshold": LOW, "most": 100, "suppress": 0.8, "largest": 1.0}
    assert labels.info["counts"] == {name: sum(each[name] for each in teacher.counts) for name in teacher.counts[0]}
    assert set(COUNTS) < set(labels.info["counts"])
    assert [labels.detections(f"set/{number}.png").masks for number in (0, 1)] == [each.masks for each in found]


def test_saved_networks_predict_the_same(folders, tmp_path) -> None:
    batch, settings, saved = images(tmp_path, (32, 48)), config(folders, licence="MIT"), tmp_path / "saved"
    teacher = OpenVocabulary(settings, CLASSES)
    for part in ("detector", "segmenter"):
        getattr(teacher, part).save(saved / part)
        save_licence(saved / part, teacher.licence)
    other = OpenVocabulary(settings.adapted(saved).model_copy(update={"licence": None}), CLASSES)
    assert other.licence == teacher.licence
    first, second = teacher.predict(batch), other.predict(batch)
    assert [each.masks for each in first] == [each.masks for each in second]
    assert np.array_equal(first[0].scores, second[0].scores)


# What is kept


def prompt(folders: dict[str, Path], words: Any = None, classes: tuple[str, ...] = CLASSES, limit: int = 64) -> Prompt:
    return build_prompt(classes, words, tokenizer(folders), limit=limit)


def tokenizer(folders: dict[str, Path]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folders["mm-grounding-dino"])


def proposals(boxes: list[list[float]], scores: list[list[float]]) -> Proposals:
    values = torch.tensor(scores)
    return Proposals(torch.tensor(boxes), values, torch.arange(values.shape[1]).expand(values.shape))


BOXES = [[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.52], [0.5, 0.5, 1.0, 1.0], [0.0, 0.0, 1.0, 0.99], [0.2, 0.2, 0.3, 0.3]]
SCORES = [[0.5, 0.4, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.6], [0.7, 0.0, 0.0], [0.3, 0.1, 0.2]]


def test_boxes_are_kept_and_counted(folders) -> None:
    found = pick(proposals(BOXES, SCORES), prompt(folders), Limits(0.3, 2, 0.8, 0.9))
    assert found.kinds.tolist() == [1, 2]
    assert found.scores.tolist() == pytest.approx([0.9, 0.6])
    assert found.boxes.tolist() == torch.tensor([BOXES[1], BOXES[2]]).tolist()
    phrases = {"phrase: person": 2, "phrase: train": 2, "phrase: traffic light": 1}
    assert found.counts == Counter(
        queries=5, below_threshold=1, boxes=5, large=1, suppressed=2, cut=0, images_without_boxes=0, **phrases
    )  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "scores"),
    [
        (Limits(0.55, 100, 0.8, 1.0), [0.9, 0.7, 0.6]),
        (Limits(0.3, 3, 0.8, 1.0), [0.9, 0.7, 0.6]),
        (Limits(0.3, 1, 0.8, 1.0), [0.9]),
        (Limits(0.3, 100, 1.0, 1.0), [0.9, 0.7, 0.6, 0.5, 0.4]),
        (Limits(0.3, 100, 0.97, 1.0), [0.9, 0.7, 0.6, 0.5]),
        (Limits(0.1, 100, 0.8, 1.0), [0.9, 0.7, 0.6, 0.3]),
    ],
)
def test_each_limit_acts(folders, limits, scores) -> None:
    found = pick(proposals(BOXES, SCORES), prompt(folders), limits)
    assert found.scores.tolist() == pytest.approx(scores)


def test_unmatched_phrases(folders) -> None:
    own = prompt(folders)
    found = pick(proposals(BOXES[:1], [[0.5, 0.0, 0.2]]), own, Limits(0.3, 9, 0.8, 1.0))
    assert unmatched(found.counts, own) == ["train", "traffic light"]


def test_masks_do_not_overlap_and_empty_ones_are_counted() -> None:
    logits = torch.full((4, 4, 4), -5.0)
    logits[0, :, :2] = 5
    logits[1, :2] = 5
    logits[2, :2, :2] = 5  # hidden behind the others
    scores = torch.tensor([0.5, 0.9, 0.3, 0.8])
    found = Found(torch.zeros(4, 4), scores, torch.tensor([0, 1, 2, 0]))
    painted = paint(found, logits, scores, (4, 4))
    assert painted.classes.tolist() == [1, 0]
    assert painted.scores.tolist() == pytest.approx([0.9, 0.5])
    assert [int(decode(runs).sum()) for runs in painted.masks] == [8, 4]
    assert found.counts == Counter(empty_masks=2, objects=2)


# The prompt


def test_classes_are_found_by_positions_of_tokens(folders) -> None:
    """ "train" and "training" share a token; "traffic light" has two."""
    own = prompt(folders, {"person": "training"})
    (chunk,) = own.chunks
    assert chunk.spans == ((1, 3), (4, 5), (6, 8))
    assert chunk.ids[1] == chunk.ids[4]
    logits = torch.full((1, 3, 64), -9.0)
    logits[0, 0, 4] = 9  # the "train" of the second phrase
    logits[0, 1, 1:3] = 9
    logits[0, 2, 6] = 9  # half of "traffic light"
    scores, phrases = own.best(chunk.scores(logits))
    assert torch.allclose(scores[0], torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.5]]), atol=1e-3)
    assert phrases[0].tolist() == [[0, 1, 2]] * 3


def test_a_class_has_the_score_of_its_best_words(folders) -> None:
    own = prompt(folders, {"train": ["train", "bus"]})
    assert own.text == "person . train . bus . traffic light"
    scores, phrases = own.best(torch.tensor([[[0.1, 0.2, 0.7, 0.3]]]))
    assert scores[0, 0].tolist() == pytest.approx([0.1, 0.7, 0.3])
    assert phrases[0, 0].tolist() == [0, 2, 3]


def test_tokens_are_those_of_the_whole_text(folders) -> None:
    own = prompt(folders, {"person": "Training"})
    assert tokenizer(folders)(own.text + " .")["input_ids"] == list(own.chunks[0].ids)


def test_transformers_splits_the_prompt_at_the_same_places(folders) -> None:
    from transformers.models.mm_grounding_dino.modeling_mm_grounding_dino import build_label_maps

    (chunk,) = prompt(folders, {"person": "training"}).chunks
    (maps,) = build_label_maps(torch.zeros(1, 2, 20), torch.tensor([chunk.ids]))
    assert [tuple(each.nonzero()[[0, -1], 0].tolist()) for each in maps] == [(a, b - 1) for a, b in chunk.spans]


def test_long_prompts_are_split(folders, tmp_path) -> None:
    own = prompt(folders, limit=7)
    assert [chunk.phrases for chunk in own.chunks] == [(0, 1), (2,)]
    assert [len(chunk.ids) for chunk in own.chunks] == [6, 5]
    assert own.chunks[1].spans == ((1, 3),)
    short = tiny_vocab.detector(tmp_path / "short", text=7)
    teacher = OpenVocabulary(config(folders | {"short": short}, "short"), CLASSES)
    batch = images(tmp_path, (32, 48))
    teacher.predict(batch)
    assert sum(counts["queries"] for counts in teacher.counts) == 2 * 2 * 20
    with torch.no_grad():
        found = teacher.detector(batch)
        for part, names in ((slice(20), ("person", "train")), (slice(20, 40), ("traffic light",))):
            alone = OpenVocabulary(teacher.config, names).detector(batch)
            columns = [CLASSES.index(name) for name in names]
            assert torch.equal(alone[0].scores, found[0].scores[part][:, columns])
            assert torch.equal(alone[0].boxes, found[0].boxes[part])
            others = [column for column in range(3) if column not in columns]
            assert not found[0].scores[part][:, others].any()


@pytest.mark.parametrize(
    ("classes", "words", "message"),
    [
        ((), None, "name at least one"),
        (CLASSES, {"persons": "x"}, "there is no class 'persons': did you mean 'person'"),
        (CLASSES, {"person": "  "}, "class 'person' has no words"),
        (CLASSES, {"person": []}, "class 'person' has no words"),
        (CLASSES, {"person": ["person", ""]}, "class 'person' has no words"),
        (CLASSES, {"person": "xyz"}, "does not know 'xyz'"),
        (CLASSES, {"person": "red. light"}, "contains '.'"),
        (CLASSES, {"person": "red?"}, "contains '?'"),
        (CLASSES, {"person": "Train"}, "'train' appears twice, for 'person' and 'train'"),
        (CLASSES, {"person": ["bus", "bus"]}, "'bus' appears twice"),
        (CLASSES, {"person": "red " * 62}, "has 62 tokens; the detector reads 61"),
    ],
)
def test_bad_prompts(folders, classes, words, message) -> None:
    with pytest.raises(UserError) as raised:
        prompt(folders, words, classes)
    assert message in str(raised.value)
