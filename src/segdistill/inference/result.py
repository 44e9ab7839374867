"""What a model says about one image, and how it is written to files. Imports no torch.

Legend: H W pixels. A class map holds indices into ``names``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from segdistill.config import UserError
from segdistill.files import write_atomic
from segdistill.pictures import Colors, Pixels, colorize, contact_sheet, overlay, palette

MARK = "segdistill"
"""Key of the PNG text that says what a file was made from."""


@dataclass(frozen=True)
class Result:
    """The prediction for one image.

    ``classes`` (H, W) uint8: the class of every pixel, an index into ``names``. ``confidence`` (H, W) float32: the
    probability that the model gives that class. ``image`` (H, W, 3) uint8 is what was predicted on.
    """

    classes: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    image: Pixels = field(repr=False)
    name: str = ""  # the file's, where it came from one

    def shares(self) -> dict[str, float]:
        """Share of the pixels of each class that occurs, the largest first."""
        counts = np.bincount(self.classes.ravel(), minlength=len(self.names)) / self.classes.size
        return {self.names[i]: float(counts[i]) for i in np.argsort(-counts, kind="stable") if counts[i]}

    def colored(self) -> Pixels:
        """The class map in its colours, (H, W, 3) uint8."""
        return colorize(self.classes, self.colors)

    def overlay(self, alpha: float = 0.55) -> Image.Image:
        """The class colours laid over the image with the weight ``alpha``."""
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha is a weight between 0 and 1, got {alpha}")
        mixed = np.empty_like(self.image)
        for rows in _bands(len(mixed)):
            mixed[rows] = overlay(self.image[rows], self.classes[rows], self.colors, alpha)
        return Image.fromarray(mixed)

    def save(self, path: str | Path, mark: str = "") -> None:
        """Write the class map as an indexed PNG with the classes' colours, atomically; ``mark`` becomes PNG text."""
        image = Image.fromarray(self.classes)
        image.putpalette(palette(self.colors).tobytes())
        save_png(Path(path), image, mark)

    def save_confidence(self, path: str | Path, mark: str = "") -> None:
        """Write the confidence as a grey PNG, 0 (none) to 255 (certain), atomically."""
        save_png(Path(path), Image.fromarray(self.grey()), mark)

    def grey(self) -> NDArray[np.uint8]:
        """The confidence (H, W), 0 (none) to 255 (certain)."""
        grey = np.empty(self.confidence.shape, np.uint8)
        for rows in _bands(len(grey)):
            grey[rows] = np.rint(self.confidence[rows].clip(0, 1) * 255)
        return grey

    def small(self, size: tuple[int, int]) -> Pixels:
        """The class map in its colours at ``size`` (width, height)."""
        return colorize(np.asarray(Image.fromarray(self.classes).resize(size, Image.Resampling.NEAREST)), self.colors)


def side_by_side(
    image: Pixels, draw: Sequence[Callable[[tuple[int, int]], Pixels]], titles: Sequence[str], longest: int = 1024
) -> Image.Image:
    """The image and what each of ``draw`` gives for a size (width, height) in one row.

    A side of more than ``longest`` pixels is reduced.
    """
    height, width = image.shape[:2]
    factor = min(1.0, longest / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    panels = [fitted(image, size, Image.Resampling.BOX), *(each(size) for each in draw)]
    return Image.fromarray(contact_sheet([panels], list(titles)))


def save_png(path: Path, image: Image.Image, mark: str = "") -> None:
    """Write ``image`` as PNG, atomically, with ``mark`` as text in it."""
    info = PngInfo()
    if mark:
        info.add_text(MARK, mark)
    write_atomic(path, lambda file: image.save(file, format="PNG", pnginfo=info))


def mark_of(path: Path) -> str | None:
    """The mark of a PNG that this package has written, None where there is no such file.

    A :class:`UserError` for any other file: it is somebody's, and is not replaced.
    """
    if not path.exists():
        return None
    try:
        with Image.open(path) as image:
            mark = image.info.get(MARK)
    except (OSError, SyntaxError, ValueError):
        mark = None
    if not mark:
        raise UserError(foreign(path))
    return str(mark)


def foreign(path: Path) -> str:
    """The message for a file that this package has not written."""
    return f"{path} was not written by predict and is not replaced; choose another --out or move the file"


def generated_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """Colours for classes that have none: hues a golden angle apart, in three lightnesses."""
    import colorsys

    colors = []
    for number in range(count):
        hue, light = (0.11 + number * 0.61803398875) % 1, (0.55, 0.38, 0.72)[number % 3]
        red, green, blue = (round(255 * value) for value in colorsys.hls_to_rgb(hue, light, 0.65))
        colors.append((red, green, blue))
    return tuple(colors)


def as_colors(colors: Colors | NDArray[np.integer]) -> tuple[tuple[int, int, int], ...]:
    """Colours as plain numbers."""
    return tuple((int(red), int(green), int(blue)) for red, green, blue in colors)


def _bands(height: int) -> Iterator[slice]:
    """Some rows at a time, so that a large image is never held as float."""
    return (slice(top, top + 256) for top in range(0, height, 256))


def fitted(image: Pixels, size: tuple[int, int], method: Image.Resampling) -> Pixels:
    """``image`` (H, W, 3) resized to ``size`` (width, height)."""
    return (
        image if size == (image.shape[1], image.shape[0]) else np.asarray(Image.fromarray(image).resize(size, method))
    )
