"""Label maps as files and as colours: overlays, error maps, contact sheets. Does not import torch.

Legend: H W pixels. A label map is (H, W) uint8 class ids with 255 = ignored; a picture is (H, W, 3) uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from segdistill.config import UserError
from segdistill.objects import Objects

Colors = Sequence[Sequence[int]]
Pixels = NDArray[np.uint8]

IGNORE = 255
WRONG = (213, 94, 0)  # vermilion of the Okabe-Ito palette, distinct from grey for all types of colour vision
INK, PAPER = (32, 36, 42), (255, 255, 255)
CELL = (256, 384)
"""Height and width of a picture on a sheet of images that differ in size."""


@dataclass(frozen=True)
class Panel:
    """One picture of a row: its caption, its kind and its file."""

    caption: str
    kind: Literal["image", "label"]
    path: Path


def indexed(label: NDArray[np.integer], colors: Colors) -> Image.Image:
    """``label`` (H, W) as a picture whose palette is ``colors``; 255 is black."""
    if label.ndim != 2:
        raise UserError(f"a label map has the shape (H, W), got {label.shape}")
    ids = np.unique(label)
    if any(i != IGNORE and not 0 <= i < len(colors) for i in ids):
        raise UserError(f"class ids must be below {len(colors)} or {IGNORE} (ignored), got {ids.tolist()}")
    image = Image.fromarray(label.astype(np.uint8)).convert("L")
    image.putpalette(palette(colors).tobytes())
    return image


def load_label(path: Path) -> Pixels:
    """Read the class ids (H, W) of an indexed or grey PNG. Raises :class:`UserError` if it is missing or damaged."""
    with _open(path) as image:
        if image.mode not in ("P", "L"):
            raise UserError(f"{path}: expected an indexed PNG of class ids, got a picture of mode {image.mode}")
        return _pixels(image, path)


def load_image(path: Path) -> Pixels:
    """Read a picture (H, W, 3). Raises :class:`UserError` if it is missing or damaged."""
    with _open(path) as image:
        return _pixels(image, path, "RGB")


def palette(colors: Colors) -> Pixels:
    """Palette (256, 3): the class colours, then black."""
    if len(colors) > IGNORE:
        raise UserError(f"at most {IGNORE} classes fit a label map, got {len(colors)}")
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colors)] = np.asarray(colors, dtype=np.uint8).reshape(-1, 3)
    return table


def colorize(label: NDArray[np.integer], colors: Colors) -> Pixels:
    """``label`` (H, W) in its class colours (H, W, 3); ignored pixels are black."""
    return palette(colors)[label.astype(np.uint8)]


def overlay(image: Pixels, label: NDArray[np.integer], colors: Colors, alpha: float = 0.55) -> Pixels:
    """Class colours blended over ``image`` with weight ``alpha``; ignored pixels show the image."""
    _same_size(image, label)
    mixed = image.astype(np.float32) * (1 - alpha) + colorize(label, colors).astype(np.float32) * alpha
    mixed = np.where((label == IGNORE)[..., None], image, np.rint(mixed))
    return mixed.astype(np.uint8)


def object_picture(image: Pixels, objects: Objects, colors: Colors, alpha: float = 0.6) -> Image.Image:
    """Objects over ``image`` (H, W, 3) in shades of their class colours, outlined in white; crowds are grey."""
    if image.shape[:2] != objects.size:
        raise UserError(f"the pictures differ in size: {image.shape[:2]} and {objects.size} (height, width)")
    count = len(objects.classes)
    shades = 0.75 + 0.5 * ((np.arange(count) * 0.618) % 1)  # neighbours in the list differ
    tints = np.asarray(colors, np.float32)[objects.classes].reshape(count, 3) * shades[:, None]
    tints = np.where(objects.crowd[:, None], 128.0, np.clip(tints + 20, 0, 255))
    mixed = image.astype(np.float32)
    for ids in objects.ids:
        inside = ids > 0
        mixed[inside] = mixed[inside] * (1 - alpha) + tints[ids[inside] - 1] * alpha
        outline = np.zeros(ids.shape, bool)
        outline[:, 1:] |= ids[:, 1:] != ids[:, :-1]
        outline[1:] |= ids[1:] != ids[:-1]
        mixed[outline & inside] = 255
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def box_picture(
    image: Pixels,
    boxes: NDArray[np.float64],
    classes: NDArray[np.int64],
    colors: Colors,
    *,
    crowd: NDArray[np.bool_] | None = None,
) -> Image.Image:
    """Boxes (N, 4) on ``image`` (H, W, 3) in their class colours on a dark line; crowds are grey. First ones on top."""
    picture = Image.fromarray(image).convert("RGB")
    draw, width = ImageDraw.Draw(picture), max(1, round(min(image.shape[:2]) / 150))
    table = np.clip(np.asarray(colors, np.int64) + 20, 0, 255)
    for number in reversed(range(len(boxes))):
        left, top, right, bottom = (round(float(side)) for side in boxes[number])
        grey = crowd is not None and crowd[number]
        color = (128, 128, 128) if grey else tuple(int(part) for part in table[classes[number]])
        place = (left, top, max(left, right - 1), max(top, bottom - 1))  # the last pixels inside
        draw.rectangle(place, outline=INK, width=width + 1)
        draw.rectangle(place, outline=color, width=width)
    return picture


def error_map(prediction: NDArray[np.integer], truth: NDArray[np.integer], image: Pixels) -> Pixels:
    """Wrong pixels in vermilion, correct ones in the pale grey ``image``, ignored ones dark."""
    _same_size(prediction, truth)
    _same_size(image, truth)
    grey = 120 + image.astype(np.float32).mean(axis=2) * 0.5
    result = np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
    result[(prediction != truth) & (truth != IGNORE)] = WRONG
    result[truth == IGNORE] = (60, 60, 60)
    return result


def pixels_right(prediction: NDArray[np.integer], truth: NDArray[np.integer]) -> float | None:
    """The share of labelled pixels with the correct class; None if all pixels are ignored."""
    _same_size(prediction, truth)
    counted = truth != IGNORE
    return float((prediction == truth)[counted].mean()) if counted.any() else None


@dataclass(frozen=True)
class Views:
    """How a page shows one panel: pictures by name (of several, one is visible at a time), and a note."""

    pictures: dict[str, Image.Image]
    note: str = ""


def scene_views(panels: Sequence[Panel], colors: Colors) -> list[tuple[Panel, Views]]:
    """A scene's image and ground truth (the first two panels), and each prediction as classes and as errors.

    A prediction of another size comes from a run with larger or smaller images and is compared with that run's own.
    """
    if not panels:
        return []
    first = load_image(panels[0].path), load_label(panels[1].path)
    found = [(panels[0], Views({"classes": Image.fromarray(first[0])}))]
    for panel in panels[1:]:
        (image, truth), notes = first, []
        label = truth if panel is panels[1] else load_label(panel.path)
        if label.shape != truth.shape:
            own, notes = panel.path.parents[1], [f"{label.shape[0]} x {label.shape[1]} pixels"]
            image, truth = load_image(own / "image" / panel.path.name), load_label(own / "truth" / panel.path.name)
        if label.shape != truth.shape or label.shape != image.shape[:2]:
            raise UserError(
                f"{panel.path}: its size {label.shape} differs from its ground truth's {truth.shape} or its image's "
                f"{image.shape[:2]}; run the command again"
            )
        classes = indexed(label, colors)
        if panel is panels[1]:
            found.append((panel, Views({"classes": classes})))
            continue
        errors = Image.fromarray(error_map(label, truth, image)).quantize(48, dither=Image.Dither.NONE)
        right = pixels_right(label, truth)
        notes = notes if right is None else [f"{100 * right:.0f} % correct", *notes]
        found.append((panel, Views({"classes": classes, "errors": errors}, ", ".join(notes))))
    return found


def object_views(panels: Sequence[Panel], colors: Colors) -> list[tuple[Panel, Views]]:
    """A scene's image, and the saved pictures of its objects: ground truth and each prediction."""
    del colors
    return [(panel, Views({"objects": Image.fromarray(load_image(panel.path))})) for panel in panels]


def cell(image: Pixels) -> Pixels:
    """The picture, fitted into :data:`CELL`."""
    return np.asarray(ImageOps.pad(Image.fromarray(image), CELL[::-1], color=PAPER))


def contact_sheet(
    rows: Sequence[Sequence[Pixels | None]], captions: Sequence[str], names: Sequence[str] = (), gap: int = 6
) -> Pixels:
    """Rows of pictures of the same size as one picture: ``captions`` above the columns, ``names`` left of the rows.

    ``None`` leaves a cell empty. Raises :class:`UserError` if the rows do not match the captions or each other.
    """
    sizes = {picture.shape for row in rows for picture in row if picture is not None}
    if len(sizes) != 1:
        raise UserError(f"a contact sheet needs pictures of one size, got {sorted(sizes) or 'none'}")
    if any(len(row) != len(captions) for row in rows) or (names and len(names) != len(rows)):
        raise UserError(f"a contact sheet needs {len(captions)} pictures in each row and one name per row or none")
    height, width, _ = sizes.pop()
    font = ImageFont.load_default(size=max(11, min(22, width // 15)))
    line = round(font.getbbox("Ag")[3]) + 2 * gap
    left = max((int(font.getlength(name)) for name in names), default=-gap) + gap
    left += gap if names else 0
    size = (left + len(captions) * (width + gap) + gap, line + len(rows) * (height + gap) + gap)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        text = _fit(caption, font, width)
        draw.text((left + gap + column * (width + gap), gap // 2 + 1), text, fill=INK, font=font)
    for r, row in enumerate(rows):
        top = line + r * (height + gap)
        if names:
            draw.text((gap, top + height // 2), names[r], fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(row):
            if picture is not None:
                sheet.paste(Image.fromarray(picture), (left + gap + column * (width + gap), top))
    return np.asarray(sheet)


def _open(path: Path) -> Image.Image:
    """The opened file, or a :class:`UserError`."""
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture") from None
    except Exception:  # noqa: BLE001  Pillow raises many types for a damaged file
        raise UserError(f"{path}: the picture is damaged; run the command again") from None


def _pixels(image: Image.Image, path: Path, mode: str | None = None) -> Pixels:
    """The decoded pixels, as they are or in ``mode``; a truncated file is a :class:`UserError`."""
    try:
        return np.array(image if mode is None else image.convert(mode), dtype=np.uint8)
    except Exception:  # noqa: BLE001
        raise UserError(f"{path}: the picture is damaged; run the command again") from None


def _same_size(one: NDArray[np.generic], other: NDArray[np.generic]) -> None:
    if one.shape[:2] != other.shape[:2]:
        raise UserError(f"the pictures differ in size: {one.shape[:2]} and {other.shape[:2]} (height, width)")


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """``text``, shortened with an ellipsis until it is at most ``width`` pixels wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
