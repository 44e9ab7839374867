"""The page's pictures: image, ground truth and every model's prediction, as data inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from segdistill.pictures import Panel, Views, object_views
from segdistill.report.views import View
from segdistill.results import Run, panels, picture_indices, worst_images
from segdistill.tasks.views import VIEWS

LARGEST = 640  # pixels of width that are put into the page; larger pictures are reduced
FAILURES = 3
"""Scenes per domain in the gallery of the worst images, however many models there are."""


@dataclass(frozen=True)
class Picture:
    """An ``<img>``: its bytes as an address, its size, alternative text and CSS class."""

    src: str
    size: tuple[int, int]
    alt: str
    kind: str


@dataclass(frozen=True)
class Figure:
    """One column of a scene; a prediction has a picture per view, of which the page shows one.

    ``part`` is ``image``, ``truth`` or ``answer``: the page's slider lays an answer over the two others.
    """

    caption: str
    note: str
    part: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Scene:
    """One image's figures; ``note`` says what is special about it."""

    figures: tuple[Figure, ...]
    note: str = ""


@dataclass(frozen=True)
class Domain:
    """A domain's scenes."""

    name: str
    role: str
    scenes: tuple[Scene, ...]


def gallery(view: View) -> list[Domain]:
    """Every domain's first scenes, with each model's first seed; empty where no run kept pictures."""
    runs = [run for *_, run in view.runs]
    found = []
    for domain, role in view.domains.items():
        scenes = [Scene(_figures(view, domain, index)) for index in picture_indices(runs, domain)]
        if scenes:
            found.append(Domain(domain, role, tuple(scenes)))
    return found


def failures(view: View) -> tuple[str, list[Domain]]:
    """Every domain's images with the lowest scores of the best student, and its title; without a best one of any."""
    shown = _first_seeds(view)
    best = next((entry.title for entry in view.students if entry.row == view.best), "")
    judged = [shown[best]] if best in shown else list(shown.values())
    metric, found = view.first.metric, []
    for domain, role in view.domains.items():
        scenes = []
        for index, _ in worst_images(judged, domain, FAILURES):
            scores = {title: dict(run.pictures.worst.get(domain, ())).get(index) for title, run in shown.items()}
            texts = [f"{title} {metric.text(score)}" for title, score in scores.items() if score is not None]
            note = f"image {index}, {metric.label} of this image: {', '.join(texts)}"
            scenes.append(Scene(_figures(view, domain, index), note))
        if scenes:
            found.append(Domain(domain, role, tuple(scenes)))
    return best, found


def _first_seeds(view: View) -> dict[str, Run]:
    """The first run of every title, whose predictions are shown."""
    found: dict[str, Run] = {}
    for title, _, run in view.runs:
        found.setdefault(title, run)
    return found


def _figures(view: View, domain: str, index: int) -> tuple[Figure, ...]:
    """Image, ground truth, teacher and every model that kept its prediction."""
    titled = [(title, run) for title, _, run in view.runs]
    teacher = view.teacher.title if view.teacher else ""
    shown = VIEWS.get(view.first.task, object_views)(panels(titled, teacher, domain, index), view.first.colors)
    parts = ["image", "truth", *["answer"] * len(shown)]
    return tuple(
        _figure(panel, views, part, f"{domain}, scene {index}")
        for part, (panel, views) in zip(parts, shown, strict=False)
    )


def _figure(panel: Panel, views: Views, part: str, where: str) -> Figure:
    alts = {"errors": f"Errors of {panel.caption}: {where}"}
    pictures = (
        _picture(image, alts.get(name, f"{panel.caption}: {where}"), panel.kind if len(views.pictures) == 1
                 else f"{panel.kind} view-{name}") for name, image in views.pictures.items()
    )  # fmt: skip
    return Figure(panel.caption, views.note, part, tuple(pictures))


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
