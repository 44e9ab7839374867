"""Files as they are stored: depths and photometry of label files, lossy compression, EXIF orientation, size."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from odd_files import grey_png, grey_tiff
from segdistill.data.archives import BadSample, Folder
from segdistill.data.catalog import Encoding
from segdistill.data.decode import open_picture, read_rgb, stored_size, turn, upright_size
from segdistill.data.index import Item
from segdistill.data.labels import LabelReader, read_pair
from tiny_sets import picture

IDS = Encoding(ids={number: number for number in range(16)} | {255: 255})
COLOURS = Encoding(colors={(250, 0, 0): 0, (0, 250, 0): 1, (0, 0, 0): 255})


def file(image, kind="PNG", **settings):
    out = BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_label_numbers_are_those_of_the_file_at_every_depth(bits):
    values = np.random.default_rng(bits).integers(0, min(2**bits, 16), (5, 7))
    read = LabelReader(IDS)
    assert np.array_equal(read(grey_png(values, bits), "x"), values)
    for photometric in (0, 1):
        content = grey_tiff(values, bits, photometric)
        assert np.array_equal(read(content, "x"), values), photometric
        shown = np.asarray(Image.open(BytesIO(content)).convert("RGB"))  # as a picture, white stays white
        assert np.array_equal(read_rgb(content, "x"), shown)


def test_a_negative_number_of_eight_bits_is_refused():
    values = np.array([[0, 1, 255]])
    assert LabelReader(IDS)(grey_tiff(values, 8, 1), "x").tolist() == [[0, 1, 255]]
    with pytest.raises(BadSample, match="x: has values beyond 0-65535"):
        LabelReader(IDS)(grey_tiff(values, 8, 1, tag_339=2), "x")


LOSSY = {
    "JPEG": lambda image: file(image, "JPEG", quality=100),
    "WebP": lambda image: file(image, "WEBP", quality=100),
    "JPEG 2000": lambda image: file(image, "JPEG2000"),
    "TIFF": lambda image: file(image, "TIFF", compression="jpeg"),
}


@pytest.mark.parametrize("kind", LOSSY)
@pytest.mark.parametrize("encoding", [IDS, COLOURS], ids=["numbers", "colours"])
def test_labels_that_were_compressed_with_loss_are_refused(kind, encoding):
    image = Image.new("L" if encoding is IDS else "RGB", (16, 16))
    with pytest.raises(BadSample, match=r"x: has lossy compression \((JPEG|WebP|JPEG 2000)\).*write labels as PNG"):
        LabelReader(encoding)(LOSSY[kind](image), "x")


def test_lossless_files_are_labels_whatever_their_format():
    values = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 0]]] * 3, np.uint8)
    image = Image.fromarray(values)
    contents = [file(image, "WEBP", lossless=True), file(image, "WEBP", lossless=True, exif=b"Exif\0\0MM"),
                file(image, "BMP"), file(image, "TIFF", compression="tiff_lzw"), file(image)]  # fmt: skip
    for content in contents:
        assert LabelReader(COLOURS)(content, "x").tolist() == [[0, 1, 255]] * 3


def test_a_lossy_webp_with_more_than_pixels_is_recognised():
    image = Image.new("RGB", (16, 16))
    exif = Image.Exif()
    exif[274] = 1
    frames = file(image, "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")])
    one = frames[: frames.rindex(b"ANMF")]
    one = one[:4] + (len(one) - 8).to_bytes(4, "little") + one[8:]
    for content in (file(image, "WEBP", exif=exif.tobytes()), one):
        assert content[12:16] == b"VP8X"
        assert open_picture(content, "x").lossy == "WebP"


def oriented(array, orientation, kind="PNG"):
    exif = Image.Exif()
    exif[274] = orientation
    return file(Image.fromarray(array), kind, exif=exif.tobytes())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_orientation_is_read_and_undone_as_pillow_does_it(orientation, kind):
    array = picture(orientation, (4, 6))
    content = oriented(array, orientation, kind)
    read = open_picture(content, "x")
    assert read.orientation == orientation
    if kind != "WEBP":
        assert np.array_equal(read.rgb("x"), array)  # as it is stored
    wanted = ImageOps.exif_transpose(Image.open(BytesIO(content))).convert("RGB")
    assert np.array_equal(turn(read.rgb("x"), orientation), np.asarray(wanted))


@pytest.mark.parametrize("orientation", [*range(1, 9), 9, 200])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_sizes_come_from_the_header(orientation, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    content = oriented(picture(1, (4, 6)), orientation, kind)
    (tmp_path / "a").write_bytes(content)
    read = open_picture(content, "x")
    assert stored_size(content, "x") == (4, 6)
    assert upright_size(tmp_path / "a") == turn(read.rgb("x"), read.orientation).shape[:2]


def test_a_size_of_what_is_no_image_or_too_large_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"GIF89a")
    with pytest.raises(BadSample, match=r"a: is not a readable image \(6 bytes\)"):
        upright_size(tmp_path / "a")
    monkeypatch.setattr("segdistill.data.decode.PIXELS", 20)
    with pytest.raises(BadSample, match="x: has 6 x 4 pixels"):
        stored_size(oriented(picture(1, (4, 6)), 6, "TIFF"), "x")


def pair(tmp_path, image, label, **settings):
    (tmp_path / "a.png").write_bytes(image)
    (tmp_path / "a_label.png").write_bytes(label)
    return read_pair(Folder(tmp_path), Item("a.png", "a_label.png", ()), LabelReader(IDS), upright=True, **settings)


def marked(height, width):
    """An image whose red channel is its label times ten: a turn of one shows in the other."""
    label = np.random.default_rng(0).integers(0, 16, (height, width)).astype(np.uint8)
    return np.stack([label * 10] * 3, axis=2), label


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_label_are_turned_alike_where_both_say_so(tmp_path, orientation):
    image, label = marked(4, 6)
    read = pair(tmp_path, oriented(image, orientation), oriented(label, orientation))
    assert np.array_equal(read.label, turn(label, orientation))
    assert np.array_equal(read.image[..., 0], read.label * 10)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_the_label_s_size_says_whether_it_belongs_to_the_turned_or_to_the_stored_image(tmp_path, orientation):
    image, label = marked(4, 6)
    for drawn in (label, turn(label, orientation)):
        read = pair(tmp_path, oriented(image, orientation), file(Image.fromarray(drawn)))
        assert read.image.shape == (6, 4, 3)
        assert np.array_equal(read.image[..., 0], read.label * 10)


@pytest.mark.parametrize(
    ("shape", "of_image", "of_label"), [((4, 6), 3, 1), ((4, 4), 6, 1), ((4, 6), 1, 3), ((4, 6), 6, 8)]
)
def test_an_orientation_that_only_one_of_them_has_is_refused(tmp_path, shape, of_image, of_label):
    image, label = marked(*shape)
    with pytest.raises(BadSample, match=f"a_label.png and its image have different EXIF.*{of_label} and {of_image}"):
        pair(tmp_path, oriented(image, of_image), oriented(label, of_label))


def test_an_official_set_is_read_as_it_is_stored_and_a_size_that_differs_names_exif(tmp_path):
    image, label = marked(4, 6)
    store, item = Folder(tmp_path), Item("a.png", "a_label.png", ())
    pair(tmp_path, oriented(image, 6), oriented(label, 6))
    assert np.array_equal(read_pair(store, item, LabelReader(IDS)).image, image)
    (tmp_path / "a_label.png").write_bytes(file(Image.fromarray(turn(label, 6))))
    with pytest.raises(BadSample, match=r"different sizes: 6 x 4 and 4 x 6.*EXIF orientation is 6"):
        read_pair(store, item, LabelReader(IDS))


def test_damaged_exif_data_is_no_orientation():
    image = picture(1, (4, 6))
    content = file(Image.fromarray(image), exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\x99" * 30)
    assert open_picture(content, "x").orientation == 1
    assert np.array_equal(read_rgb(content, "x"), image)


def test_an_image_beyond_pillows_limit_is_read_and_one_beyond_ours_is_refused(monkeypatch):
    image = picture(1)
    content = file(Image.fromarray(image))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(BytesIO(content))
    assert np.array_equal(read_rgb(content, "x"), image)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr("segdistill.data.decode.PIXELS", 2000)
    with pytest.raises(BadSample, match=r"x: has 64 x 32 pixels; at most 2,000 can be read"):
        read_rgb(content, "x")


def test_a_format_that_runs_programs_is_no_image():
    with pytest.raises(BadSample, match="x: is not a readable image"):
        read_rgb(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "x")


SEVERAL = {
    "TIFF": {"save_all": True}, "GIF": {"save_all": True}, "PNG": {"save_all": True},
    "WEBP": {"save_all": True, "lossless": True}, "AVIF": {"save_all": True},
}  # fmt: skip


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_file_of_several_images_is_refused_and_says_how_many(kind):
    pages = [Image.new("RGB", (16, 16), (number * 90, 0, 0)) for number in range(3)]
    content = file(pages[0], kind, append_images=pages[1:], **SEVERAL[kind])
    with pytest.raises(BadSample, match="x: contains 3 images; expected one image per file"):
        open_picture(content, "x")


def test_the_smaller_copies_of_a_pyramid_and_a_cameras_preview_are_no_images_of_their_own():
    large, small = Image.new("L", (16, 16), 7), Image.new("L", (8, 8), 9)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    pyramid = file(large, "TIFF", save_all=True, append_images=[small])
    assert open_picture(pyramid, "x").numbers().tolist() == np.full((16, 16), 7).tolist()
    camera = file(large.convert("RGB"), "MPO", save_all=True, append_images=[small.convert("RGB")])
    assert open_picture(camera, "x").image.size == (16, 16)
