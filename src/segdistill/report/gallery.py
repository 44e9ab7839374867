"""The page's rows of pictures: image, truth and every model's answer, as data inside the page."""

from __future__ import annotations

import base64
import io
from html import escape as e
from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.config import UserError
from segdistill.pictures import Panel, Pixels, error_map, load_image, load_label, palette, pixels_right
from segdistill.report.charts import role_of
from segdistill.report.compare import Comparison

LARGEST = 640  # pixels of width that are put into the page; larger pictures are reduced
FEW = 8  # pictures of a scene that are shown large


def gallery(comparison: Comparison) -> str:
    """Every domain's kept scenes; empty where no run kept pictures."""
    domains = [domain for domain in comparison.domains if comparison.picture_indices(domain)]
    return "".join(_domain(comparison, domain) for domain in domains)


def class_legend(comparison: Comparison) -> str:
    """Which colour is which class."""
    chips = (
        '<li><i style="background:#{:02x}{:02x}{:02x}"></i>{}</li>'.format(*color, e(name))
        for name, color in zip(comparison.classes, comparison.colors, strict=True)
    )
    return f'<ul class="legend chips">{"".join(chips)}</ul>'


def _domain(comparison: Comparison, domain: str) -> str:
    role = role_of(comparison, domain)
    scenes = (_scene(comparison, domain, index) for index in comparison.picture_indices(domain))
    return (
        f'<article class="domain"><h3>{e(domain)} <span class="role {role}">{role}</span></h3>'
        f"{''.join(scenes)}</article>"
    )


def _scene(comparison: Comparison, domain: str, index: int) -> str:
    """One scene: the photograph, its truth and the models' answers, each with its share of right pixels."""
    panels = comparison.panels(domain, index)
    image, truth = load_image(panels[0].path), load_label(panels[1].path)
    _same_size(panels[0].path, image, panels[1].path, truth)
    where = f"{domain}, scene {index}"
    figures = [
        _figure(panels[0].caption, "", _img(_photo(image), f"Image: {where}", "photo")),
        _figure(panels[1].caption, "", _img(_label(truth, comparison), f"Truth: {where}", "label")),
    ]
    figures += [_answer(panel, comparison, where, image, truth) for panel in panels[2:]]
    kind = "scene dense" if len(figures) > FEW else "scene"
    return f'<div class="{kind}" style="--w:{min(image.shape[1], LARGEST)}px">{"".join(figures)}</div>'


def _answer(panel: Panel, comparison: Comparison, where: str, image: Pixels, truth: Pixels) -> str:
    """A model's label map and its errors, of which the page shows one at a time."""
    label = load_label(panel.path)
    _same_size(panel.path, label, panel.path.parent, truth)
    right = pixels_right(label, truth)
    note = "" if right is None else f"{100 * right:.0f} % right"
    pictures = _img(_label(label, comparison), f"{panel.caption}: {where}", "label view-classes")
    errors = Image.fromarray(error_map(label, truth, image)).quantize(48, dither=Image.Dither.NONE)
    pictures += _img(
        _reduce(errors, Image.Resampling.NEAREST), f"Errors of {panel.caption}: {where}", "label view-errors"
    )
    return _figure(panel.caption, note, pictures)


def _figure(caption: str, note: str, pictures: str) -> str:
    return f"<figure>{pictures}<figcaption><b>{e(caption)}</b><span>{note}</span></figcaption></figure>"


def _photo(image: Pixels) -> Image.Image:
    return _reduce(Image.fromarray(image), Image.Resampling.LANCZOS)


def _label(label: Pixels, comparison: Comparison) -> Image.Image:
    """The ids with the class colours as their palette."""
    picture = Image.fromarray(label).convert("L")
    picture.putpalette(palette(comparison.colors).tobytes())
    return _reduce(picture, Image.Resampling.NEAREST)


def _reduce(picture: Image.Image, how: Image.Resampling) -> Image.Image:
    if picture.width <= LARGEST:
        return picture
    return picture.resize((LARGEST, max(1, round(picture.height * LARGEST / picture.width))), how)


def _img(picture: Image.Image, alt: str, kind: str) -> str:
    """An ``<img>`` with its bytes inside; large photographs as JPEG, all else as PNG."""
    jpeg = picture.mode == "RGB" and picture.width > 256
    file = io.BytesIO()
    if jpeg:
        picture.save(file, format="JPEG", quality=88)
    else:
        picture.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    mime = "jpeg" if jpeg else "png"
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img class="{kind}" {size} alt="{e(alt)}" src="data:image/{mime};base64,{data}">'


def _same_size(path: Path, one: Pixels, reference: Path, other: Pixels) -> None:
    if np.shape(one)[:2] != np.shape(other)[:2]:
        raise UserError(f"{path}: its size {one.shape[:2]} is not the truth's {other.shape[:2]} ({reference})")
