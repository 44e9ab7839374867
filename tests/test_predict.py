"""``segdistill predict``: every kind of input, files that continue, bad images in one line, memory that is bounded."""

from __future__ import annotations

import copy
import gc
import os
import tracemalloc
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import segdistill
from segdistill.config import UserError
from segdistill.data.archives import BadSample
from segdistill.data.decode import FORMATS
from segdistill.inference.folder import Wanted, predict_to_folder
from segdistill.inference.inputs import IMAGES, find_inputs, output_names, stem_of
from segdistill.inference.result import mark_of


@pytest.fixture(scope="module")
def model(finished):
    return segdistill.load(finished)


def picture(height=32, width=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photos(folder: Path, *names: str) -> Path:
    """Different pictures in PNG files."""
    for seed, name in enumerate(names or ("a.png", "deep/er/b.png", "c.png")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed=seed)).save(path)
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def classes(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image)


def test_a_folder_becomes_class_maps_overlays_confidences_and_comparisons(call, finished, model, tmp_path):
    folder, out = photos(tmp_path / "photos"), tmp_path / "out"
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    status, printed, err = call("predict", finished, folder, "--out", out, "--confidence", "--side-by-side")
    assert status == 0, err
    assert printed == f"{out}: 3 predicted, 0 already finished, 0 skipped\n"
    names = ("a.png", "c.png", "deep/er/b.png")
    assert files(out) == [f"{kind}/{name}" for kind in ("classes", "confidence", "overlay", "side_by_side")
                          for name in names]  # fmt: skip
    for name in names:
        result = model.predict(folder / name)
        assert (classes(out / "classes" / name) == result.classes).all()
        with Image.open(out / "overlay" / name) as image:
            assert (np.asarray(image) == np.asarray(result.overlay())).all()
    with Image.open(out / "side_by_side/a.png") as sheet:
        assert sheet.width > 3 * 64  # image, teacher, student
        pixels = {tuple(color) for color in np.asarray(sheet).reshape(-1, 3)}
    assert set(map(tuple, model.teacher.predict(folder / "a.png").colored().reshape(-1, 3))) <= pixels


def test_what_is_finished_is_kept_and_what_changed_is_made_again(model, finished, tmp_path):
    folder, out = photos(tmp_path / "photos"), tmp_path / "out"
    first = predict_to_folder(model, [folder], out)
    assert (first.made, first.kept) == (3, 0)
    times = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    (out / "overlay/c.png").unlink()  # killed before it was written
    (out / "classes/c.png").unlink()
    Image.fromarray(picture(seed=9)).save(folder / "a.png")  # another image of the same name
    again = predict_to_folder(model, [folder], out)
    assert (again.made, again.kept) == (2, 1)
    changed = {name for name, time in times.items() if (out / name).stat().st_mtime_ns != time}
    assert changed == {f"{kind}/{name}.png" for kind in ("classes", "overlay") for name in "ac"}
    other = predict_to_folder(segdistill.load(finished, role="teacher"), [folder], out)
    assert (other.made, other.kept) == (3, 0)  # by another model
    more = predict_to_folder(segdistill.load(finished, role="teacher"), [folder], out, Wanted(confidence=True))
    assert (more.made, more.kept) == (3, 0)  # another kind was asked for
    assert mark_of(out / "classes/a.png") == mark_of(out / "confidence/a.png")


def test_somebodys_own_files_are_not_replaced(model, tmp_path):
    folder, out = photos(tmp_path / "photos"), tmp_path / "out"
    own = out / "classes/c.png"
    own.parent.mkdir(parents=True)
    Image.fromarray(picture()).save(own)
    before = own.read_bytes()
    with pytest.raises(UserError, match=r"c\.png was not written by predict and is not replaced"):
        predict_to_folder(model, [folder], out)
    assert own.read_bytes() == before


def test_batches_of_equal_size_give_what_single_images_give(model, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    sizes = [(32, 64), (32, 64), (32, 64), (20, 30), (32, 64)]
    for number, size in enumerate(sizes):
        Image.fromarray(picture(*size, seed=number)).save(folder / f"{number}.png")
    seen, spy = [], copy.copy(model)

    def predict_batch(images, names):
        seen.append(len(images))
        return model.predict_batch(images, names)

    spy.predict_batch = predict_batch
    predict_to_folder(spy, [folder], tmp_path / "out", Wanted(batch=2))
    assert seen == [2, 1, 1, 1]
    for number in range(len(sizes)):
        expected = model.predict(folder / f"{number}.png").classes
        assert (classes(tmp_path / f"out/classes/{number}.png") == expected).mean() > 0.999


def odd(mode: str, folder: Path) -> tuple[Path, np.ndarray]:
    """A file of a mode, and the RGB that it shows."""
    image = picture(20, 33)
    path = folder / f"{mode}.png"
    shown = image
    if mode == "palette":
        image = (image[..., 0] // 64).astype(np.uint8)
        written = Image.fromarray(image)
        colors = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
        written.putpalette(colors.tobytes())
        shown = colors[image]
    elif mode == "16bit":
        grey = image[..., 0].astype(np.uint16) << 8 | 77
        written, shown = Image.fromarray(grey), np.repeat(image[..., :1], 3, axis=2)
    elif mode == "alpha":
        written = Image.fromarray(np.dstack([image, image[..., 0]]))
    elif mode == "cmyk":
        path = path.with_suffix(".tif")
        written = Image.fromarray(image).convert("CMYK")
        shown = np.asarray(written.convert("RGB"))
    elif mode == "bilevel":
        written = Image.fromarray(image[..., 0] > 128)
        shown = np.repeat(np.where(image[..., :1] > 128, 255, 0).astype(np.uint8), 3, axis=2)
    else:
        assert mode == "turned"
        exif = Image.Exif()
        exif[0x0112] = 8  # to be turned by 90 degrees counterclockwise
        written, shown = Image.fromarray(image), np.rot90(image)
        written.save(path, exif=exif)
        return path, shown
    written.save(path)
    return path, shown


@pytest.mark.parametrize("mode", ["palette", "16bit", "alpha", "cmyk", "bilevel", "turned"])
def test_every_mode_is_read_as_it_is_shown(model, tmp_path, mode):
    path, shown = odd(mode, tmp_path)
    result = model.predict(path)
    assert (result.image == shown).all()
    assert result.classes.shape == shown.shape[:2]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (257, 3), (63, 65)])
def test_odd_sizes_keep_their_size(model, size):
    assert model.predict(picture(*size)).classes.shape == size
    assert model.seen(window=(32, 64)).predict(picture(*size)).classes.shape == size


def test_zips_patterns_and_files_are_inputs(model, tmp_path):
    folder = photos(tmp_path / "photos")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in files(folder):
            archive.write(folder / name, f"top/{name}")
        archive.writestr("__MACOSX/._a.png", "rubbish")
        archive.write(folder / "a.png", "../../out.png")
    out = tmp_path / "out"
    predict_to_folder(model, [tmp_path / "set.zip"], out / "zip", Wanted(overlay=False))
    made = [f"classes/set/{name}" for name in ("top/a.png", "top/c.png", "top/deep/er/b.png")]
    assert files(out / "zip") == made  # and nothing above the folder
    predict_to_folder(model, [f"{folder}/**/*.png"], out / "glob", Wanted(overlay=False))
    assert files(out / "glob") == ["classes/a.png", "classes/b.png", "classes/c.png"]
    predict_to_folder(model, [folder / "a.png", folder / "c.png"], out / "files", Wanted(overlay=False))
    assert files(out / "files") == ["classes/a.png", "classes/c.png"]
    assert (out / "zip/classes/set/top/a.png").read_bytes() == (out / "files/classes/a.png").read_bytes()


def video(path: Path, count: int = 5) -> list[np.ndarray]:
    """A lossless video and its frames."""
    frames = [picture(seed=seed) for seed in range(count)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return frames


def test_a_video_is_its_frames(model, tmp_path):
    frames = video(tmp_path / "drive.mkv")
    out = tmp_path / "out"
    outcome = predict_to_folder(model, [tmp_path / "drive.mkv"], out, Wanted(overlay=False, every=2))
    assert outcome.made == 3
    assert files(out) == [f"classes/drive/{number:06d}.png" for number in (0, 2, 4)]
    for number in (0, 2, 4):
        expected = model.predict(frames[number])
        assert (classes(out / f"classes/drive/{number:06d}.png") == expected.classes).mean() > 0.999
    assert predict_to_folder(model, [tmp_path / "drive.mkv"], out, Wanted(overlay=False)).kept == 3
    results = model.predict(tmp_path / "drive.mkv")
    assert len(results) == 5
    assert (results[1].image == frames[1]).all()


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    [item] = find_inputs([tmp_path / "a.png"])[0].items()
    with pytest.raises(BadSample, match=r"cannot read .*a.png: .*it is a pipe, where a file is expected"):
        item.load()


def test_bad_images_end_the_command_with_one_line_or_are_skipped(call, finished, model, tmp_path):
    folder = photos(tmp_path / "photos", "a.png", "b.png", "c.png", "d.png")
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:500])
    (folder / "c.png").write_text("no image at all")
    (folder / "broken.mkv").write_bytes(b"no video")
    arguments = ("predict", finished, folder, folder / "broken.mkv", "--out")
    status, _, err = call(*arguments, tmp_path / "strict")
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("segdistill: ")]
    assert len(lines) == 1
    assert "b.png: is damaged" in lines[0]
    assert "--skip-bad goes on without it" in lines[0]
    assert "classes/a.png" in files(tmp_path / "strict")  # what was finished stays
    status, out, err = call(*arguments, tmp_path / "lax", "--skip-bad")
    assert status == 0
    assert "2 predicted, 0 already finished, 3 skipped" in out
    assert [name in err for name in ("b.png", "c.png", "broken.mkv")] == [True] * 3
    assert files(tmp_path / "lax/classes") == ["a.png", "d.png"]
    with pytest.raises(BadSample):
        model.predict(folder / "c.png")


def test_every_suffix_that_is_an_image_can_be_decoded():
    known = Image.registered_extensions()
    assert [suffix for suffix in IMAGES if known[suffix] not in FORMATS] == []


def test_names_of_outputs_are_unique(tmp_path):
    folder = photos(tmp_path, "x/a.png", "y/a.png", "x/b.png", "x/b.bmp")
    names = output_names(find_inputs([folder]))
    assert sorted(names.values()) == ["x/a", "x/b.bmp", "x/b.png", "y/a"]
    with pytest.raises(UserError, match=r"would both be written to a\.png"):
        output_names(find_inputs([folder / "x/a.png", folder / "y/a.png"]))
    assert output_names(find_inputs([folder / "x/a.png", folder / "x/a.png"])) == {str(folder / "x/a.png"): "a"}
    assert stem_of("a.b/c.d.png") == "a.b/c.d"
    assert stem_of("a.b/c.d") == "a.b/c.d"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["none.png"], "no such file, folder or pattern: none.png"),
        (["*.nothing"], r"no such file, folder or pattern: \*.nothing"),
        (["empty"], "empty holds no images"),
        ([], "nothing to predict on"),
    ],
)
def test_inputs_that_are_not_there_are_one_line(tmp_path, monkeypatch, inputs, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_inputs(inputs)


def test_mistakes_are_one_line_before_torch_is_needed(call, finished, tmp_path):
    folder = photos(tmp_path / "photos")
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((tmp_path / "none", folder, "--out", tmp_path / "o"), "no model at"),
        ((finished, tmp_path / "none", "--out", tmp_path / "o"), "no such file, folder or pattern"),
        ((finished, folder, "--out", tmp_path / "file"), "cannot write to"),
        ((finished, folder, "--out", tmp_path / "o", "--role", "x"), "unknown role 'x'"),
    ):
        status, _, err = call("predict", *arguments)
        assert status == 2
        lines = [line for line in err.splitlines() if line.startswith("segdistill: ")]
        assert len(lines) == 1
        assert message in lines[0]


def test_the_model_may_be_below_the_home_folder(call, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(finished.parent))
    _, _, err = call("predict", f"~/{finished.name}", tmp_path / "none", "--out", tmp_path / "o")
    assert "no such file, folder or pattern" in err


def peaks(call):
    """The result of a call, and the largest memory of NumPy's and of torch's allocations in bytes."""
    gc.collect()
    tracemalloc.start()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = call()
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    level = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]" and event.device_type() == torch.autograd.DeviceType.CPU:
            level += event.nbytes()
            peak = max(peak, level)
    return result, python, peak


def test_memory_is_bounded_by_the_pixels_of_an_image(model):
    """2000 x 2500: 15 MB of pixels, 5 of classes, 20 of confidence, 60 as float; the scores alone would be 260 MB.

    Torch's allocations are counted by its profiler, NumPy's by tracemalloc.
    """
    height, width = 2000, 2500
    image = torch.from_numpy(np.tile(picture(200, 250), (10, 10, 1))).permute(2, 0, 1)
    result, python, peak = peaks(lambda: model.predict(image))
    assert result.classes.shape == (height, width)
    scores = 4 * len(model.names) * height * width
    assert python < 60e6
    assert peak < 0.7 * scores
    assert peak > 4 * 3 * height * width / 2  # the profiler does count
