"""Contact sheets of the domains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from segdistill.world import COLORS, render

_CAPTION = 14  # pixels


def coloured(label: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 picture of (H, W) trainIds; ignore is black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(COLORS)] = COLORS
    return table[label]


def contact_sheet(
    domains: Sequence[str],
    *,
    split: str = "val",
    count: int = 6,
    size: tuple[int, int] = (96, 192),
    seed: int = 0,
    labels: bool = False,
) -> Image.Image:
    """One captioned row of ``count`` images per domain, with a row of coloured labels below each if ``labels``."""
    h, w = size
    row = _CAPTION + h * (2 if labels else 1)
    sheet = Image.new("RGB", (count * w, len(domains) * row), (255, 255, 255))
    pen = ImageDraw.Draw(sheet)
    for i, domain in enumerate(domains):
        top = i * row
        pen.text((3, top + 1), domain, fill=(0, 0, 0))
        for j in range(count):
            drawn = render(domain, split, j, size=size, seed=seed)
            sheet.paste(Image.fromarray(drawn.image), (j * w, top + _CAPTION))
            if labels:
                sheet.paste(Image.fromarray(coloured(drawn.label)), (j * w, top + _CAPTION + h))
    return sheet
