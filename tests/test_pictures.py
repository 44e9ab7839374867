"""Label maps as files and colours."""

import numpy as np
import pytest
from PIL import Image

from segdistill.config import UserError
from segdistill.pictures import (
    colorize,
    contact_sheet,
    error_map,
    indexed,
    load_image,
    load_label,
    overlay,
    pixels_right,
)

COLORS = [(10, 20, 30), (200, 0, 0), (0, 0, 250)]
LABEL = np.array([[0, 1, 2], [2, 255, 0]], dtype=np.uint8)


def test_a_label_comes_back_from_its_file_and_shows_its_colours(tmp_path):
    path = tmp_path / "label.png"
    indexed(LABEL, COLORS).save(path)
    assert (load_label(path) == LABEL).all()
    shown = load_image(path)
    assert (shown == colorize(LABEL, COLORS)).all()
    assert shown[0, 1].tolist() == [200, 0, 0]
    assert shown[1, 1].tolist() == [0, 0, 0]


def test_every_class_number_survives(tmp_path):
    label = np.arange(256, dtype=np.int64).reshape(16, 16)
    indexed(label, [(i, 0, 255 - i) for i in range(255)]).save(tmp_path / "all.png")
    assert (load_label(tmp_path / "all.png") == label).all()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.full((2, 2), 3), "below 3 or 255"),
        (np.full((2, 2), -1), "below 3"),
        (np.zeros((1, 2, 2), int), r"shape \(H, W\)"),
    ],
)
def test_a_label_that_does_not_fit_its_classes_is_refused(label, message):
    with pytest.raises(UserError, match=message):
        indexed(label, COLORS)


def test_wrong_missing_and_damaged_files_are_one_line(tmp_path):
    path = tmp_path / "x.png"
    for load in (load_label, load_image):
        with pytest.raises(UserError, match=r"x\.png: no such picture"):
            load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged"):
        load_image(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(path)
    with pytest.raises(UserError, match="expected an indexed PNG of class ids, got a picture of mode RGB"):
        load_label(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="damaged"):
        load_image(path)
    indexed(np.random.default_rng(0).integers(0, 3, (64, 64)), COLORS).save(path)
    path.write_bytes(path.read_bytes()[:1200])
    with pytest.raises(UserError, match="damaged"):
        load_label(path)


def test_overlay_mixes_by_alpha_and_leaves_ignored_pixels():
    image = np.full((2, 3, 3), 100, dtype=np.uint8)
    mixed = overlay(image, LABEL, COLORS, alpha=0.25)
    assert mixed[0, 1].tolist() == [125, 75, 75]  # 100 * 3/4 + (200, 0, 0) / 4
    assert mixed[1, 1].tolist() == [100, 100, 100]
    assert (overlay(image, LABEL, COLORS, alpha=0.0) == image).all()


def test_error_map_marks_wrong_pixels_only():
    prediction = np.array([[0, 2, 2], [2, 1, 1]], dtype=np.uint8)
    image = np.full((2, 3, 3), 40, dtype=np.uint8)
    shown = error_map(prediction, LABEL, image)
    wrong = (shown == (213, 94, 0)).all(axis=2)
    assert wrong.tolist() == [[False, True, False], [False, False, True]]
    assert shown[1, 1].tolist() == [60, 60, 60]
    assert shown[0, 0].tolist() == [140, 140, 140]
    assert pixels_right(prediction, LABEL) == pytest.approx(3 / 5)
    assert pixels_right(prediction, np.full_like(LABEL, 255)) is None


def test_sizes_that_differ_are_refused():
    with pytest.raises(UserError, match="differ in size"):
        error_map(LABEL, LABEL[:, :2], np.zeros((2, 3, 3), np.uint8))


def test_a_contact_sheet_holds_every_picture_in_its_place():
    red, blue = (np.full((20, 40, 3), c, dtype=np.uint8) for c in ((250, 0, 0), (0, 0, 250)))
    sheet = contact_sheet([[red, blue], [None, red]], ["one", "a caption that is far too long"], names=["x", "y"])
    reds, blues = ((sheet == c).all(axis=2) for c in ((250, 0, 0), (0, 0, 250)))
    assert (reds.sum(), blues.sum()) == (2 * 800, 800)
    y, x = np.argwhere(reds)[0]
    assert blues[y, x + 46]
    assert reds[y + 26, x + 46]
    assert sheet[:y].min() < 128  # the captions are written above


@pytest.mark.parametrize(
    ("rows", "names"),
    [([], []), ([[np.zeros((2, 2, 3), np.uint8)] * 3], []), ([[np.zeros((2, 2, 3), np.uint8)] * 2], ["a", "b"]),
     ([[np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)]], [])],
)  # fmt: skip
def test_rows_that_do_not_fit_are_refused(rows, names):
    with pytest.raises(UserError, match="contact sheet"):
        contact_sheet(rows, ["a", "b"], names=names)
