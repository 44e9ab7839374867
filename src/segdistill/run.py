"""Executes a recipe in a run folder: finished stages are skipped, the scores and pictures written at the end."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from segdistill import environment
from segdistill.config import UserError
from segdistill.files import sha256, write_atomic, write_json
from segdistill.recipe import Recipe, dump, last_task, reads_logits
from segdistill.runlog import Quiet, RunLog, Watcher
from segdistill.scoring import Scored, score
from segdistill.stages.base import StageConfig, StageContext, StageResult
from segdistill.stages.distill import DistillConfig, run_distill
from segdistill.stages.task import TaskConfig, run_task
from segdistill.weights import weights_path

FORMAT = 1
COSMETIC = ("title", "paper", "evaluate", "workers", "log_every", "checkpoint_every", "accelerator")


@dataclass(frozen=True)
class Finished:
    """A run whose stages are finished: what they were, where they stand, and what their manifests say."""

    recipe: Recipe
    folder: Path
    manifests: list[dict[str, Any]]
    prints: list[str]


def run(recipe: Recipe, folder: Path, *, reuse: Sequence[Path] = (), watcher: Watcher | None = None) -> dict[str, Any]:
    """Run ``recipe`` in ``folder`` and return what stands in its ``results.json``.

    ``reuse`` names other run folders whose finished stages are taken where they are the same computation. Raises
    :class:`UserError` for anything the user can mend; what is finished by then stays.
    """
    watcher = watcher or Quiet()
    fabric = make_fabric(recipe)
    first = fabric.is_global_zero
    if first:
        _open_folder(recipe, folder)
    fabric.barrier()
    log = RunLog(folder, watcher, writes=first)
    prints = fingerprints(recipe)
    try:
        manifests = []
        for number, stage in enumerate(recipe.stages):
            context = _context(recipe, number, prints[number], folder, fabric, log)
            label = context.label
            manifest = _finished(context.folder, prints[number])
            if manifest is None and first and _take(reuse, context, prints[number]):
                manifest = _finished(context.folder, prints[number])
                watcher.stage(label, stage.steps, "reused")
            elif manifest is not None:
                watcher.stage(label, stage.steps, "finished")
            fabric.barrier()
            if manifest is None:
                manifest = _finished(context.folder, prints[number])
            if manifest is None:
                watcher.stage(label, stage.steps, "running")
                manifest = _execute(stage, context, prints[number])
            manifests.append(manifest)
        return _results(Finished(recipe, folder, manifests, prints), folder, fabric, reuse, watcher)
    finally:
        log.close()


def evaluate_run(
    finished: Recipe, changed: Recipe, folder: Path, out: Path, *, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Score the segmenters of the run in ``folder`` with the data and evaluation settings of ``changed``.

    ``finished`` is the recipe that the run was made with; its stages must be finished. The scores go to ``out``.
    """
    trained = [
        key for key in ("teacher", "student", "stages", "seed") if getattr(finished, key) != getattr(changed, key)
    ]
    if trained:
        raise UserError(f"evaluate changes no {', '.join(trained)}: only evaluate.* and data.* may be given")
    if changed.evaluate is None:
        raise UserError("nothing to evaluate: give evaluate.domains=[...]")
    fabric = make_fabric(changed)
    prints, manifests = fingerprints(finished), []
    for number in range(len(finished.stages)):
        path = _stage_folder(finished, folder, number)
        manifest = _finished(path, prints[number])
        if manifest is None:
            raise UserError(f"stage {path} is not finished; run the recipe to its end first")
        manifests.append(manifest)
    return _results(Finished(changed, folder, manifests, prints), out, fabric, (), watcher or Quiet())


def make_fabric(recipe: Recipe) -> Fabric:
    """One process, or those that ``torchrun`` has started."""
    if recipe.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator=cuda, but torch sees no GPU here; use accelerator=cpu or auto")
    logging.getLogger("lightning_utilities.core.rank_zero").setLevel(logging.WARNING)  # tells the precision each time
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    fabric = Fabric(
        accelerator=recipe.accelerator,
        devices=local,
        num_nodes=max(1, processes // local),
        strategy=DDPStrategy(find_unused_parameters=True) if processes > 1 else "auto",
        precision=recipe.precision,
    )
    fabric.launch()
    return fabric


def fingerprints(recipe: Recipe) -> list[str]:
    """One hash per stage of everything that its outcome depends on, the stages before it included."""
    prints: list[str] = []
    student_parent = ""
    for number, stage in enumerate(recipe.stages):
        reads_student = not (isinstance(stage, TaskConfig) and stage.model == "teacher")
        reads_teacher = not reads_student or getattr(stage, "method", None) is not None
        facts = {
            "format": FORMAT,
            "stage": stage.model_dump(mode="json"),
            "data": recipe.data.facts(*stage.selections()),
            "seed": stage_seed(recipe, stage),
            "precision": recipe.precision,
            "student": _model_facts(recipe.student) if reads_student else None,
            "teacher": _model_facts(recipe.teacher) if reads_teacher else None,
            "parent": student_parent if reads_student else "",
        }
        teacher = last_task(recipe.stages, "teacher", number) if reads_logits(stage) else None
        if teacher is not None:
            facts["teacher_decoder"] = prints[teacher]
        prints.append(hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest())
        if reads_student:
            student_parent = prints[-1]
    return prints


def stage_seed(recipe: Recipe, stage: StageConfig) -> int:
    """The stage's own seed, where it has one."""
    return recipe.seed if stage.seed is None else stage.seed


def _model_facts(model: Any) -> Any:
    if model is None:
        return None
    facts = model.model_dump(mode="json", exclude={"title"})
    weights = model.encoder.weights
    if weights != "random":
        facts["sha256"] = sha256(weights_path(weights, model.encoder.name))
    return facts


def _context(recipe: Recipe, number: int, fingerprint: str, folder: Path, fabric: Fabric, log: RunLog) -> StageContext:
    place, teacher = _stage_folder(recipe, folder, number), last_task(recipe.stages, "teacher", number)
    return StageContext(
        fabric=fabric,
        source=recipe.data,
        seed=stage_seed(recipe, recipe.stages[number]),
        folder=place,
        label=place.name,
        fingerprint=fingerprint,
        student=recipe.student,
        teacher=recipe.teacher,
        student_weights=student_weights(recipe, folder, number),
        teacher_decoder=None if teacher is None else _stage_folder(recipe, folder, teacher) / "decoder.safetensors",
        log=log,
        progress=log.watcher.work,
        log_every=recipe.log_every,
        checkpoint_every=recipe.checkpoint_every,
        workers=recipe.workers,
    )


def student_weights(recipe: Recipe, folder: Path, before: int) -> Path | None:
    """The encoder file left by the last stage before number ``before`` that trained the student's encoder."""
    for number in reversed(range(before)):
        stage = recipe.stages[number]
        if isinstance(stage, DistillConfig) or (stage.model == "student" and not stage.freeze_encoder):
            return _stage_folder(recipe, folder, number) / "encoder.safetensors"
    return None


def _stage_folder(recipe: Recipe, folder: Path, number: int) -> Path:
    return folder / "stages" / f"{number:02d}-{recipe.stages[number].name}"


def _open_folder(recipe: Recipe, folder: Path) -> None:
    """Create the run folder or check that it belongs to this recipe."""
    path = folder / "recipe.yaml"
    text = dump(recipe)
    if path.exists():
        import yaml

        try:
            old = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError):
            old = None
        if not isinstance(old, dict):
            raise UserError(f"damaged {path}; delete the folder {folder} or choose another --out")
        new = yaml.safe_load(text)
        changed = [key for key in new if key not in COSMETIC and old.get(key) != new[key]]
        if changed:
            raise UserError(f"{folder} holds a run with other {', '.join(changed)}; choose another --out or delete it")
    try:
        write_atomic(path, lambda file: file.write(text.encode()))
        if not (folder / "environment.json").exists():
            write_json(folder / "environment.json", environment.describe())
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None


def _execute(stage: StageConfig, context: StageContext, fingerprint: str) -> dict[str, Any]:
    """Run one stage and write its manifest, the sign that it is finished."""
    context.folder.mkdir(parents=True, exist_ok=True)
    result: StageResult
    if isinstance(stage, DistillConfig):
        result = run_distill(stage, context)
    else:
        assert isinstance(stage, TaskConfig)
        result = run_task(stage, context)
    manifest = {
        "name": stage.name,
        "type": stage.model_dump()["type"],
        "fingerprint": fingerprint,
        "seed": context.seed,
        "steps": stage.steps,
        "batch": stage.batch,
        "seconds": round(result.seconds, 2),
        "parameters": result.parameters,
        "classes": result.classes,
        "weights": result.weights,
        "memory_mb": environment.peak_memory_mb(),
        "settings": stage.model_dump(mode="json"),
        "commit": environment.commit(),
        "hardware": environment.hardware(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {path.name: sha256(path) for path in sorted(context.folder.glob("*.safetensors"))},
    }
    context.fabric.barrier()
    if context.fabric.is_global_zero:
        write_json(context.folder / "manifest.json", manifest)
        shutil.rmtree(context.folder / "checkpoint", ignore_errors=True)
    context.fabric.barrier()
    return manifest


def _finished(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The manifest of a finished stage, None where it is not finished; its files must be what it says."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    manifest = _manifest(path)
    if manifest["fingerprint"] != fingerprint:
        raise UserError(f"{folder} was made with other settings or weights; choose another --out or delete it")
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise UserError(f"{folder / name} is not the file that its manifest names; delete {folder} to run it again")
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    """The content of a stage's manifest; one line where it is damaged."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text at all
        manifest = None
    if not isinstance(manifest, dict) or not {"fingerprint", "files", "seconds", "parameters"} <= manifest.keys():
        raise UserError(f"damaged manifest {path}; delete the folder {path.parent} to run the stage again")
    return manifest


def _take(reuse: Sequence[Path], context: StageContext, fingerprint: str) -> bool:
    """Copy the same finished stage from another run, if there is one."""
    for other in reuse:
        for path in sorted(other.glob("stages/*/manifest.json")):
            if path.parent != context.folder and _manifest(path)["fingerprint"] == fingerprint:
                temporary = context.folder.with_name(f".{context.folder.name}.tmp")
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.copytree(path.parent, temporary)
                shutil.rmtree(context.folder, ignore_errors=True)
                temporary.rename(context.folder)
                return True
    return False


def _results(finished: Finished, out: Path, fabric: Fabric, reuse: Sequence[Path], watcher: Watcher) -> dict[str, Any]:
    """Score the teacher's and the student's last segmenters and write ``out/results.json``."""
    recipe = finished.recipe
    results: dict[str, Any] = {"format": FORMAT, "name": recipe.name, "title": recipe.title or recipe.name}
    results["seed"] = recipe.seed
    results["paper"] = None if recipe.paper is None else recipe.paper.model_dump(mode="json")
    results["stages"] = [
        {key: manifest[key] for key in ("name", "type", "steps", "seconds")} for manifest in finished.manifests
    ]
    if recipe.evaluate is not None:
        began = time.perf_counter()
        for role in ("teacher", "student"):
            scored = _scored(finished, role, out)
            if scored is not None:
                results = score(recipe, scored, fabric=fabric, results=results, reuse=reuse, watcher=watcher)
        results["evaluation_seconds"] = round(time.perf_counter() - began, 2)
    results["environment"] = environment.describe()
    if fabric.is_global_zero:
        write_json(out / "results.json", results)
    fabric.barrier()
    return results


def _scored(finished: Finished, role: str, out: Path) -> Scored | None:
    """The last finished segmenter of ``role``: its decoder, its encoder and what it cost."""
    stages = finished.recipe.stages
    last = last_task(stages, role, len(stages))
    if last is None:
        return None
    own = [
        manifest["seconds"]
        for stage, manifest in zip(stages[: last + 1], finished.manifests, strict=False)
        if (isinstance(stage, TaskConfig) and stage.model == "teacher") == (role == "teacher")
    ]
    return Scored(
        role=role,
        folder=out,
        decoder=_stage_folder(finished.recipe, finished.folder, last) / "decoder.safetensors",
        encoder=student_weights(finished.recipe, finished.folder, last + 1) if role == "student" else None,
        fingerprint=finished.prints[last],
        parameters=finished.manifests[last]["parameters"],
        classes=tuple(finished.manifests[last].get("classes", ())),
        seconds=round(sum(own), 2),
    )
