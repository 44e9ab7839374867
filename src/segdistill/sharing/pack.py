"""Packs a finished run for shipping: its model as one file with a model card, or its student's encoder alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from segdistill import environment
from segdistill.config import UserError, choose, expanded, parse
from segdistill.data.catalog.record import class_colors
from segdistill.encoders import Encoder, build_encoder
from segdistill.files import damaged_file, facts_digest, read_metrics_line, read_signed, sha256, write_json
from segdistill.models import Model, View
from segdistill.recipe import Recipe, change
from segdistill.runs.evaluation import retention, retention_interval
from segdistill.runs.folder import (
    Finished,
    fingerprints,
    handed_encoder,
    load_finished,
    model_of,
    origin_of,
    read_manifest,
    read_stage,
    stage_folder,
)
from segdistill.runs.score import load_model, read_samples
from segdistill.sharing.card import write_card
from segdistill.sharing.licences import chain, student_licence
from segdistill.sharing.packed import load_packed, packed_path, read_packed, tensors_digest, write_packed
from segdistill.stages.base import ModelConfig, count
from segdistill.weights import save_encoder

__all__ = [
    "card_path", "check_free", "data_digest", "describe", "load_packed", "model_in", "open_run", "pack", "pack_encoder",
    "packed_path", "read_packed", "recipe_in", "tensors_digest", "with_root",
]  # fmt: skip

MARK = b"library_name: segdistill"  # in every card
PLACES = ("root", "roots")  # settings that name folders of one machine
STAGE_KEYS = ("name", "type", "steps", "batch", "hardware", "commit", "metrics")
PACKAGES = ("version", "python", *environment.PACKAGES)


def pack(
    run: Path, out: Path, *, role: str | None = None, half: bool = False, force: bool = False
) -> tuple[Path, dict[str, Any]]:
    """Write the model of the run folder ``run`` to ``out`` and its model card beside it; returns path and header.

    ``out`` is ``NAME.safetensors`` (its card: ``NAME.md``) or a folder (``model.safetensors`` and ``README.md``).
    ``role``: student or teacher, by default the student where there is one. Files that are there stay, without
    ``force``. The same run gives the same bytes.
    """
    path = out if out.suffix == ".safetensors" else out / "model.safetensors"
    _may_write((path, card_path(path)), force=force)
    finished = open_run(run)
    model, metadata = model_in(finished, role)
    write_packed(path, model, metadata, half=half)
    header = read_packed(path)[1]
    write_card(card_path(path), header, file=path.name, digest=sha256(path))
    return path, header


def card_path(packed: Path) -> Path:
    """Where the card of a packed file stands: ``README.md`` beside ``model.safetensors``, else ``NAME.md``."""
    return packed.with_name("README.md") if packed.stem == "model" else packed.with_suffix(".md")


def open_run(folder: Path) -> Finished:
    """The run in ``folder``, all of whose stages must be finished and be what their manifests say."""
    folder = expanded(folder)
    recipe = load_finished(folder)
    places = [stage_folder(recipe, folder, number) for number in range(len(recipe.stages))]
    found = [read_manifest(place) for place in places]
    for place, manifest in zip(places, found, strict=True):
        if manifest is None:
            raise UserError(f"stage {place} is not finished; run the recipe to its end first")
    stages = zip(recipe.stages, found, strict=True)
    origins = [(manifest or {}).get("origin") or origin_of(recipe, stage) for stage, manifest in stages]
    prints = fingerprints(recipe, origins)
    manifests = [read_stage(place, each) for place, each in zip(places, prints, strict=True)]
    return Finished(recipe, folder, [manifest for manifest in manifests if manifest is not None], prints)


def model_in(finished: Finished, role: str | None = None) -> tuple[Model, dict[str, Any]]:
    """The network of ``role`` in evaluation mode, and what a packed file says of it."""
    roles = {name: name for name in reversed(finished.roles)}  # the student first
    if not roles:
        raise UserError(f"{finished.folder} has no finished model: no task stage trained a head")
    role = choose("role of this run", role or next(iter(roles)), roles)
    scored = model_of(finished, role, finished.folder)
    results = _results(finished.folder)
    classes = list(scored.classes) or list(results.get("classes", ()))
    if not classes:
        raise UserError(f"{finished.folder} does not say its classes; run its recipe again")
    network = load_model(scored, classes)
    encoder: Encoder = network.encoder  # type: ignore[assignment]  # of a recipe's model
    model: ModelConfig = getattr(finished.recipe, role).bare()
    colors = results.get("colors") or [list(color) for color in class_colors(len(classes))]
    links = chain(finished.recipe)
    return network, {
        "task": finished.recipe.task,
        "name": finished.recipe.name,
        "title": finished.recipe.title or finished.recipe.name,
        "role": role,
        "model": model.model_dump(mode="json") | {"taps": list(network.taps)},
        "classes": classes,
        "colors": colors,
        "preprocessing": _preprocessing(finished.recipe, encoder),
        "grid": "x".join(map(str, encoder.grid)),
        "parameters": {"encoder": count(encoder), "head": count(network.head)},
        "history": _history(finished),
        "scores": {name: _scores(entry, results) for name, entry in results.get("models", {}).items()},
        "domains": {key: results[key] for key in ("source", "validation", "unseen") if key in results},
        "kept": _kept(finished.folder, results),
        "licence": student_licence(links),
        "licences": [link.as_dict() for link in links],
        "rests_on": _rests_on(finished, role),
    }


def recipe_in(header: Mapping[str, Any], root: Path | None = None) -> Recipe:
    """The recipe in a packed file's header, with its images below ``root``; they need not be there."""
    recipe = parse(Recipe, yaml.safe_load(header["history"]["recipe"]))
    return with_root(recipe, root)


def with_root(recipe: Recipe, root: Path | None) -> Recipe:
    """The recipe with its images below ``root``; None: where it says."""
    if root is None:
        return recipe
    place = json.dumps(str(expanded(root).resolve()), ensure_ascii=False)  # YAML would read a bare "a #1" as "a"
    return change(recipe, [f"data.root={place}"])


def portable(recipe: Recipe) -> str:
    """The recipe as YAML without the places of this machine: roots are left out, of an absolute path its name stays."""
    return yaml.safe_dump(_portable(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items() if key not in PLACES}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def check_free(paths: Iterable[Path], *, force: bool) -> None:
    """A :class:`UserError` where files are there, without ``force``."""
    there = [str(path) for path in paths if path.exists()]
    if there and not force:
        raise UserError(f"{' and '.join(there)} exist{'s' * (len(there) == 1)}; choose another name or give --force")


def _may_write(paths: Sequence[Path], *, force: bool) -> None:
    """A :class:`UserError` where files are there; ``force`` replaces them, but for a README.md that is no card."""
    check_free(paths, force=force)
    for path in paths:
        if path.suffix == ".md" and path.is_file() and MARK not in path.read_bytes():
            raise UserError(f"{path} is no model card of ours and is not replaced; choose another name or folder")


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder} has no results.json; run its recipe to the end first")
    return _signed(path)


def _signed(path: Path) -> dict[str, Any]:
    """The content of a file that a run wrote."""
    content = read_signed(path)
    if content is None:
        raise UserError(f"damaged {path}; give the run's command again, which writes it anew")
    return content


def _preprocessing(recipe: Recipe, encoder: Encoder) -> dict[str, Any]:
    """How images are shown to the network: of the first domain that is scored, and of each."""
    config, source = recipe.evaluate, recipe.scored_source
    views: dict[str, Any] = {}
    for name in config.domains if config is not None else ():
        assert config is not None
        views[name] = _view(View.of(source.protocol(name), config.window, config.resize))
    first = next(iter(views.values()), _view(View()))
    mean, std = ([round(float(v), 6) for v in values.flatten()] for values in (encoder.mean, encoder.std))
    return {
        "input": "RGB; 8-bit values divided by 255; mean and std are applied by the encoder",
        "mean": mean,
        "std": std,
        "size": list(recipe.data.size),
        **first,
        "domains": views,
    }


def _view(view: View) -> dict[str, Any]:
    window = view.window and {"size": list(view.window.size), "stride": list(view.window.stride)}
    return {"resize": view.resize and list(view.resize), "window": window}


def _history(finished: Finished) -> dict[str, Any]:
    """Recipe, seed, stages and versions; no times, so that a repeated run has the same history."""
    about = describe(finished.recipe, finished.folder)
    stages = [{key: stage[key] for key in STAGE_KEYS} for stage in about["stages"]]
    path = finished.folder / "environment.json"
    known = _signed(path) if path.is_file() else {}
    return {
        "recipe": portable(finished.recipe),
        "seed": finished.recipe.seed,
        "precision": finished.recipe.precision,
        "commit": known.get("commit", "unknown"),
        "hardware": known.get("hardware", "unknown"),
        "versions": {key: known[key] for key in PACKAGES if key in known},
        "stages": stages,
    }


def _scores(entry: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Any]:
    """A model's scores by domain: those that its task describes, with values by class."""
    by_class = [each["by_class"] for each in results["metrics"].values() if "by_class" in each]
    keys = (*results["metrics"], f"{results['primary']}_interval", *by_class, "images")
    domains = {name: {key: score.get(key) for key in keys} for name, score in entry["domains"].items()}
    keys = ("title", "parameters", "mean_unseen", "mean_unseen_interval")
    return {key: entry.get(key) for key in keys} | {"domains": domains}


def _kept(folder: Path, results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Student / teacher: mean of the unseen domains and every domain, with paired intervals; None without a teacher."""
    models, paths = results.get("models", {}), [folder / "scores" / f"{role}.npz" for role in ("student", "teacher")]
    if not {"student", "teacher"} <= models.keys() or not all(path.is_file() for path in paths):
        return None
    images = [read_samples(path, results.get("task", "semantic")) for path in paths]
    domains = {}
    for name in models["student"]["domains"]:
        student, teacher = (models[role]["domains"][name][results["primary"]] for role in ("student", "teacher"))
        interval = retention_interval(*images, unseen=[name])
        domains[name] = {"retention": retention(student, teacher), "interval": interval}
    return {"unseen": results["retention"], "interval": results["retention_interval"], "domains": domains}


def data_digest(recipe: Recipe, number: int) -> str:
    """SHA-256 of what is known of the images of stage ``number``: which they are, their classes, how they are read."""
    return facts_digest(recipe.data.facts(*(selection for _, selection, _ in recipe.stages[number].reads())))


def _rests_on(finished: Finished, role: str) -> list[dict[str, str]]:
    """Every file and list that the weights come from, with its SHA-256; ``name`` is relative to the run folder."""
    recipe, found = finished.recipe, []
    starts: dict[tuple[str, str], str] = {}
    for number, manifest in enumerate(finished.manifests):
        place = stage_folder(recipe, finished.folder, number)
        origin = manifest.get("origin", {})
        for each in ("teacher", "student"):
            starts |= {(each, key): value for key, value in origin.get(each, {}).items()}
        for name, digest in sorted(manifest["files"].items()):
            found.append({"what": "stage", "name": f"stages/{place.name}/{name}", "sha256": digest})
        for path in sorted(place.glob("*.txt")):
            found.append({"what": "images", "name": f"stages/{place.name}/{path.name}", "sha256": sha256(path)})
        if "data" in origin:
            found.append({"what": "data", "name": place.name, "sha256": facts_digest(origin["data"])})
    for (each, key), digest in starts.items():
        model: ModelConfig = getattr(recipe, each)
        source = model.encoder.weights if key == "sha256" else str(model.head_weights)
        part = "encoder" if key == "sha256" else "head"
        found.append({"what": f"{each} {part}", "name": _portable(source), "sha256": digest})
    for path in sorted(finished.folder.glob("scores/*")):
        found.append({"what": "scores", "name": f"scores/{path.name}", "sha256": sha256(path)})
    return found


def pack_encoder(run: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write ``out`` (``.safetensors``) and its manifest (``.json``) from the run folder ``run``; returns the manifest.

    The student's encoder alone, as fp16 that is cast up when it is loaded. Raises :class:`UserError` for an unfinished
    run, and for files that are there, without ``force``.
    """
    run, path = expanded(run), out.with_suffix(".safetensors")
    _may_write((path, path.with_suffix(".json")), force=force)
    recipe = load_finished(run)
    weights = handed_encoder(recipe, run, len(recipe.stages))
    if weights is None or not weights.is_file() or not (run / "results.json").is_file():
        raise UserError(f"{run} has no finished student encoder; run its recipe to the end first")
    assert recipe.student is not None
    encoder = build_encoder(recipe.student.encoder.model_copy(update={"weights": str(weights)}), seed=0)
    about = describe(recipe, run)
    save_encoder(encoder, path, half=True)
    manifest = about | {"encoder": recipe.student.encoder.name, "sha256": sha256(path)}
    write_json(path.with_suffix(".json"), manifest)
    return manifest


def describe(recipe: Recipe, run: Path) -> dict[str, Any]:
    """Recipe, seed, stages with steps, seconds, hardware and commit, and the last metrics of each."""
    stages = []
    last = _last_metrics(run / "metrics.jsonl")
    for number in range(len(recipe.stages)):
        folder = stage_folder(recipe, run, number)
        manifest = read_manifest(folder)
        if manifest is None:
            raise UserError(f"stage {folder} is not finished; run the recipe to its end first")
        if damaged := damaged_file(folder, manifest["files"]):
            raise UserError(f"{damaged} is not the file that its manifest names; delete {folder} to run it again")
        keys = ("name", "type", "steps", "batch", "seconds", "hardware", "commit", "finished")
        entry = {key: manifest[key] for key in keys}
        stages.append(entry | {"settings": manifest["settings"], "metrics": last.get(folder.name, {})})
    results = _results(run)
    models = {
        role: {results["primary"]: {name: score[results["primary"]] for name, score in model["domains"].items()}}
        for role, model in results.get("models", {}).items()
    }
    links = chain(recipe)
    return {
        "recipe": recipe.name,
        "recipe_yaml": portable(recipe),
        "seed": recipe.seed,
        "precision": recipe.precision,
        "data": _portable(recipe.data.model_dump(mode="json")),
        "stages": stages,
        "scores": models,
        "licence": student_licence(links),
        "licences": [link.as_dict() for link in links],
    }


def _last_metrics(path: Path) -> dict[str, dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        entry = read_metrics_line(line)
        if entry is not None:
            last[entry["stage"]] = {key: entry.get(key) for key in ("step", "loss", "terms", "diagnostics")}
    return last
