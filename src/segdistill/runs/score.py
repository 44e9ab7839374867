"""Scores finished segmenters on the recipe's domains and keeps pictures of what they saw."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.fabric import Fabric
from PIL import Image
from torch import Tensor

from segdistill.config import UserError
from segdistill.data.dataset import Dataset, Protocol, Sample
from segdistill.encoders import Encoder, build_encoder
from segdistill.runs.evaluation import (
    METRICS,
    PRIMARY,
    DomainResult,
    evaluate,
    evaluating,
    prepare,
    retention,
    retention_interval,
    sliding,
    summary,
    summary_interval,
)
from segdistill.files import plain_name, read_signed, sha256, write_atomic, write_signed
from segdistill.metrics.confusion import ImageCounts
from segdistill.models import Segmenter
from segdistill.pictures import save_label
from segdistill.recipe import EvaluateConfig, Recipe
from segdistill.runlog import Watcher
from segdistill.stages.base import ModelConfig, count, weights_read
from segdistill.stages.task import build_segmenter
from segdistill.metrics.unlabelled import ImageNotes

FORMAT = 3
"""Of the score files: raise it whenever what stands in them, or how it is measured, changes."""

PICTURE = 1024
"""Longest side in pixels of the pictures that are kept."""


@dataclass(frozen=True)
class Scored:
    """A finished segmenter, and what the results say of it."""

    role: str  # its place in the results: "teacher" or "student"
    title: str
    model: ModelConfig  # with the files of its weights
    seed: int  # of an encoder that has random weights
    folder: Path  # where scores and pictures go: the run folder
    fingerprint: str
    parameters: dict[str, int] | None  # None: they are counted, and what was read is told, when it is loaded
    seconds: float | None  # of its training, where that is known
    classes: tuple[str, ...]  # those it was trained on; empty where its manifest does not say


class Loader:
    """Batches of one domain; ``dataset`` is there for whoever wants to know how many images are coming.

    Images of one size that follow one another form a batch. Each of several processes is given every n-th image and
    none twice.
    """

    def __init__(self, dataset: Dataset, batch: int, rank: int, world_size: int) -> None:
        self.dataset, self.batch = dataset, batch
        self.rows = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        held: dict[int, Sample] = {}
        for row in self.rows:
            sample = self.dataset[row]
            if held and (len(held) == self.batch or _shapes(sample) != _shapes(next(iter(held.values())))):
                yield _collate(held)
                held = {}
            held[row] = sample
        if held:
            yield _collate(held)


def _shapes(sample: Sample) -> tuple[tuple[int, ...], ...]:
    assert sample.label is not None, "every domain is checked for labels"
    return sample.image.shape, sample.label.shape


def _collate(samples: dict[int, Sample]) -> dict[str, Tensor]:
    """A batch of samples of one size, by their numbers in the domain."""
    return {
        "image": torch.stack([torch.tensor(sample.image).permute(2, 0, 1) for sample in samples.values()]),
        "label": torch.stack([torch.tensor(sample.label) for sample in samples.values()]),
        "index": torch.tensor(list(samples)),
    }


def score(
    recipe: Recipe,
    scored: Scored,
    *,
    fabric: Fabric,
    results: dict[str, Any],
    reuse: Sequence[Path],
    watcher: Watcher,
) -> dict[str, Any]:
    """``results`` with the scores of one segmenter; scores and pictures that are there already are taken."""
    config = recipe.evaluate
    assert config is not None
    datasets = {name: _open(recipe, config, name, fabric, watcher) for name in config.domains}
    names, colors = _label_space(datasets, scored)
    protocols = {name: _protocol(config, dataset, name) for name, dataset in datasets.items()}
    facts = [
        FORMAT,
        scored.fingerprint,
        config.model_dump(mode="json", exclude={"data"}),  # where the images lie is not what they are
        recipe.scored_source.facts(*(config.selection(recipe.scored_source, name) for name in config.domains)),
        [astuple(protocol) for protocol in protocols.values()],
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    path = scored.folder / "scores" / f"{scored.role}.json"
    if fabric.is_global_zero and _read(scored.folder, scored.role, key) is None:
        path.unlink(missing_ok=True)
        _take(reuse, scored, key)
    fabric.barrier()
    found = _read(scored.folder, scored.role, key)
    if found is None:
        segmenter = load_segmenter(scored, names).to(fabric.device)
        found, images, notes = _measure(scored, config, segmenter, datasets, fabric, watcher)
        found = _described(segmenter) | found if scored.parameters is None else found
        if fabric.is_global_zero:
            pictures = _keep_pictures(scored, config, segmenter, datasets, fabric, colors)
            write_images(path.with_suffix(".npz"), images, notes)
            files = [path.with_suffix(".npz"), *pictures]
            digests = {str(file.relative_to(scored.folder)): sha256(file) for file in files}
            write_signed(path, {"key": key, **found, "files": digests})
        fabric.barrier()
    models = results.get("models", {}) | {scored.role: _entry(scored, found)}
    return results | {
        "primary": PRIMARY,
        "metrics": METRICS,
        "classes": list(names),
        "colors": colors,
        "source": [name for name in config.domains if name not in config.unseen + config.validation],
        "unseen": list(config.unseen),
        "validation": list(config.validation),
        "models": models,
        **_together(models, scored, config.unseen),
        "pictures": {
            "domains": {name: list(range(min(config.pictures, len(datasets[name])))) for name in config.domains}
        },
    }


def write_images(path: Path, images: Mapping[str, ImageCounts], notes: Mapping[str, ImageNotes] | None = None) -> None:
    """The images' confusion matrices and notes by domain as compressed NumPy arrays."""
    arrays = {
        f"{name}/{field}": np.asarray(value)
        for kept in (images, notes or {})
        for name, values in kept.items()
        for field, value in vars(values).items()
    }
    write_atomic(path, lambda file: np.savez_compressed(file, allow_pickle=False, **arrays))


def read_images(path: Path) -> dict[str, ImageCounts]:
    """The confusion matrices that :func:`write_images` wrote."""
    return {
        name: ImageCounts(int(part.pop("num_classes")), int(part.pop("size")), **part)
        for name, part in _read_arrays(path, ImageCounts).items()
    }


def read_notes(path: Path) -> dict[str, ImageNotes]:
    """The notes that :func:`write_images` wrote."""
    return {name: ImageNotes(**part) for name, part in _read_arrays(path, ImageNotes).items()}


def _read_arrays(path: Path, kind: type[ImageCounts] | type[ImageNotes]) -> dict[str, dict[str, Any]]:
    """The fields of ``kind`` by domain."""
    try:
        with np.load(path) as arrays:
            names = dict.fromkeys(key.rpartition("/")[0] for key in arrays)
            return {name: {f.name: arrays[f"{name}/{f.name}"] for f in fields(kind)} for name in names}
    except Exception:  # noqa: BLE001  zip, zlib and NumPy raise many kinds for a damaged file; each becomes one line
        raise UserError(f"{path} is missing or damaged; give the run's command again, which scores it anew") from None


def _together(models: dict[str, Any], scored: Scored, unseen: Sequence[str]) -> dict[str, Any]:
    """Student beside teacher, which were scored on the same images.

    Retention on the unseen domains with its interval, and the share of the pixels on which they agree, by domain.
    """
    both = {"teacher", "student"} <= models.keys()
    images = [read_images(scored.folder / "scores" / f"{role}.npz") for role in ("student", "teacher") if both]
    notes = [read_notes(scored.folder / "scores" / f"{role}.npz") for role in ("student", "teacher") if both]
    agreement = (
        {name: notes[0][name].agreement(notes[1][name]) for name in models["student"]["domains"]} if both else None
    )
    return {
        "agreement": agreement,
        "retention": retention(*(models[role]["mean_unseen"] for role in ("student", "teacher"))) if both else None,
        "retention_interval": retention_interval(*images, unseen=unseen) if both else None,
    }


def load_segmenter(scored: Scored, classes: Sequence[str]) -> Segmenter:
    """The finished segmenter, in evaluation mode."""
    encoder = build_encoder(scored.model.encoder, seed=scored.seed)
    return build_segmenter(scored.model, encoder, classes, seed=0, stage=scored.role).eval()


def _described(segmenter: Segmenter) -> dict[str, Any]:
    """How large a segmenter is, and what became of every key of its files."""
    parts = {"encoder": cast(Encoder, segmenter.encoder), "head": segmenter.head}
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
    if dataset[0].label is None:
        raise UserError(f"evaluate: domain '{domain}' has no labels; take it out of 'domains'")
    return dataset


def _protocol(config: EvaluateConfig, dataset: Dataset, domain: str) -> Protocol:
    """The data set's way of evaluating ``domain``, with the recipe's size in place of its own where it names one."""
    protocol = dataset.protocol(domain)
    return protocol if config.resize is None else replace(protocol, resize=config.resize)


def _label_space(datasets: dict[str, Dataset], scored: Scored) -> tuple[tuple[str, ...], list[list[int]]]:
    """Class names and colours: one list for all domains, and the one that the segmenter was trained on."""
    first, *others = datasets
    names = tuple(datasets[first].names)
    for other in others:
        if tuple(datasets[other].names) != names:
            raise UserError(f"evaluate: '{first}' and '{other}' differ in their classes; score them in two commands")
    if scored.classes and scored.classes != names:
        raise UserError(
            f"evaluate: the {scored.role} was trained on the classes {', '.join(scored.classes)}; "
            f"'{first}' has {', '.join(names)}; take data with the same classes"
        )
    return names, [[int(value) for value in color] for color in datasets[first].colors]


def _measure(
    scored: Scored,
    config: EvaluateConfig,
    segmenter: Segmenter,
    datasets: dict[str, Dataset],
    fabric: Fabric,
    watcher: Watcher,
) -> tuple[dict[str, Any], dict[str, ImageCounts], dict[str, ImageNotes]]:
    """The scores as JSON keeps them, and every image's own counts and notes."""
    loaders = {
        name: Loader(dataset, config.batch, fabric.global_rank, fabric.world_size) for name, dataset in datasets.items()
    }
    results: dict[str, DomainResult] = evaluate(
        segmenter,
        loaders,
        device=fabric.device,
        protocols={name: _protocol(config, dataset, name) for name, dataset in datasets.items()},
        window=config.window,
        precision=fabric.autocast,
        progress=lambda name, done, total: watcher.work(f"scoring the {scored.role} on {name}", done, total or done),
    )
    images = {name: result.images for name, result in results.items()}
    found = {
        "domains": {name: result.as_dict(name) for name, result in results.items()},
        "mean_unseen": summary(results, config.unseen),
        "mean_unseen_interval": summary_interval(images, config.unseen),
    }
    return found, images, {name: result.notes for name, result in results.items()}


def _keep_pictures(
    scored: Scored,
    config: EvaluateConfig,
    segmenter: Segmenter,
    datasets: dict[str, Dataset],
    fabric: Fabric,
    colors: list[list[int]],
) -> list[Path]:
    """The first images of every domain, their truth and this segmenter's class maps, as PNG of a page's size."""
    folder, kept = scored.folder / "pictures", []
    for name, dataset in datasets.items():
        protocol = _protocol(config, dataset, name)
        view = sliding(protocol, config.window)
        for index in range(min(config.pictures, len(dataset))):
            sample = dataset[index]
            assert sample.label is not None
            image = torch.tensor(sample.image).permute(2, 0, 1)[None].to(fabric.device)
            height, width = sample.label.shape
            with evaluating(segmenter), torch.inference_mode(), fabric.autocast():
                prediction = segmenter.predict(prepare(image, protocol.resize), view, (height, width))
            file = plain_name(f"{name}-{index}.png")
            kept += [folder / kind / file for kind in ("image", "truth", scored.role)]
            picture = Image.fromarray(sample.image)
            picture.thumbnail((PICTURE, PICTURE))
            write_atomic(folder / "image" / file, lambda out, picture=picture: picture.save(out, "PNG"))
            for kind, classes in (("truth", sample.label), (scored.role, prediction[0].cpu().numpy())):
                small = Image.fromarray(classes.astype(np.uint8)).resize(picture.size, Image.Resampling.NEAREST)
                save_label(folder / kind / file, np.asarray(small), colors)
    return kept


def _entry(scored: Scored, found: dict[str, Any]) -> dict[str, Any]:
    counted = scored.parameters or found["parameters"]
    parameters = {key: counted[key] for key in ("encoder", "head")}
    entry = {"title": scored.title, "parameters": parameters, "seconds": scored.seconds}
    keys = ("domains", "mean_unseen", "mean_unseen_interval", "weights")
    return entry | {key: found[key] for key in keys if key in found}


def _read(folder: Path, role: str, key: str) -> dict[str, Any] | None:
    """Scores made by this very segmenter on these very images; None where they are not there, or not whole.

    What is damaged is named in a line, and measured again: the scores, the counts of every image, the pictures.
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
        whole = names if len(names) == len(found["files"]) and "domains" in found else []
        damaged = next((folder / n for n in whole if _digest(folder / n) != found["files"][n]), None if whole else path)
    elif found is not None:
        return None  # of an earlier version
    if damaged is None:
        return found
    logging.getLogger(__name__).warning("warning: %s is damaged or gone: the %s is scored again", damaged, role)
    return None


def _digest(path: Path) -> str | None:
    return sha256(path) if path.is_file() else None


def _take(reuse: Sequence[Path], scored: Scored, key: str) -> None:
    """Copy the same scores and their pictures from another run, if there are some."""
    for other in reuse:
        found = _read(other, scored.role, key) if other != scored.folder else None
        if found is not None:
            for name in [*found["files"], f"scores/{scored.role}.json"]:  # the scores last: the rest is there
                data = (other / name).read_bytes()
                write_atomic(scored.folder / name, lambda file, data=data: file.write(data))
            return
