"""Packs a finished run's student encoder for shipping: half-precision safetensors and a manifest of how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segdistill.config import UserError
from segdistill.encoders import build_encoder
from segdistill.files import read_metrics_line, read_signed, sha256, write_json
from segdistill.finished import damaged_file, load_finished, read_manifest, stage_folder, student_weights
from segdistill.recipe import Recipe
from segdistill.weights import save_encoder


def pack(run: Path, out: Path) -> dict[str, Any]:
    """Write ``out`` (``.safetensors``) and its manifest (``.json``) from the run folder ``run``; returns the manifest.

    Weights are stored as fp16 and are cast up when they are loaded. Raises :class:`UserError` for an unfinished run.
    """
    recipe = load_finished(run)
    weights = student_weights(recipe, run, len(recipe.stages))
    if weights is None or not weights.is_file() or not (run / "results.json").is_file():
        raise UserError(f"{run} has no finished student encoder; run its recipe to the end first")
    assert recipe.student is not None
    encoder = build_encoder(recipe.student.encoder.model_copy(update={"weights": str(weights)}), seed=0)
    path, about = out.with_suffix(".safetensors"), describe(recipe, run)
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
        if damaged := damaged_file(folder, manifest):
            raise UserError(f"{damaged} is not the file that its manifest names; delete {folder} to run it again")
        keys = ("name", "type", "steps", "batch", "seconds", "hardware", "commit", "finished")
        entry = {key: manifest[key] for key in keys}
        stages.append(entry | {"settings": manifest["settings"], "metrics": last.get(folder.name, {})})
    results = read_signed(run / "results.json")
    if results is None:
        raise UserError(f"damaged {run / 'results.json'}; give the run's command again, which writes it anew")
    models = {
        role: {"miou": {name: score["miou"] for name, score in model["domains"].items()}}
        for role, model in results.get("models", {}).items()
    }
    return {
        "recipe": f"recipes/{recipe.name}.yaml",
        "seed": recipe.seed,
        "precision": recipe.precision,
        "data": recipe.data.model_dump(mode="json"),
        "stages": stages,
        "scores": models,
        "licence": "Apache-2.0",
    }


def _last_metrics(path: Path) -> dict[str, dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        entry = read_metrics_line(line)
        if entry is not None:
            last[entry["stage"]] = {key: entry.get(key) for key in ("step", "loss", "terms", "diagnostics")}
    return last
