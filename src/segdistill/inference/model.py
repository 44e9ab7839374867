"""Finished models at work: loads one and predicts on images.

Images are seen as they were when the model was scored: fitted into the size of the recipe's evaluation or of the data
set's protocol, and through its windows. Predictions have the image's own size; scores are enlarged a few rows at a
time (:mod:`segdistill.models.bands`), so memory stays at some tens of bytes per pixel. Computed in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segdistill import models
from segdistill.config import UserError, expanded
from segdistill.data.catalog import DATASETS
from segdistill.files import read_signed
from segdistill.inference.arrays import as_tensor
from segdistill.inference.inputs import Input, find_inputs
from segdistill.inference.objects import ObjectResult
from segdistill.inference.result import Result, as_colors, generated_colors
from segdistill.models import Finder, Segmenter, Window, as_segmenter, prepare
from segdistill.ops import evaluation_mode, state_digest
from segdistill.recipe import Recipe
from segdistill.runs.folder import Finished
from segdistill.runs.rescore import trained
from segdistill.runs.score import Scored, load_model
from segdistill.sharing.pack import load_packed
from segdistill.world import LABEL_SPACES

WHOLE = 2**21
"""Pixels of the largest image (1024 x 2048) that a network without windows of its own sees at once."""

GROUP = 2**22
"""Pixels of the images that are held and predicted together."""

Network = TypeVar("Network", Segmenter, Finder)
Answer = TypeVar("Answer", Result, ObjectResult)
Own = TypeVar("Own", bound="Predictor")

FORMAT = 1
"""Of predictions: raise it whenever the same model gives other pixels."""


@dataclass(frozen=True)
class View(models.View):
    """How a network sees an image of any size: without ``window`` one of more than :data:`WHOLE` pixels is seen through
    windows of ``crop`` (h, w), the size that the network was trained on.
    """

    crop: tuple[int, int] = (512, 512)

    def window_for(self, height: int, width: int) -> Window | None:
        """The window for an image of this size, after the fitting."""
        if self.window is not None or height * width <= WHOLE:
            return self.window
        return window_of(self.crop)


def window_of(size: tuple[int, int]) -> Window:
    """A sliding window whose stride is two thirds of its size."""
    height, width = size
    return Window(size=size, stride=(max(1, 2 * height // 3), max(1, 2 * width // 3)))


class Predictor(Generic[Network, Answer]):
    """A finished network with its class names and colours: :class:`Model` or :class:`ObjectModel`."""

    def __init__(
        self,
        segmenter: Network,
        names: Sequence[str],
        colors: Sequence[Sequence[int]] | None = None,
        *,
        title: str = "",
        view: View | None = None,
        device: str = "auto",
        teacher: Callable[[], Any] | None = None,  # returns a model of the same class
    ) -> None:
        self.device = torch.device(_device(device))
        self.segmenter = segmenter.eval().to(self.device)
        self.names = tuple(names)
        self.colors = as_colors(colors) if colors else generated_colors(len(self.names))
        self.title, self.view, self._teacher = title, view or View(), teacher

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.segmenter.parameters()) / 1e6
        size = f"{len(self.names)} classes, {millions:.2f} M parameters"
        return f"{type(self).__name__}({self.title!r}, {size}, {self.device})"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights, the classes and how images are seen: equal for equal predictions."""
        facts = [FORMAT, self.names, self.colors, repr(self.view), repr(self.segmenter)]
        return state_digest(self.segmenter, json.dumps(facts).encode())

    @cached_property
    def teacher(self) -> Any:
        """The teacher that this model was distilled from; None where its run has none, or it was packed alone."""
        return None if self._teacher is None else self._teacher()

    def seen(self: Own, *, resize: tuple[int, int] | None = None, window: tuple[int, int] | None = None) -> Own:
        """The same model that sees images otherwise: fitted into ``resize`` (h, w), and through windows of ``window``.

        With ``window`` alone images keep their own size.
        """
        if resize is None and window is None:
            return self
        _check_size("resize", resize)
        _check_size("window", window)
        if window is not None and isinstance(self.segmenter, Finder):
            raise UserError("windows would cut objects at their borders; use --resize H W for large images")
        other = object.__new__(type(self))
        other.__dict__.update({key: value for key, value in vars(self).items() if key not in ("digest", "teacher")})
        other.view = replace(self.view, resize=resize, window=None if window is None else window_of(window))
        own = self._teacher
        other._teacher = None if own is None else lambda: own().seen(resize=resize, window=window)
        return other

    def predict(self, image: Any) -> Answer | list[Answer]:
        """The prediction for one image, or a list of them for several.

        An image is a path, a PIL image, a NumPy array (H, W, 3) or (H, W), or a tensor (3, H, W): uint8, or float in
        [0, 1]. Several are a list of such, a batch of arrays (B, H, W, 3) or tensors (B, 3, H, W), or the path of a
        folder, archive or video or a pattern such as ``"photos/*.jpg"``. A :class:`UserError` says in one line what
        cannot be used.
        """
        if isinstance(image, str | Path):
            found = find_inputs([image])
            results = list(self._run_inputs(found))
            return results[0] if found[0].single and expanded(image).is_file() else results
        if isinstance(image, list | tuple):
            several = [self.predict(each) for each in image]
            return [result for each in several for result in (each if isinstance(each, list) else [each])]
        arrays = as_tensor(image)
        if arrays.ndim == 4:
            return [self._predict(each[None], [""])[0] for each in arrays]
        return self._predict(arrays[None], [""])[0]

    def predict_each(self, inputs: Sequence[str | Path]) -> Iterator[Answer]:
        """One prediction after the other for files, folders, patterns, archives and videos; one is held at a time."""
        return self._run_inputs(find_inputs(inputs))

    def predict_batch(self, images: Tensor, names: Sequence[str] = ()) -> list[Answer]:
        """Predictions for images (B, 3, H, W) of one size, uint8 or float in [0, 1], computed together."""
        return self._predict(images, list(names) or [""] * len(images))

    def _run_inputs(self, inputs: Sequence[Input]) -> Iterator[Answer]:
        for each in inputs:
            for item in each.items():
                pixels = item.load().pixels()
                yield self._predict(torch.from_numpy(pixels).permute(2, 0, 1)[None], [item.name])[0]

    def _predict(self, images: Tensor, names: list[str]) -> list[Answer]:
        raise NotImplementedError


class Model(Predictor[Segmenter, Result]):
    """A finished segmenter with its class names and colours. Get one with :func:`segdistill.load`.

    >>> model = segdistill.load("runs/demo/world_gkd")
    >>> result = model.predict("street.jpg")
    >>> result.save("classes.png")
    """

    def _predict(self, images: Tensor, names: list[str]) -> list[Result]:
        height, width = images.shape[-2:]
        with evaluation_mode(self.segmenter), torch.inference_mode():
            prepared = prepare(images.to(self.device), self.view.resize)
            window = self.view.window_for(*prepared.shape[-2:])
            classes, confidence = self.segmenter.decided(prepared, window, (height, width))
        shown = _shown(images)
        return [
            Result(classes[i], confidence[i], self.names, self.colors, shown[i], name) for i, name in enumerate(names)
        ]


class ObjectModel(Predictor[Finder, ObjectResult]):
    """A finished model of objects, with masks (task instance) or boxes (task detection), with its class names and
    colours. Get one with :func:`segdistill.load`.

    It sees every image at once, without windows.

    >>> model = segdistill.load("runs/world_instance")
    >>> result = model.predict("street.jpg")
    >>> for score, name, mask in zip(result.scores, result.class_names, result.masks()): ...
    """

    def _predict(self, images: Tensor, names: list[str]) -> list[ObjectResult]:
        height, width = images.shape[-2:]
        with evaluation_mode(self.segmenter), torch.inference_mode():
            found = self.segmenter.predict(prepare(images.to(self.device), self.view.resize), (height, width))
        shown = _shown(images)
        return [ObjectResult(found[i], self.names, self.colors, shown[i], name) for i, name in enumerate(names)]


def _shown(images: Tensor) -> NDArray[np.uint8]:
    """Images (B, 3, H, W) as 8-bit pixels (B, H, W, 3)."""
    pixels = images if images.dtype == torch.uint8 else images.clamp(0, 1).mul(255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def of_network(network: models.Model, names: Sequence[str], **settings: Any) -> Model | ObjectModel:
    """The model of a network; ``settings`` as for :class:`Predictor`."""
    if isinstance(network, Finder):
        return ObjectModel(network, names, **settings)
    return Model(as_segmenter(network, "predict"), names, **settings)


def load(what: str | Path, *, role: str | None = None, device: str = "auto") -> Model | ObjectModel:
    """The finished model of a run folder, a stage's folder, a packed file, or ``hf:owner/name``.

    ``role`` is ``"student"`` (default) or ``"teacher"`` of a run folder. ``device`` is ``"auto"``, ``"cpu"`` or
    ``"cuda"``. Neither the images that it was trained on nor the network connection is needed, except for ``hf:``.
    """
    _device(device)  # a wrong one is named before anything is read
    if str(what).startswith("hf:"):
        return _packed(str(what), role, device)
    path = expanded(what)
    if path.is_file():
        return _packed(path, role, device)
    if not path.exists():
        raise UserError(f"no model at {what}; give a run folder, a stage's folder, a packed file, or hf:owner/name")
    run, scored = trained(path, role)
    has_teacher = scored.role == "student" and "teacher" in run.roles
    names, colors = _label_space(run, scored)
    return of_network(
        load_model(scored, names),
        names,
        colors=colors,
        title=(run.recipe.title or scored.title) if scored.role == "student" else scored.title,
        view=view_of(run.recipe),
        device=device,
        teacher=(lambda: load(run.folder, role="teacher", device=device)) if has_teacher else None,
    )


def teacher_here(model: Model | ObjectModel, warn: Callable[[str], None]) -> Any:
    """The model's teacher; None where it has none, and with a warning where it cannot be loaded here."""
    try:
        return model.teacher
    except UserError as error:
        warn(f"nothing is compared with the teacher: {str(error).partition(';')[0]}")
        return None


def view_of(recipe: Recipe) -> View:
    """How a run's networks see images: as its evaluation sees the first domain that is scored (spec A.11)."""
    config, source = recipe.evaluate, recipe.scored_source
    domain = config.domains[0] if config is not None else recipe.stages[0].data.domains[0]
    protocol = source.protocol(domain)
    window, resize = (None, None) if config is None else (config.window, config.resize)
    return replace(View.of(protocol, window, resize), crop=recipe.data.size)


def _packed(source: str | Path, role: str | None, device: str) -> Model | ObjectModel:
    """The model of a packed file."""
    network, header = load_packed(source)
    if role not in (None, header.get("role", "student")):
        raise UserError(
            f"{source} holds the {header.get('role', 'student')} alone; pack or give the run for the {role}"
        )
    seen = header["preprocessing"]
    window = None if seen.get("window") is None else Window.model_validate(seen["window"])
    resize = seen.get("resize")
    view = View(resize and (resize[0], resize[1]), window, tuple(seen.get("size", (512, 512))))
    title = header.get("title", "")
    return of_network(network, header["classes"], colors=header["colors"], title=title, view=view, device=device)


def _label_space(run: Finished, scored: Scored) -> tuple[tuple[str, ...], Sequence[Sequence[int]] | None]:
    """Class names, and the colours of the scores, of the data set's record, or None."""
    names = scored.classes
    path = run.folder / "results.json"
    results = (read_signed(path) if path.is_file() else None) or {}
    if results.get("colors") and (not names or tuple(results.get("classes", ())) == names):
        return tuple(results["classes"]), results["colors"]
    names = names or run.recipe.classes()
    spaces = [(space.names, as_colors(space.colors)) for space in LABEL_SPACES.values()]
    spaces += [(record.classes, as_colors(record.colors)) for record in DATASETS.values()]
    return names, next((colors for known, colors in spaces if tuple(known) == tuple(names)), None)


def _check_size(name: str, size: tuple[int, int] | None) -> None:
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise UserError(f"{name} is a height and a width of at least 1 pixel, got {size}")


def _device(name: str) -> str:
    allowed = ("auto", "cpu", "cuda")
    if name.partition(":")[0] not in allowed:
        raise UserError(f"unknown device '{name}'; allowed: {', '.join(allowed)}")
    cuda = torch.cuda.is_available()
    if name.startswith("cuda") and not cuda:
        raise UserError("device cuda, but torch sees no GPU here; use cpu or auto")
    return ("cuda" if cuda else "cpu") if name == "auto" else name
