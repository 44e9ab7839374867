"""Label encodings, image modes, and what is refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from segdistill.data.archives import BadSample
from segdistill.data.catalog import DATASETS, IGNORE, Encoding
from segdistill.data.decode import read_rgb
from segdistill.data.labels import LabelReader, ranges
from tiny_sets import numbers, picture, png16

IDS = Encoding(ids={0: 1, 1: 0, 7: IGNORE})


def file(image, kind="PNG", **settings):
    out = BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


def of(values, dtype=np.uint8):
    return Image.fromarray(np.array(values, dtype))


def test_numbers_are_looked_up_whatever_form_they_have():
    values = [[0, 1], [7, 1]]
    paletted = of(values)
    paletted.putpalette([255, 0, 0] * 256)
    two = of([[0, 255], [255, 255]]).convert("1")
    for image in (of(values), paletted, of(values, np.uint16), of(values, np.int32)):
        assert LabelReader(IDS)(file(image, "TIFF" if image.mode == "I" else "PNG"), "x").tolist() == [[1, 0], [255, 0]]
    assert LabelReader(IDS)(file(two), "x").tolist() == [[1, 0], [0, 0]]


def test_numbers_beyond_eight_bits_are_read():
    wide = Encoding(ids={700: 3, 65535: IGNORE})
    assert LabelReader(wide)(file(of([[700, 65535]], np.uint16)), "x").tolist() == [[3, 255]]


def test_one_channel_of_a_16_bit_file_is_the_number():
    encoding = DATASETS["synthia"].layouts[1].encoding
    raw, truth = numbers(encoding, 3)
    wide = np.stack([raw, raw[::-1] * 3000, raw + 256], axis=2)
    assert np.array_equal(LabelReader(encoding)(png16(wide), "x"), truth)
    with pytest.raises(BadSample, match=r"x: unknown id 256, 257, 258, ... at 2048 pixels; the table has 0-22"):
        LabelReader(Encoding(ids=encoding.ids, channel=2))(png16(wide), "x")
    with pytest.raises(BadSample, match="has one channel"):
        LabelReader(encoding)(file(of(raw, np.uint8)), "x")


def test_colours_are_looked_up_in_pictures_and_in_palettes():
    encoding = DATASETS["endovis18"].layouts[1].encoding
    raw, truth = numbers(encoding, 0)
    picture = Image.fromarray(raw)
    alpha = picture.copy()
    alpha.putalpha(7)
    for image in (picture, alpha, picture.quantize(64)):
        assert np.array_equal(LabelReader(encoding)(file(image), "x"), truth)
    raw[0, 0] = (1, 2, 3)
    with pytest.raises(BadSample, match=r"y.png: unknown colour \(1, 2, 3\) at 1 pixels; the table has 12 colours"):
        LabelReader(encoding)(file(Image.fromarray(raw)), "y.png")
    with pytest.raises(BadSample, match=r"^y.tif: has floating-point values \(F\)"):
        LabelReader(encoding)(file(Image.new("F", (2, 2)), "TIFF"), "y.tif")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (file(of([[0, 5], [1, 9]])), "x.png: unknown id 5, 9 at 2 pixels; the table has 0-1, 7"),
        (file(Image.new("RGB", (2, 2))), r"is a picture with 3 channels \(RGB\); expected class numbers"),
        (file(Image.new("LA", (2, 2))), "is a picture with 2 channels"),
        (file(Image.new("F", (2, 2)), "TIFF"), "has floating-point values"),
        (file(of([[-1, 70000]], np.int32), "TIFF"), "values beyond 0-65535"),
        (b"", r"is not a readable image \(0 bytes\)"),
        (b"not an image", "is not a readable image"),
        (file(Image.fromarray(picture(0)))[:900], "x.png: is damaged"),
    ],
)
def test_what_is_no_label_is_refused_with_its_name(content, message):
    with pytest.raises(BadSample, match=message) as caught:
        LabelReader(IDS)(content, "x.png")
    assert "\n" not in str(caught.value)


def test_images_of_every_mode_become_rgb():
    wanted = picture(1)
    image = Image.fromarray(wanted)
    grey = np.asarray(image.convert("L"))
    alpha = image.copy()
    alpha.putalpha(9)
    assert np.array_equal(read_rgb(file(image), "x"), wanted)
    assert np.array_equal(read_rgb(file(alpha), "x"), wanted)
    assert np.array_equal(read_rgb(png16(wanted.astype(np.uint16) * 256 + 77), "x"), wanted)
    for name, content in {
        "L": file(image.convert("L")),
        "LA": file(image.convert("LA")),
        "I;16": file(of(grey.astype(np.uint16) * 256 + 200, np.uint16)),
        "I": file(of(grey.astype(np.int32) * 256 + 200, np.int32), "TIFF"),
    }.items():
        assert np.array_equal(read_rgb(content, "x"), np.repeat(grey[..., None], 3, axis=2)), name
    few = image.quantize(16)
    assert np.array_equal(read_rgb(file(few), "x"), np.asarray(few.convert("RGB")))
    assert np.array_equal(read_rgb(file(few, transparency=b"\x00\x80"), "x"), np.asarray(few.convert("RGB")))
    assert read_rgb(file(image.convert("CMYK"), "JPEG"), "x").shape == wanted.shape
    with pytest.raises(BadSample, match="has floating-point values"):
        read_rgb(file(Image.new("F", (2, 2)), "TIFF"), "x")
    with pytest.raises(BadSample, match="is damaged"):
        read_rgb(file(image)[:900], "x")


def test_ranges_are_short():
    assert ranges([255, 0, 1, 2, 5]) == "0-2, 5, 255"
