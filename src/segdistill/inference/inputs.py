"""Images to predict on: files, folders, globs, archives and videos, one after the other. Imports no torch.

Every image is (H, W, 3) uint8 RGB, turned as its EXIF orientation says. Nothing is unpacked, and one image or frame is
held at a time.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from segdistill.config import UserError, expanded
from segdistill.data.archives import SUFFIXES, BadSample, Folder, ImageFile, Store, is_archive, open_store
from segdistill.data.decode import UNREADABLE, UPRIGHT, Picture, open_picture, turn

Pixels = NDArray[np.uint8]

IMAGES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pnm", ".jp2",
          ".gif", ".avif")  # fmt: skip
VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


@dataclass(frozen=True)
class Loaded:
    """One image: the hash of its content, and its pixels (H, W, 3), decoded by the call."""

    digest: str
    pixels: Callable[[], Pixels]  # BadSample where they cannot be decoded


@dataclass(frozen=True)
class Item:
    """One image that is still to be read: ``name`` is a relative path with the suffix of the file."""

    name: str
    where: str  # for messages
    load: Callable[[], Loaded]  # BadSample where it cannot be read


@dataclass(frozen=True)
class Input:
    """What one word of the command names: images of a folder, file or archive, or the frames of a video.

    ``count`` is None for a video, whose frames are counted when they are decoded; ``files`` are those of images.
    """

    items: Callable[[], Iterator[Item]]
    count: int | None
    single: bool = False  # one image file
    files: Callable[[], tuple[ImageFile, ...]] = tuple


def find_inputs(words: Sequence[str | Path], *, every: int = 1) -> list[Input]:
    """The inputs that ``words`` name; a :class:`UserError` for one that names nothing.

    A word is a file (image, archive or video), a folder, which is searched through with all folders below it, or a
    pattern with ``*``, ``?``, ``[...]`` or ``**``. Of videos every ``every``-th frame is taken.
    """
    if not words:
        raise UserError("nothing to predict on: give images, folders, patterns, archives or videos")
    inputs: list[Input] = []
    for word in map(str, words):
        path = expanded(word)
        found = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
        if not found:
            raise UserError(f"no such file, folder or pattern: {word}")
        folders = {each for each in found if each.is_dir()}
        inputs += [_input(each, every) for each in found if not folders.intersection(each.parents)]
    return inputs


def read_file(path: Path) -> Loaded:
    """The image file ``path``; :class:`BadSample` where it cannot be read."""
    return _loaded(Folder(path.parent).read(path.name), str(path))


def decode(content: bytes, name: str) -> Pixels:
    """The image file ``content``, upright; see :meth:`segdistill.data.decode.Picture.rgb` for modes and depths."""
    picture = open_picture(content, name)
    return turn(picture.rgb(name), picture.orientation)


def upright(image: Image.Image) -> Pixels:
    """A Pillow image as (H, W, 3) uint8 RGB, turned as its EXIF orientation says."""
    try:
        turned = ImageOps.exif_transpose(image)
    except UNREADABLE:  # damaged EXIF says nothing
        turned = image
    return Picture(turned, UPRIGHT, 8, inverted=False, signed=False, lossy="", low=None).rgb("the image")


def output_names(inputs: Sequence[Input]) -> dict[str, str]:
    """For every image the name of its output, a relative path without suffix.

    Two images of one folder that differ in their suffix alone keep it. A :class:`UserError` names two images that
    would be written to one file. Frames of videos are named by :func:`frame_name` as they come.
    """
    images = list({item.where: item for each in inputs if each.count is not None for item in each.items()}.values())
    stems = Counter(stem_of(item.name) for item in images)
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for item in images:
        stem = stem_of(item.name)
        name = item.name if stems[stem] > 1 else stem
        if (other := taken.setdefault(name, item.where)) != item.where:
            raise UserError(
                f"{other} and {item.where} would both be written to {name}.png; give the folder above them, or two "
                "commands with an --out of their own"
            )
        names[item.where] = name
    return names


def items_of(inputs: Sequence[Input], bad: list[str] | None) -> Iterator[Item]:
    """All images; a video that breaks off counts as one image that cannot be read, see :func:`reject`."""
    for each in inputs:
        try:
            yield from each.items()
        except BadSample as error:
            reject(error, bad)


def reject(error: BadSample, bad: list[str] | None) -> None:
    """Note in ``bad`` that an image cannot be read; None: stop there."""
    if bad is None:
        raise BadSample(f"{error}; --skip-bad goes on without it") from None
    bad.append(str(error))


def stem_of(name: str) -> str:
    """A relative path without the suffix of its file."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in (*IMAGES, *VIDEOS) else str(path)


def frame_name(video: Path, number: int) -> str:
    """The relative path of a video's frame, counted from 0."""
    return f"{video.stem}/{number:06d}.png"


def _input(path: Path, every: int) -> Input:
    if path.is_dir():
        return _stored(path, open_store(path), "")
    if path.suffix.lower() in VIDEOS:
        _import_av()
        return Input(partial(_frames, path, every), None)
    if is_archive(path):
        return _stored(path, open_store(path), path.name)
    files = partial(_files, Folder(path.parent), [path.name])
    return Input(lambda: iter([Item(path.name, str(path), partial(read_file, path))]), 1, True, files)


def _stored(path: Path, store: Store, inside: str) -> Input:
    """The images of a folder or an archive."""
    names = [name for name in store.names() if PurePosixPath(name).suffix.lower() in IMAGES]
    if not names:
        raise UserError(f"{path} holds no images; they are known by their suffix: {' '.join(IMAGES)}")
    base = inside[: -len(next(end for end in SUFFIXES if inside.lower().endswith(end)))] if inside else ""
    where = f"{path}: " if inside else f"{path}/"

    def items() -> Iterator[Item]:
        for name in names:
            yield Item(f"{base}/{name}" if base else name, where + name, partial(_read, store, name, where))

    return Input(items, len(names), files=partial(_files, store, names))


def _files(store: Store, names: Sequence[str]) -> tuple[ImageFile, ...]:
    place = os.path.realpath(store.where)
    return tuple(ImageFile("", os.path.normpath(f"{place}/{name}"), name, store) for name in names)


def _read(store: Store, name: str, where: str) -> Loaded:
    return _loaded(store.read(name), where + name)


def _loaded(content: bytes, name: str) -> Loaded:
    return Loaded(hashlib.sha256(content).hexdigest(), partial(decode, content, name))


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise UserError("videos are read with PyAV: install segdistill[video], or give the frames as images") from None
    return av


def _frames(path: Path, every: int) -> Iterator[Item]:
    """Every ``every``-th frame, upright, decoded when it is its turn."""
    av = _import_av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BadSample(f"{path} has no video stream")
            for number, frame in enumerate(container.decode(video=0)):
                if number % every:
                    continue
                turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                pixels = np.ascontiguousarray(turned)
                loaded = Loaded(hashlib.sha256(pixels.tobytes()).hexdigest(), lambda pixels=pixels: pixels)
                yield Item(frame_name(path, number), f"{path}, frame {number}", lambda loaded=loaded: loaded)
    except (av.FFmpegError, OSError) as error:
        raise BadSample(f"{path} is damaged or not a readable video: {error.strerror or error}") from None
