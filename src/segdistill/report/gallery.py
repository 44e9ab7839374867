"""The page's pictures: image, ground truth and every model's prediction, as data inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from segdistill.pictures import Panel, Views, scene_views
from segdistill.report.views import View
from segdistill.results import panels, picture_indices

LARGEST = 640  # pixels of width that are put into the page; larger pictures are reduced


@dataclass(frozen=True)
class Picture:
    """An ``<img>``: its bytes as an address, its size, alternative text and CSS class."""

    src: str
    size: tuple[int, int]
    alt: str
    kind: str


@dataclass(frozen=True)
class Figure:
    """One column of a scene; a prediction has a picture per view, of which the page shows one."""

    caption: str
    note: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Domain:
    """A domain's scenes."""

    name: str
    role: str
    scenes: tuple[tuple[Figure, ...], ...]


def gallery(view: View) -> list[Domain]:
    """Every domain's kept scenes, with each model's first seed; empty where no run kept pictures."""
    titled = [(title, run) for title, _, run in view.runs]
    teacher = view.teacher.title if view.teacher else ""
    found = []
    for domain, role in view.domains.items():
        scenes = []
        for index in picture_indices([run for _, run in titled], domain):
            shown = scene_views(panels(titled, teacher, domain, index), view.first.colors)
            scenes.append(tuple(_figure(panel, views, f"{domain}, scene {index}") for panel, views in shown))
        if scenes:
            found.append(Domain(domain, role, tuple(scenes)))
    return found


def _figure(panel: Panel, views: Views, where: str) -> Figure:
    alts = {"errors": f"Errors of {panel.caption}: {where}"}
    pictures = (
        _picture(image, alts.get(name, f"{panel.caption}: {where}"), panel.kind if len(views.pictures) == 1
                 else f"{panel.kind} view-{name}") for name, image in views.pictures.items()
    )  # fmt: skip
    return Figure(panel.caption, views.note, tuple(pictures))


def _picture(picture: Image.Image, alt: str, kind: str) -> Picture:
    """Large photographs as JPEG, all else as PNG; no wider than ``LARGEST``."""
    photograph = picture.mode == "RGB"
    if picture.width > LARGEST:
        how = Image.Resampling.LANCZOS if photograph else Image.Resampling.NEAREST
        picture = picture.resize((LARGEST, max(1, round(picture.height * LARGEST / picture.width))), how)
    jpeg, file = photograph and picture.width > 256, io.BytesIO()
    if jpeg:
        picture.save(file, format="JPEG", quality=88)
    else:
        picture.save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/{'jpeg' if jpeg else 'png'};base64,{data}", picture.size, alt, kind)
