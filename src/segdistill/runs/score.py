"""Scores finished models on the recipe's domains and saves pictures of their predictions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image

from segdistill.config import UserError
from segdistill.data.corrupted import CorruptConfig
from segdistill.data.dataset import Dataset
from segdistill.encoders import Encoder, build_encoder
from segdistill.files import (
    damaged_file,
    facts_digest,
    plain_name,
    read_signed,
    sha256,
    write_atomic,
    write_bytes,
    write_signed,
)
from segdistill.metrics.base import Samples
from segdistill.models import Model, View
from segdistill.ops import evaluation_mode
from segdistill.recipe import EvaluateConfig, Recipe
from segdistill.runlog import Watcher
from segdistill.runs.corruptions import Store, Subjects, measure
from segdistill.runs.evaluation import (
    evaluate,
    mean_interval,
    mean_score,
    retention,
    retention_interval,
)
from segdistill.stages.base import ModelConfig, count, weights_read
from segdistill.stages.task import build_model
from segdistill.tasks.base import Task
from segdistill.tasks.table import TASKS
from segdistill.types import Batch

if TYPE_CHECKING:  # importing lightning takes seconds
    from lightning.fabric import Fabric

FORMAT = 4
"""Version of the score files; increase it whenever their content or the way it is measured changes."""

PICTURE = 1024
"""Longest side of the saved pictures in pixels."""


@dataclass(frozen=True)
class Scored:
    """A finished model and its description in the results."""

    role: str  # its key in the results: "teacher" or "student"
    task: str  # key of TASKS
    title: str
    model: ModelConfig  # with its weight files
    seed: int  # for an encoder with random weights
    folder: Path  # where scores and pictures go: the run folder
    fingerprint: str
    parameters: dict[str, int] | None  # None: counted and described when the model is loaded
    seconds: float | None  # training time, if known
    classes: tuple[str, ...]  # training classes; empty if the manifest lacks them


class Loader:
    """Batches of one domain; ``dataset`` gives progress bars the total.

    Consecutive images of the same size form a batch. With n processes each gets every n-th image, none twice.
    """

    def __init__(self, task: Task, dataset: Dataset, batch: int, rank: int, world_size: int) -> None:
        self.task, self.dataset, self.batch = task, dataset, batch
        self.rows = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[Batch]:
        held: dict[int, Batch] = {}
        for row in self.rows:
            sample = self.task.targets(self.dataset[row])
            if held and (len(held) == self.batch or sample["image"].shape != next(iter(held.values()))["image"].shape):
                yield self._collate(held)
                held = {}
            held[row] = sample
        if held:
            yield self._collate(held)

    def _collate(self, samples: dict[int, Batch]) -> Batch:
        """A batch of samples of one size, with their index in the domain."""
        return self.task.collate(list(samples.values())) | {"index": torch.tensor(list(samples))}


def score(
    recipe: Recipe,
    scored: Scored,
    *,
    fabric: Fabric,
    results: dict[str, Any],
    reuse: Sequence[Path],
    watcher: Watcher,
) -> dict[str, Any]:
    """``results`` extended by the scores of one model; existing scores and pictures are reused."""
    config = recipe.evaluate
    assert config is not None
    seen = _look(recipe, config, scored, fabric, watcher)
    settings = config.model_dump(mode="json", exclude={"data", "corrupt"})  # where the images are does not matter
    key = facts_digest(_facts(recipe, scored, settings, seen.views))
    path = scored.folder / "scores" / f"{scored.role}.json"
    if fabric.is_global_zero and _read(scored.folder, scored.role, key) is None:
        path.unlink(missing_ok=True)
        _take(reuse, scored, key)
    fabric.barrier()
    found = _read(scored.folder, scored.role, key)
    if found is None:
        found = _measure(scored, config, seen, path, key, fabric=fabric, watcher=watcher)
    entry = _entry(scored, found)
    if config.corrupt is not None:
        entry["corruptions"] = _corruptions(recipe, scored, config.corrupt, seen, reuse, fabric=fabric, watcher=watcher)
    models = results.get("models", {}) | {scored.role: entry}
    return results | {
        "task": scored.task,
        "primary": seen.task.primary,
        "metrics": seen.task.metrics,
        "classes": list(seen.names),
        "colors": seen.colors,
        "source": [name for name in config.domains if name not in config.unseen + config.validation],
        "unseen": list(config.unseen),
        "validation": list(config.validation),
        "models": models,
        **_together(models, scored, config.unseen),
        "pictures": {
            "domains": {name: list(range(min(config.pictures, len(seen.datasets[name])))) for name in config.domains},
            "worst": found["worst"],
        }
        if (scored.folder / "pictures" / scored.role).is_dir()
        else {},
    }


@dataclass(frozen=True)
class _Seen:
    """What a model is scored on: task, datasets and views by domain, class names and colours."""

    task: Task
    datasets: dict[str, Dataset]
    views: dict[str, View]
    device: torch.device
    names: tuple[str, ...]
    colors: list[list[int]]


def _look(recipe: Recipe, config: EvaluateConfig, scored: Scored, fabric: Fabric, watcher: Watcher) -> _Seen:
    """Open every domain."""
    datasets = {name: _open(recipe, config, name, fabric, watcher) for name in config.domains}
    views = {name: View.of(dataset.protocol(name), config.window, config.resize) for name, dataset in datasets.items()}
    return _Seen(TASKS[scored.task], datasets, views, fabric.device, *_label_space(datasets, scored))


def _measure(
    scored: Scored, config: EvaluateConfig, seen: _Seen, path: Path, key: str, *, fabric: Fabric, watcher: Watcher
) -> dict[str, Any]:
    """Score the model; write the scores to ``path``, the per-image samples beside it, and the pictures."""
    model = load_model(scored, seen.names).to(fabric.device)
    processes = {"rank": fabric.global_rank, "world_size": fabric.world_size}
    what = f"scoring the {scored.role}"
    metrics = evaluate(
        model,
        {name: Loader(seen.task, dataset, config.batch, **processes) for name, dataset in seen.datasets.items()},
        lambda: seen.task.metric(len(seen.names), fabric.device),
        views=seen.views,
        precision=fabric.autocast,
        progress=lambda name, done, total: watcher.work(f"{what} on {name}", done, total or done),
    )
    images = {name: metric.samples() for name, metric in metrics.items()}
    domains = {name: metric.result(name) for name, metric in metrics.items()}
    found = _described(model) if scored.parameters is None else {}
    found |= {
        "domains": domains,
        "mean_unseen": mean_score(domains, seen.task.primary, config.unseen),
        "mean_unseen_interval": mean_interval(images, config.unseen),
    }
    found["worst"] = _worst(images, config.pictures) if scored.role == "student" else {}
    if fabric.is_global_zero:
        with evaluation_mode(model), torch.inference_mode(), fabric.autocast():
            pictures = _keep_pictures(scored, config.pictures, model, seen, found["worst"])
        write_samples(path.with_suffix(".npz"), images)
        files = [path.with_suffix(".npz"), *pictures]
        digests = {str(file.relative_to(scored.folder)): sha256(file) for file in files}
        write_signed(path, {"key": key, **found, "files": digests})
    fabric.barrier()
    return found


def _facts(recipe: Recipe, scored: Scored, settings: dict[str, Any], views: Mapping[str, View]) -> list[Any]:
    """What the scores of a model depend on; ``views``: of the domains that are scored."""
    config, source = recipe.evaluate, recipe.scored_source
    assert config is not None
    return [
        FORMAT,
        scored.fingerprint,
        settings,
        source.facts(*(config.selection(source, name) for name in views)),
        [[view.resize, view.window and view.window.model_dump(mode="json")] for view in views.values()],
    ]


def _corruptions(
    recipe: Recipe,
    scored: Scored,
    corrupt: CorruptConfig,
    seen: _Seen,
    reuse: Sequence[Path],
    *,
    fabric: Fabric,
    watcher: Watcher,
) -> dict[str, Any]:
    """The model's scores on corrupted images, summarised; only what is not stored yet is measured."""
    config, processes = recipe.evaluate, {"rank": fabric.global_rank, "world_size": fabric.world_size}
    assert config is not None
    views = {name: seen.views[name] for name in corrupt.domains}
    facts = _facts(recipe, scored, corrupt.model_dump(mode="json", include={"images", "seed"}), views)
    subjects = Subjects(
        datasets={name: seen.datasets[name] for name in views},
        views=views,
        load=lambda dataset: Loader(seen.task, dataset, config.batch, **processes),
        metric=lambda: seen.task.metric(len(seen.names), fabric.device),
        primary=seen.task.primary,
        precision=fabric.autocast,
        progress=lambda name, done, total: watcher.work(f"scoring the {scored.role} on {name}", done, total or done),
    )
    path = scored.folder / "scores" / f"{scored.role}-corruptions.json"
    store = Store(path, facts, reuse, writes=fabric.is_global_zero)
    fabric.barrier()  # all processes have read the same scores before one writes more
    found = measure(lambda: load_model(scored, seen.names).to(fabric.device), corrupt, subjects, store)
    fabric.barrier()
    return found


def write_samples(path: Path, images: Mapping[str, Samples]) -> None:
    """Write the per-image samples of each domain as compressed NumPy arrays."""
    arrays = {f"{name}/{field}": value for name, kept in images.items() for field, value in kept.arrays().items()}
    write_atomic(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def read_samples(path: Path, task: str = "semantic") -> dict[str, Samples]:
    """Read the samples that :func:`write_samples` wrote for a model of ``task``, by domain."""
    try:
        with np.load(path) as arrays:
            domains: dict[str, dict[str, Any]] = {}
            for key in arrays:
                name, _, field = key.rpartition("/")
                domains.setdefault(name, {})[field] = arrays[key]
        return {name: TASKS[task].kept.of_arrays(found) for name, found in domains.items()}
    except Exception:  # noqa: BLE001  zip, zlib and NumPy raise many kinds for a damaged file; each becomes one line
        raise UserError(f"{path} is missing or damaged; run the command again to rescore it") from None


def _together(models: dict[str, Any], scored: Scored, unseen: Sequence[str]) -> dict[str, Any]:
    """Student compared with teacher on the same images.

    Retention on the unseen domains with its interval, and per domain the share of pixels on which the two agree.
    """
    if not {"teacher", "student"} <= models.keys():
        return {"agreement": None, "retention": None, "retention_interval": None}
    student, teacher = (
        read_samples(scored.folder / "scores" / f"{role}.npz", scored.task) for role in ("student", "teacher")
    )
    return {
        "agreement": {name: student[name].agreement(teacher[name]) for name in models["student"]["domains"]},
        "retention": retention(*(models[role]["mean_unseen"] for role in ("student", "teacher"))),
        "retention_interval": retention_interval(student, teacher, unseen=unseen),
    }


def load_model(scored: Scored, classes: Sequence[str]) -> Model:
    """The finished model, in evaluation mode."""
    encoder = build_encoder(scored.model.encoder, seed=scored.seed)
    return build_model(TASKS[scored.task], scored.model, encoder, classes, seed=0, stage=scored.role).eval()


def _described(model: Model) -> dict[str, Any]:
    """A model's parameter counts, and how its weight files were loaded."""
    parts = {"encoder": cast(Encoder, model.encoder), "head": model.head}
    return {"parameters": {name: count(part) for name, part in parts.items()}, "weights": weights_read(**parts)}


def _open(recipe: Recipe, config: EvaluateConfig, domain: str, fabric: Fabric, watcher: Watcher) -> Dataset:
    source = recipe.scored_source
    selection = config.selection(source, domain)
    if fabric.is_global_zero:
        source.open(selection, watcher.work)
    fabric.barrier()
    dataset = source.open(selection)
    if not len(dataset):
        raise UserError(f"evaluate: domain '{domain}' has no images in its split '{selection.split}'")
    if not dataset[0].labelled:
        raise UserError(f"evaluate: domain '{domain}' has no labels; remove it from 'domains'")
    return dataset


def _label_space(datasets: dict[str, Dataset], scored: Scored) -> tuple[tuple[str, ...], list[list[int]]]:
    """Class names and colours; they must be the same for all domains and match the model's training classes."""
    first, *others = datasets
    names = tuple(datasets[first].names)
    for other in others:
        if tuple(datasets[other].names) != names:
            raise UserError(f"evaluate: '{first}' and '{other}' have different classes; score them in two commands")
    if scored.classes and scored.classes != names:
        raise UserError(
            f"evaluate: the {scored.role} was trained on the classes {', '.join(scored.classes)}; "
            f"'{first}' has {', '.join(names)}; use data with the same classes"
        )
    return names, [[int(value) for value in color] for color in datasets[first].colors]


def _worst(images: Mapping[str, Samples], count: int) -> dict[str, list[tuple[int, float]]]:
    """The ``count`` images of every domain with the lowest primary score, worst first: (index, score)."""
    scores = {name: kept.by_image() for name, kept in images.items()}
    orders = {name: np.argsort(own, kind="stable") for name, own in scores.items()}  # NaN (no score) comes last
    return {
        name: [(int(i), float(scores[name][i])) for i in order[:count] if np.isfinite(scores[name][i])]
        for name, order in orders.items()
    }


def _keep_pictures(
    scored: Scored, count: int, model: Model, seen: _Seen, worst: Mapping[str, Sequence[tuple[int, float]]]
) -> list[Path]:
    """Save the first and the worst images of every domain and the task's pictures of them, as PNG at page size."""
    folder, kept = scored.folder / "pictures", []
    for name, dataset in seen.datasets.items():
        first = range(min(count, len(dataset)))
        for index in dict.fromkeys([*first, *(index for index, _ in worst.get(name, ()))]):
            sample = dataset[index]
            shown = seen.task.pictures(model, sample, seen.views[name], seen.colors, seen.device)
            if not shown:
                return []
            picture = Image.fromarray(sample.image)
            picture.thumbnail((PICTURE, PICTURE))
            shown = {kind: each.resize(picture.size, Image.Resampling.NEAREST) for kind, each in shown.items()}
            for kind, each in {"image": picture, **shown}.items():
                file = folder / (scored.role if kind == "prediction" else kind) / plain_name(f"{name}-{index}.png")
                write_atomic(file, lambda out, each=each: each.save(out, "PNG"))
                kept.append(file)
    return kept


def _entry(scored: Scored, found: dict[str, Any]) -> dict[str, Any]:
    counted = scored.parameters or found["parameters"]
    parameters = {key: counted[key] for key in ("encoder", "head")}
    entry = {"title": scored.title, "parameters": parameters, "seconds": scored.seconds}
    keys = ("domains", "mean_unseen", "mean_unseen_interval", "weights")
    return entry | {key: found[key] for key in keys if key in found}


def _read(folder: Path, role: str, key: str) -> dict[str, Any] | None:
    """The stored scores of this model on these images; None if they are missing or damaged.

    A damaged file (scores, per-image samples, pictures) is reported with a warning; the model is then scored again.
    """
    path = folder / "scores" / f"{role}.json"
    if not path.is_file():
        return None
    found = read_signed(path)
    damaged: Path | None = path
    if found is not None and isinstance(found.get("files"), dict):
        if found.get("key") != key:
            return None
        names = [name for name in found["files"] if name.startswith(("scores/", "pictures/")) and ".." not in name]
        whole = names and len(names) == len(found["files"]) and "domains" in found
        damaged = damaged_file(folder, found["files"]) if whole else path
    elif found is not None:
        return None  # of an earlier version
    if damaged is None:
        return found
    logging.getLogger(__name__).warning("warning: %s is damaged or missing; scoring the %s again", damaged, role)
    return None


def _take(reuse: Sequence[Path], scored: Scored, key: str) -> None:
    """Copy the same scores and their pictures from another run, if any."""
    for other in reuse:
        found = _read(other, scored.role, key) if other != scored.folder else None
        if found is not None:
            for name in [*found["files"], f"scores/{scored.role}.json"]:  # the scores last, as the mark of completion
                data = (other / name).read_bytes()
                write_bytes(scored.folder / name, data)
            return
