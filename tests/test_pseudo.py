"""Pseudo-labels on disk: written line by line, resumed, finished, read, exported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO
from PIL import Image

from segdistill.config import UserError
from segdistill.data.archives import Folder
from segdistill.data.coco_file import read_coco
from segdistill.data.instance_ids import class_ids, instance_ids, label_name, write_instance_ids
from segdistill.data.pseudo import Origin, PseudoWriter, read_pseudo
from segdistill.files import DIGEST, json_digest
from segdistill.objects import Detections, Objects, decode, encode

CLASSES = ("person", "car")
SIZE = (6, 9)
ORIGIN = Origin("a teacher", "Apache-2.0", "person . car", {"threshold": 0.3}, "abc")
NAMES = ("city/b/2.png", "city/b/1.png", "night/1.png")


def box(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top:bottom, left:right] = True
    return mask


def found(*scores: float) -> Detections:
    """Boxes that overlap by one column, of alternating classes."""
    masks = [encode(box(1, 2 * number, 5, 2 * number + 3)) for number in range(len(scores))]
    return Detections(np.float32(scores), np.arange(len(scores)) % 2, masks, SIZE)


def write(path: Path, names: tuple[str, ...] = NAMES) -> Any:
    with PseudoWriter(path, CLASSES, ORIGIN) as writer:
        for number, name in enumerate(names):
            writer.add(name, found(*(0.9, 0.6, 0.4)[:number]), {"boxes": number, "empty": 1})
        return writer.finish()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labels" / "pseudo.json"


def test_what_is_written_is_read(path: Path) -> None:
    labels = write(path)
    assert list(labels) == sorted(NAMES)
    assert labels.classes == CLASSES
    assert labels.info["counts"] == {"boxes": 3, "empty": 3}
    assert {key: labels.info[key] for key in ("teacher", "licence", "prompt", "thresholds", "fingerprint")} == {
        "teacher": "a teacher", "licence": "Apache-2.0", "prompt": "person . car", "thresholds": {"threshold": 0.3},
        "fingerprint": "abc",
    }  # fmt: skip
    read = labels.detections(NAMES[2])
    wanted = found(0.9, 0.6)
    assert read.scores.dtype == np.float32
    assert np.array_equal(read.scores, wanted.scores)
    assert np.array_equal(read.classes, wanted.classes)
    assert read.masks == wanted.masks
    assert not len(labels.detections(NAMES[0]))
    assert not path.with_suffix(".jsonl").exists()


def test_objects_do_not_overlap_and_pass_the_score(path: Path) -> None:
    labels = write(path)
    both = labels.objects(NAMES[2])
    assert both.classes.tolist() == [0, 1]
    assert both.areas().tolist() == [12, 8]  # the shared column belongs to the better one
    assert labels.objects(NAMES[2], score=0.7).classes.tolist() == [0]
    assert labels.objects(NAMES[2], least=9).classes.tolist() == [0]


def test_the_document_is_a_coco_data_set(path: Path) -> None:
    write(path)
    file = read_coco(Folder(path.parent), path.name)
    assert [category.name for category in file.categories] == list(CLASSES)
    tools = COCO(str(path))
    entries = tools.loadAnns(tools.getAnnIds(imgIds=[3]))
    assert [entry["area"] for entry in entries] == [12, 12]
    assert np.array_equal(tools.annToMask(entries[0]).astype(bool), box(1, 0, 5, 3))
    results = tools.loadRes(json.loads(path.read_text())["annotations"])
    assert [results.anns[key]["area"] for key in sorted(results.anns)] == [12, 12, 12]


def test_an_interrupted_run_gives_the_same_document(path: Path, tmp_path: Path) -> None:
    write(tmp_path / "whole.json")
    with PseudoWriter(path, CLASSES, ORIGIN) as writer:
        writer.add(NAMES[1], found(0.9), {"boxes": 1, "empty": 1})
        writer.add(NAMES[0], found(0.3))
    part = path.with_suffix(".jsonl")
    part.write_bytes(part.read_bytes()[:-20])  # torn
    with PseudoWriter(path, CLASSES, ORIGIN) as writer:
        assert writer.done == {NAMES[1]}
        with pytest.raises(ValueError, match="already"):
            writer.add(NAMES[1], found())
        writer.add(NAMES[2], found(0.9, 0.6), {"boxes": 2, "empty": 1})
        writer.add(NAMES[0], found(), {"boxes": 0, "empty": 1})
        writer.finish()
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_torn_head_is_written_again(path: Path, cut: int) -> None:
    PseudoWriter(path, CLASSES, ORIGIN).close()
    part = path.with_suffix(".jsonl")
    whole = part.read_bytes()
    part.write_bytes(whole[:cut])
    PseudoWriter(path, CLASSES, ORIGIN).close()
    assert part.read_bytes() == whole


def test_a_damaged_line_is_named(path: Path) -> None:
    with PseudoWriter(path, CLASSES, ORIGIN) as writer:
        for name in NAMES:
            writer.add(name, found(0.5))
    part = path.with_suffix(".jsonl")
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join([lines[0], lines[1].replace(b"0.5", b"0.6"), *lines[2:]]))
    with pytest.raises(UserError, match="line 2 is damaged: remove the line"):
        PseudoWriter(path, CLASSES, ORIGIN)


def test_other_settings_do_not_continue(path: Path) -> None:
    PseudoWriter(path, CLASSES, ORIGIN).close()
    other = Origin("a teacher", "Apache-2.0", "person . car", {"threshold": 0.4}, "abc")
    with pytest.raises(UserError, match=r"thresholds \{'threshold': 0.3\}, now \{'threshold': 0.4\}"):
        PseudoWriter(path, CLASSES, other)
    with pytest.raises(UserError, match="classes"):
        PseudoWriter(path, CLASSES[:1], ORIGIN)


def test_one_writer_at_a_time(path: Path) -> None:
    with PseudoWriter(path, CLASSES, ORIGIN), pytest.raises(UserError, match="another process"):
        PseudoWriter(path, CLASSES, ORIGIN)


def test_a_finished_document_is_not_overwritten(path: Path) -> None:
    write(path)
    with pytest.raises(UserError, match="is finished"):
        PseudoWriter(path, CLASSES, ORIGIN)


def test_names_need_a_domain(path: Path) -> None:
    with PseudoWriter(path, CLASSES, ORIGIN) as writer, pytest.raises(ValueError, match="domain/name"):
        writer.add("a.png", found())


def test_the_document_has_a_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.json"):
        PseudoWriter(tmp_path / "labels", CLASSES, ORIGIN)


def test_a_missing_document(path: Path) -> None:
    with pytest.raises(UserError, match="predict them first"):
        read_pseudo(path)
    PseudoWriter(path, CLASSES, ORIGIN).close()
    with pytest.raises(UserError, match=r"finish the run that writes pseudo\.jsonl"):
        read_pseudo(path)


def test_damage_is_one_line(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for bad in (whole[:-30], whole.replace(b'"score":0.6', b'"score":0.7'), b"\xff\x00", b"[]", b"{}"):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="is damaged"):
            read_pseudo(path)


def changed(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value | {DIGEST: json_digest(value)}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value["annotations"][0].pop("score"), "annotations.0.score"),
        (lambda value: value["annotations"][0].update(category_id=3), "category 3"),
        (lambda value: value["annotations"][0].update(image_id=9), "image 9"),
        (lambda value: value["annotations"][0]["segmentation"].update(size=[9, 6]), "size"),
        (lambda value: value["categories"].reverse(), "numbered"),
        (lambda value: value.pop("info"), "info"),
    ],
)
def test_content_of_others_is_refused(path: Path, change: Any, words: str) -> None:
    write(path)
    changed(path, change)
    with pytest.raises(UserError, match=words):
        read_pseudo(path)


def test_run_lengths_of_others_are_checked_when_read(path: Path) -> None:
    write(path)
    changed(path, lambda value: value["annotations"][0]["segmentation"].update(counts="zzzzzz"))
    with pytest.raises(UserError, match=r"run lengths of 'city/b/1\.png' are damaged"):
        read_pseudo(path).objects("city/b/1.png")


def test_other_classes_and_names_are_refused(path: Path) -> None:
    labels = write(path)
    assert read_pseudo(path, CLASSES).classes == labels.classes
    with pytest.raises(UserError, match="needed: car, person"):
        read_pseudo(path, ("car", "person"))
    with pytest.raises(UserError, match=r"did you mean 'city/b/1\.png'"):
        labels.objects("city/b/1.jpg")


def test_class_ids() -> None:
    assert class_ids(CLASSES) == {"person": 24, "car": 26}
    assert class_ids(("car", "tree house")) == {"car": 1, "tree house": 2}


def test_instance_ids_are_those_of_cityscapes(path: Path, tmp_path: Path) -> None:
    labels = write(path, ("cityscapes/leftImg8bit/train/aachen/a_1_leftImg8bit.png", "acdc:fog/x/1.v2", "night/1.jpg"))
    files = write_instance_ids(labels, tmp_path / "out")
    assert [str(file.relative_to(tmp_path / "out")) for file in files] == [
        "acdc_fog/x/1.v2_instanceIds.png",
        "cityscapes/gtFine/train/aachen/a_1_gtFine_instanceIds.png",
        "night/1_instanceIds.png",
    ]
    with Image.open(files[-1]) as picture:
        assert picture.mode == "I;16"
        values = np.asarray(picture)
    first, second = (decode(runs) for runs in labels.detections("night/1.jpg").masks)
    assert np.array_equal(values, np.where(first, 24000, np.where(second, 26000, 0)))


def test_instances_of_a_class_are_counted() -> None:
    ids = np.int32([[[0, 1, 2, 3]]])
    objects = Objects(ids, np.array([1, 0, 1]), np.zeros(3, bool))
    assert instance_ids(objects, (24, 26)).tolist() == [[0, 26000, 24000, 26001]]


def test_what_does_not_fit_into_instance_ids(path: Path, tmp_path: Path) -> None:
    labels = write(path)
    labels.classes = tuple(f"class {number}" for number in range(65))
    with pytest.raises(UserError, match="class id 65 does not fit into instanceIds: allowed are 1 to 64"):
        write_instance_ids(labels, tmp_path)
    many = Objects(np.arange(1, 1002, dtype=np.int32).reshape(1, 1, -1), np.zeros(1001, int), np.zeros(1001, bool))
    with pytest.raises(UserError, match="more than 1000"):
        instance_ids(many, (24,))
    with pytest.raises(UserError, match="leads out"):
        label_name("city/../../x.png")


def test_written_without_torch() -> None:
    code = "import sys, segdistill.data.instance_ids, segdistill.data.pseudo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
