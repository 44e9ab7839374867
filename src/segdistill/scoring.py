"""Scores finished segmenters on the recipe's domains and keeps pictures of what they saw."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from PIL import Image
from torch import Tensor

from segdistill.config import UserError
from segdistill.data.dataset import Dataset
from segdistill.encoders import build_encoder
from segdistill.evaluate import DomainResult, evaluate, evaluating, prepare, retention, summary
from segdistill.files import write_atomic, write_json
from segdistill.ops import derive_seed
from segdistill.pictures import save_label
from segdistill.recipe import EvaluateConfig, Recipe
from segdistill.runlog import Watcher
from segdistill.segmenter import Segmenter
from segdistill.stages.task import build_segmenter, load_decoder


@dataclass(frozen=True)
class Scored:
    """A finished segmenter. ``encoder`` is None where the model's own start weights were never trained."""

    role: str  # "teacher" or "student"
    folder: Path  # where scores and pictures go: the run folder
    decoder: Path
    encoder: Path | None
    fingerprint: str
    parameters: dict[str, int]
    seconds: float


class Loader:
    """Batches of one domain; ``dataset`` is there for whoever wants to know how many images are coming."""

    def __init__(self, dataset: Dataset, batch: int, rank: int, world_size: int) -> None:
        self.dataset, self.batch = dataset, batch
        self.rows = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.rows), self.batch):
            samples = [self.dataset[row] for row in self.rows[start : start + self.batch]]
            yield {
                "image": torch.stack([torch.tensor(sample.image).permute(2, 0, 1) for sample in samples]),
                "label": torch.stack([torch.tensor(sample.label).long() for sample in samples]),
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
    names, colors = _label_space(datasets)
    key = hashlib.sha256(
        json.dumps([scored.fingerprint, config.model_dump(mode="json"), recipe.data.facts()], sort_keys=True).encode()
    ).hexdigest()
    path = scored.folder / "scores" / f"{scored.role}.json"
    found = _read(path, key)
    if found is None and fabric.is_global_zero:
        _take(reuse, scored, key)
    fabric.barrier()
    found = _read(path, key)
    if found is None:
        segmenter = load_segmenter(recipe, scored, len(names)).to(fabric.device)
        found = _measure(scored, config, segmenter, datasets, fabric, watcher)
        if fabric.is_global_zero:
            _keep_pictures(scored, config, segmenter, datasets, fabric, colors)
            write_json(path, {"key": key, **found})
    models = results.get("models", {}) | {scored.role: _entry(recipe, scored, found)}
    student, teacher = (models.get(role, {}).get("mean_unseen") for role in ("student", "teacher"))
    return results | {
        "classes": list(names),
        "colors": colors,
        "source": [name for name in config.domains if name not in config.unseen + config.validation],
        "unseen": list(config.unseen),
        "validation": list(config.validation),
        "models": models,
        "retention": retention(student, teacher),
        "pictures": {
            "domains": {name: list(range(min(config.pictures, len(datasets[name])))) for name in config.domains}
        },
    }


def load_segmenter(recipe: Recipe, scored: Scored, num_classes: int) -> Segmenter:
    """The segmenter of a finished task stage, in evaluation mode."""
    model = recipe.teacher if scored.role == "teacher" else recipe.student
    assert model is not None
    config = model.encoder
    if scored.encoder is not None:
        config = config.model_copy(update={"weights": str(scored.encoder)})
    encoder = build_encoder(config, seed=derive_seed(recipe.seed, scored.role))
    segmenter = build_segmenter(model, encoder, num_classes, seed=0, stage=scored.role)
    load_decoder(segmenter.decoder, scored.decoder)
    return segmenter.eval()


def _open(recipe: Recipe, config: EvaluateConfig, domain: str, fabric: Fabric, watcher: Watcher) -> Dataset:
    selection = config.selection(domain)
    if fabric.is_global_zero:
        recipe.data.open(selection, watcher.work)
    fabric.barrier()
    dataset = recipe.data.open(selection)
    if dataset[0].label is None:
        raise UserError(f"evaluate: domain '{domain}' has no labels; take it out of 'domains'")
    return dataset


def _label_space(datasets: dict[str, Dataset]) -> tuple[tuple[str, ...], list[list[int]]]:
    first = next(iter(datasets.values()))
    return first.names, [[int(value) for value in color] for color in first.colors]


def _measure(
    scored: Scored,
    config: EvaluateConfig,
    segmenter: Segmenter,
    datasets: dict[str, Dataset],
    fabric: Fabric,
    watcher: Watcher,
) -> dict[str, Any]:
    loaders = {
        name: Loader(dataset, config.batch, fabric.global_rank, fabric.world_size) for name, dataset in datasets.items()
    }
    results: dict[str, DomainResult] = evaluate(
        segmenter,
        loaders,
        device=fabric.device,
        window=config.window,
        precision=fabric.autocast,
        progress=lambda name, done, total: watcher.work(f"scoring the {scored.role} on {name}", done, total or done),
    )
    domains = {name: result.as_dict() for name, result in results.items()}
    return {"domains": domains, "mean_unseen": summary(results, config.unseen)}


def _keep_pictures(
    scored: Scored,
    config: EvaluateConfig,
    segmenter: Segmenter,
    datasets: dict[str, Dataset],
    fabric: Fabric,
    colors: list[list[int]],
) -> None:
    """The first images of every domain, their truth and this segmenter's class maps, as PNG."""
    folder = scored.folder / "pictures"
    for name, dataset in datasets.items():
        for index in range(min(config.pictures, len(dataset))):
            sample = dataset[index]
            assert sample.label is not None
            image = torch.tensor(sample.image).permute(2, 0, 1)[None].to(fabric.device)
            with evaluating(segmenter), torch.inference_mode(), fabric.autocast():
                prediction = segmenter.predict(prepare(image), config.window)
            file = f"{name}-{index}.png"
            picture = Image.fromarray(sample.image)
            write_atomic(folder / "image" / file, lambda out, picture=picture: picture.save(out, "PNG"))
            save_label(folder / "truth" / file, sample.label, colors)
            save_label(folder / scored.role / file, prediction[0].cpu().numpy(), colors)


def _entry(recipe: Recipe, scored: Scored, found: dict[str, Any]) -> dict[str, Any]:
    model = recipe.teacher if scored.role == "teacher" else recipe.student
    title = (model.title if model else "") or scored.role.capitalize()
    parameters = {key: scored.parameters[key] for key in ("encoder", "decoder")}
    entry = {"title": title, "parameters": parameters, "seconds": scored.seconds}
    return entry | {key: found[key] for key in ("domains", "mean_unseen")}


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """Scores made by this very segmenter on these very images; None where there are none."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text at all
        found = None
    if not isinstance(found, dict):
        raise UserError(f"damaged scores {path}; delete the file to measure again")
    return found if found.get("key") == key else None


def _take(reuse: Sequence[Path], scored: Scored, key: str) -> None:
    """Copy the same scores and their pictures from another run, if there are some."""
    for other in reuse:
        path = other / "scores" / f"{scored.role}.json"
        if other != scored.folder and _read(path, key) is not None:
            for part in ("image", "truth", scored.role):
                if (other / "pictures" / part).is_dir():
                    shutil.copytree(other / "pictures" / part, scored.folder / "pictures" / part, dirs_exist_ok=True)
            text = path.read_bytes()
            write_atomic(scored.folder / "scores" / path.name, lambda file, text=text: file.write(text))
            return
