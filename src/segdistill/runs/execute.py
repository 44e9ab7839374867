"""Runs a recipe in a run folder: skips finished stages, and writes scores and pictures at the end."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml

from segdistill import environment
from segdistill.config import UserError, parse
from segdistill.files import damaged_file, read_signed, sealed_text, sha256, text_is_whole, write_bytes, write_signed
from segdistill.locking import locked
from segdistill.recipe import Recipe, dump, last_learner
from segdistill.runlog import Quiet, RunLog, Watcher
from segdistill.runs.check import check
from segdistill.runs.fabric import explained, make_fabric
from segdistill.runs.folder import (
    Finished,
    Origin,
    fingerprints,
    handed_encoder,
    learned,
    model_of,
    origin_of,
    read_manifest,
    read_stage,
    settled,
    stage_folder,
    stage_seed,
    start_head,
    write_results,
)
from segdistill.stages import StageConfig, StageContext
from segdistill.stages.base import CHECKPOINT, ModelConfig

if TYPE_CHECKING:
    from lightning.fabric import Fabric

KEPT = (".safetensors", ".json", ".png")
"""Suffixes of a stage's results, whose digests its manifest stores."""
COSMETIC = (
    "title", "paper", "evaluate", "workers", "log_every", "checkpoint_every", "accelerator", "compile", "strategy",
    "tracker",
)  # fmt: skip


@environment.within_memory()
def run(recipe: Recipe, folder: Path, *, reuse: Sequence[Path] = (), watcher: Watcher | None = None) -> dict[str, Any]:
    """Run ``recipe`` in ``folder`` and return the content of its ``results.json``.

    ``reuse`` names other run folders whose finished stages are copied if they are the same computation. Raises a
    :class:`UserError` for anything the user can fix; finished stages are kept.
    """
    watcher, recipe = watcher or Quiet(), settled(recipe, folder)
    for line in check(recipe):  # before any training time is spent
        watcher.warn(line)
    fabric = make_fabric(recipe)
    with explained(), locked(folder) if fabric.is_global_zero else nullcontext():
        return _run(recipe, folder, reuse, fabric, watcher)


def _run(recipe: Recipe, folder: Path, reuse: Sequence[Path], fabric: Fabric, watcher: Watcher) -> dict[str, Any]:
    """:func:`run`, holding the folder's lock."""
    first = fabric.is_global_zero
    origins = [origin_of(recipe, stage) for stage in recipe.stages]
    prints = fingerprints(recipe, origins)
    if first:
        _open_folder(recipe, folder, prints)
    fabric.barrier()
    settings = recipe.model_dump(mode="json")
    log = RunLog(folder, watcher, writes=first, tracker=recipe.tracker, settings=settings)
    try:
        manifests = []
        for number, stage in enumerate(recipe.stages):
            context = _context(recipe, number, prints[number], folder, fabric, log)
            label = context.label
            manifest = read_stage(context.folder, prints[number])
            if manifest is None and first and _take(reuse, context, prints[number]):
                manifest = read_stage(context.folder, prints[number])
                watcher.stage(label, stage.steps, "reused")
            elif manifest is not None:
                watcher.stage(label, stage.steps, "finished")
            fabric.barrier()
            if manifest is None:
                manifest = read_stage(context.folder, prints[number])
            if manifest is None:
                watcher.stage(label, stage.steps, "running")
                manifest = _execute(stage, context, origins[number])
            manifests.append(manifest)
        finished = Finished(recipe, folder, manifests, prints)
        scored = [model_of(finished, role, folder, place=place) for role, place in finished.places().items()]
        results = write_results(recipe, scored, manifests, folder, fabric=fabric, watcher=watcher, reuse=reuse)
        log.scores(results)
    except BaseException:
        log.close(failed=True)
        raise
    log.close()
    return results


def loading_processes(workers: int | Literal["auto"], device: torch.device) -> int:
    """``workers`` as a number, for one of the training processes of this machine."""
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return 0
    return min(16, max(1, environment.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _context(recipe: Recipe, number: int, fingerprint: str, folder: Path, fabric: Fabric, log: RunLog) -> StageContext:
    place, teacher = stage_folder(recipe, folder, number), last_learner(recipe.stages, "teacher", number)
    handed = {role: handed_encoder(recipe, folder, number, role) for role in ("student", "teacher")}
    predicts = recipe.stages[number].predicts
    last = None if predicts is None else last_learner(recipe.stages, predicts, number)
    return StageContext(
        fabric=fabric,
        source=recipe.data,
        seed=stage_seed(recipe, recipe.stages[number]),
        folder=place,
        label=place.name,
        fingerprint=fingerprint,
        student=recipe.student,
        teacher=recipe.teacher,
        handed={role: path for role, path in handed.items() if path is not None},
        start_head=start_head(recipe, folder, number),
        teacher_head=None if teacher is None else stage_folder(recipe, folder, teacher) / "head.safetensors",
        finished=_finished(recipe, folder, predicts, last),
        earlier={each.name: stage_folder(recipe, folder, n) for n, each in enumerate(recipe.stages[:number])},
        log=log,
        progress=log.watcher.work,
        log_every=recipe.log_every,
        checkpoint_every=recipe.checkpoint_every,
        workers=loading_processes(recipe.workers, fabric.device),
        classes=recipe.classes,
        compiles=recipe.compile,
        shards=recipe.strategy == "fsdp",
    )


def _finished(recipe: Recipe, folder: Path, role: str | None, last: int | None) -> ModelConfig | None:
    """The network of ``role`` as stage ``last`` trained it, or else from the recipe's files."""
    if last is not None:
        return learned(recipe, folder, last)
    return None if role is None else getattr(recipe, role)


def _open_folder(recipe: Recipe, folder: Path, prints: Sequence[str]) -> None:
    """Check that the run folder belongs to this recipe; write recipe and environment if they are missing or damaged.

    A damaged recipe file is ignored; the fingerprints of the finished stages decide whether the folder matches.
    """
    path, text = folder / "recipe.yaml", dump(recipe)
    if path.exists():
        old = _old_recipe(path)
        if old is None:
            for number, fingerprint in enumerate(prints):
                read_stage(stage_folder(recipe, folder, number), fingerprint)
            logging.getLogger(__name__).warning("warning: %s is damaged; writing it again", path)
        else:
            new = yaml.safe_load(text)
            changed = [key for key in new if key not in COSMETIC and old.get(key) != new[key]]
            if changed:
                raise UserError(
                    f"{folder} holds a run with different {', '.join(changed)}; choose another --out or delete it"
                )
    try:
        write_bytes(path, sealed_text(text).encode())
        about = folder / "environment.json"
        if about.exists() and read_signed(about) is None:
            logging.getLogger(__name__).warning("warning: %s is damaged; writing it again", about)
            about.unlink()
        if not about.exists():
            write_signed(about, environment.describe())
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None


def _old_recipe(path: Path) -> dict[str, Any] | None:
    """The settings stored in a run folder, with the defaults of newer ones; None if the file is damaged."""
    data = path.read_bytes()
    try:
        old = yaml.safe_load(data.decode()) if text_is_whole(data) else None
    except (yaml.YAMLError, ValueError, RecursionError):
        old = None
    if not isinstance(old, dict):
        return None
    try:
        return yaml.safe_load(dump(parse(Recipe, old)))
    except UserError:  # it has a setting that no longer exists
        return old


def _execute(stage: StageConfig, context: StageContext, origin: Origin) -> dict[str, Any]:
    """Run one stage and write its manifest, which marks it as finished."""
    context.folder.mkdir(parents=True, exist_ok=True)
    environment.forget_peak()
    result = stage.run(context)
    manifest = {
        "name": stage.name,
        "type": stage.kind,
        "fingerprint": context.fingerprint,
        "origin": origin,
        "seed": context.seed,
        "steps": stage.steps,
        "batch": stage.batch,
        "seconds": round(result.seconds, 2),
        "parameters": result.parameters,
        "classes": result.classes,
        "weights": result.weights,
        "facts": result.facts,
        "memory_mb": environment.peak_memory_mb(),
        "settings": stage.model_dump(mode="json"),
        "commit": environment.commit(),
        "hardware": environment.hardware(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": _digests(context.folder, result.folders),
    }
    context.fabric.barrier()
    if context.fabric.is_global_zero:
        write_signed(context.folder / "manifest.json", manifest)
        shutil.rmtree(context.folder / CHECKPOINT, ignore_errors=True)
    context.fabric.barrier()
    return manifest


def _digests(folder: Path, below: Sequence[str]) -> dict[str, str]:
    """SHA-256 of a stage's results, by their path in its folder; of the folders ``below`` it every file counts."""
    files = [path for path in folder.glob("*") if path.suffix in KEPT]
    files += [path for name in below for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(files)}


def _take(reuse: Sequence[Path], context: StageContext, fingerprint: str) -> bool:
    """Copy the same finished stage from another run, if there is one; skip a damaged one with a warning."""
    for other in reuse:
        for path in sorted(other.glob("stages/*/manifest.json")):
            if path.parent.name.startswith(".") or path.parent == context.folder:
                continue
            try:
                manifest = read_manifest(path.parent)
                if manifest is None or manifest["fingerprint"] != fingerprint:
                    continue
                if damaged := damaged_file(path.parent, manifest["files"]):
                    raise UserError(f"{damaged} does not match the digest in its manifest")
            except UserError as error:
                logging.getLogger(__name__).warning("warning: --reuse: skipped: %s", error)
                continue
            temporary = context.folder.with_name(f".{context.folder.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(path.parent, temporary)
            shutil.rmtree(context.folder, ignore_errors=True)
            temporary.rename(context.folder)
            return True
    return False
