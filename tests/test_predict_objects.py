"""Predictions of models of objects: results in memory, files that continue, one line for what does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from faster_coco_eval import COCO
from PIL import Image

import segdistill
from segdistill.config import UserError
from segdistill.inference.folder import Wanted, predict_to_folder
from segdistill.inference.writers import Held, ObjectWriter
from segdistill.models import prepare
from segdistill.models.instance import detections_of
from segdistill.objects import decode
from test_predict import files, peaks, photos, picture


@pytest.fixture(scope="module")
def finder(finished_objects):
    """A model of objects."""
    return segdistill.load(finished_objects)


def test_a_folder_becomes_objects(call, finished_objects, finder, tmp_path):
    folder, out = photos(tmp_path / "photos"), tmp_path / "out"
    Image.fromarray(picture(37, 21, seed=5)).save(folder / "odd.png")
    result = finder.predict(folder / "a.png")
    score, keep = (float(result.scores[place : place + 2].mean()) for place in (1, 20))  # between two: rounding is free
    options = ("--score", score, "--keep", keep, "--side-by-side")
    status, printed, err = call("predict", finished_objects, folder, "--out", out, *options)
    assert status == 0, err
    assert printed == f"{out}: 4 predicted, 0 already finished, 0 skipped\n"
    names = ("a", "c", "deep/er/b", "odd")
    assert files(out) == sorted(["objects.json", *(f"objects/{name}.json" for name in names), *(
        f"{kind}/{name}.png" for kind in ("ids", "overlay", "side_by_side") for name in names)])  # fmt: skip
    with Image.open(out / "ids/a.png") as image:
        assert image.mode == "I;16"
        assert (np.asarray(image) == result.ids(score)).all()
    with Image.open(out / "overlay/a.png") as image:
        assert (np.asarray(image) == np.asarray(result.overlay(score))).all()
    with Image.open(out / "side_by_side/a.png") as sheet:
        assert sheet.width > 3 * 64
    coco = COCO(str(out / "objects.json"))
    assert [(coco.imgs[n]["file_name"], coco.imgs[n]["height"], coco.imgs[n]["width"]) for n in coco.imgs] == [
        ("a.png", 32, 64), ("c.png", 32, 64), ("deep/er/b.png", 32, 64), ("odd.png", 37, 21)]  # fmt: skip
    assert [each["name"] for each in coco.dataset["categories"]] == list(finder.names)
    found = coco.loadAnns(coco.getAnnIds(imgIds=[1]))
    expected = result.above(keep)
    assert [each["score"] for each in found] == pytest.approx(expected.scores.tolist())
    assert [coco.cats[each["category_id"]]["name"] for each in found] == expected.class_names
    assert len(coco.loadRes(coco.dataset["annotations"]).anns) == len(coco.anns)
    for each, mask in zip(found, expected.masks(), strict=True):
        assert (decode(each["segmentation"]) == mask).all()
        rows, columns = np.nonzero(mask)
        assert each["area"] == mask.sum()
        own = json.loads((out / "objects/a.json").read_text())["objects"][each["number"] - 1]
        assert own["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert own["segmentation"] == each["segmentation"]


def test_objects_that_are_finished_are_kept(finder, tmp_path):
    folder, out = photos(tmp_path / "photos"), tmp_path / "out"
    assert predict_to_folder(finder, [folder], out, Wanted(batch=1)).made == 3
    before = {name: (out / name).read_bytes() for name in files(out)}
    (out / "objects/c.json").unlink()
    (out / "objects.json").unlink()
    again = predict_to_folder(finder, [folder], out)
    assert (again.made, again.kept) == (1, 2)
    assert {name: (out / name).read_bytes() for name in files(out)} == before
    assert predict_to_folder(finder, [folder], out, Wanted(score=0.9)).made == 3  # another threshold
    fewer = predict_to_folder(finder, [folder / "a.png"], out)
    assert (fewer.made, len(json.loads((out / "objects.json").read_text())["images"])) == (1, 1)
    (out / "objects.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"objects\.json was not written by predict and is not replaced"):
        predict_to_folder(finder, [folder], out)


def test_an_image_without_objects_keeps_its_panel(finder, tmp_path):
    writer, result = ObjectWriter(finder, tmp_path, Wanted(side_by_side=True)), finder.predict(picture())
    sizes = []
    for number, each in enumerate((result, result.above(1.0))):
        writer.save("side_by_side", Held(str(number), "a.png", "mark", torch.empty(0)), each, each)
        with Image.open(tmp_path / f"side_by_side/{number}.png") as sheet:
            sizes.append(sheet.size)
    assert sizes[0] == sizes[1]


def test_a_damaged_file_of_objects_is_named(finder, tmp_path):
    folder = photos(tmp_path / "photos")
    predict_to_folder(finder, [folder], tmp_path / "out")
    path = next((tmp_path / "out/objects").rglob("*.json"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{path.name} is damaged; delete it and run the command again"):
        predict_to_folder(finder, [folder], tmp_path / "out")


def test_the_result_holds_objects(finder):
    result = finder.predict(picture(45, 30))
    assert len(result) == len(result.scores) == len(result.class_names) == len(result.run_lengths)
    assert (np.diff(result.scores) <= 0).all()
    masks = result.masks()
    assert masks.shape == (len(result), 45, 30)
    assert (result.mask(2) == masks[2]).all()
    first = np.where(masks.any(axis=0), masks.argmax(axis=0) + 1, 0)  # scores descend
    assert (result.ids(0.0) == first).all()
    assert (result.ids(1.0) == 0).all()
    assert np.asarray(result.overlay(0.0)).shape == (45, 30, 3)
    assert len(result.above(0.0)) == len(result) > len(result.above(1.0)) == 0
    seen = prepare(torch.from_numpy(picture(45, 30)).permute(2, 0, 1)[None], finder.view.resize)
    [expected] = finder.segmenter.predict(seen, (45, 30))
    assert result.scores == pytest.approx(expected.scores)
    assert result.class_names == [finder.names[number] for number in expected.classes]


def test_memory_does_not_grow_with_the_number_of_objects():
    """24 masks of 1024 x 2048 take 200 MB as float; they are enlarged four at a time."""
    rng = torch.Generator().manual_seed(0)
    masks = torch.randn(24, 4, 8, generator=rng)
    scores = torch.rand(24, 3, generator=rng)
    size = (1024, 2048)
    found, python, peak = peaks(lambda: detections_of(scores, masks, size, size, size))
    assert len(found) == 24 * 3
    assert peak < 130e6
    assert python < 40e6
    assert peak > 4 * 2 * 1024 * 2048  # the profiler does count


def test_what_fits_one_kind_of_model_alone_is_one_line(finished, finder, tmp_path):
    folder = photos(tmp_path / "photos")
    for predictor, wanted, message in (
        (finder, Wanted(confidence=True), "confidence is a picture of class maps"),
        (finder, Wanted(score=0.1, keep=0.5), "0 <= keep <= score <= 1, got keep 0.5 and score 0.1"),
        (finder, Wanted(score=1.5), "0 <= keep <= score <= 1"),
        (segdistill.load(finished), Wanted(score=0.5), "score and keep are for models of objects"),
    ):
        with pytest.raises(UserError, match=message):
            predict_to_folder(predictor, [folder], tmp_path / "out", wanted)
    with pytest.raises(UserError, match="windows would cut objects at their borders; use --resize H W"):
        finder.seen(window=(32, 32))
    with pytest.raises(UserError, match="a score lies between 0 and 1, got 2"):
        finder.predict(picture()).above(2.0)
    assert finder.seen(resize=(16, 32)).predict(picture()).masks().shape[1:] == (32, 64)
