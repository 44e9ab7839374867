"""The run folder: stage folders, their manifests, and the models they contain.

A stage is identified by its fingerprint, a hash of everything that its result depends on. The manifest also stores the
part of it that comes from files, its ``origin``, so that a run can be checked without its training images and start
weights.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdistill import environment
from segdistill.config import UserError
from segdistill.files import damaged_file, facts_digest, input_digest, read_signed, text_is_whole, write_signed
from segdistill.ops import derive_seed
from segdistill.recipe import Recipe, last_learner, load
from segdistill.runlog import Watcher
from segdistill.runs.score import Scored, score
from segdistill.stages.base import ModelConfig, StageConfig
from segdistill.weights import digest_of, head_path, weights_path

if TYPE_CHECKING:  # importing lightning takes seconds
    from lightning.fabric import Fabric

FORMAT = 1
Origin = dict[str, Any]
"""``data``: facts about a stage's images; ``student`` and ``teacher``: SHA-256 of their start weights, by part;
``own``: of weights that are a stage's own, if it has any."""


@dataclass(frozen=True)
class Finished:
    """The finished stages of a run, from the first up to some stage, and their manifests."""

    recipe: Recipe
    folder: Path
    manifests: list[dict[str, Any]]
    prints: list[str]

    @property
    def stages(self) -> tuple[StageConfig, ...]:
        """The finished stages."""
        return self.recipe.stages[: len(self.manifests)]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles with a finished model: networks with a task stage, and those whose head comes from a file.

        A student's head from a file is finished only if no stage trains its encoder.
        """
        trains = {stage.first for stage in self.stages if stage.trains}
        models = {"teacher": self.recipe.teacher, "student": self.recipe.student}
        given = {role for role, model in models.items() if model is not None and model.head_weights is not None
                 and (role == "teacher" or role not in trains)}  # fmt: skip
        trained = {stage.learner for stage in self.stages}
        return tuple(role for role in ("teacher", "student") if role in given | trained)

    def places(self, role: str | None = None) -> dict[str, str]:
        """Each role to score -> its place in the results, where "student" is the model under test.

        That is the student, or the teacher if it is the only model; with ``role``, that one alone.
        """
        if role is None and self.roles == ("teacher",):
            role = "teacher"
        return {each: each for each in self.roles} if role is None else {role: "student"}


def load_finished(folder: Path) -> Recipe:
    """The recipe of the run in ``folder``; its images need not exist."""
    path = folder / "recipe.yaml"
    if path.is_file() and not text_is_whole(path.read_bytes()):
        raise UserError(f"{path} is damaged or was edited; run the command again to rewrite it")
    return load(path)


AUTOMATIC = ("bf16-mixed", "32-true")
"""What ``precision: auto`` may become."""


def settled(recipe: Recipe, folder: Path | None = None) -> Recipe:
    """``recipe`` with a precision for ``auto``: that of the run in ``folder``, or else one that is fast here."""
    if recipe.precision != "auto":
        return recipe
    if folder is not None and (folder / "recipe.yaml").is_file():
        with suppress(UserError):  # damaged: :func:`segdistill.runs.execute.run` says so
            return recipe.model_copy(update={"precision": load_finished(folder).precision})
    fast = environment.computes_bf16(recipe.accelerator)
    return recipe.model_copy(update={"precision": AUTOMATIC[0] if fast else AUTOMATIC[1]})


def stage_folder(recipe: Recipe, folder: Path, number: int) -> Path:
    """The folder of stage ``number`` in the run folder."""
    return folder / "stages" / f"{number:02d}-{recipe.stages[number].name}"


def giver(recipe: Recipe, before: int, role: str, part: str) -> int | None:
    """The last stage before number ``before`` that hands over the ``part`` of ``role``, if any."""
    numbers = [n for n, stage in enumerate(recipe.stages[:before]) if stage.first == role and part in stage.gives]
    return numbers[-1] if numbers else None


def handed_encoder(recipe: Recipe, folder: Path, before: int, role: str = "student") -> Path | None:
    """The encoder file of ``role`` after the stages before number ``before``; None: its start weights."""
    number = giver(recipe, before, role, "encoder")
    return None if number is None else stage_folder(recipe, folder, number) / "encoder.safetensors"


def start_head(recipe: Recipe, folder: Path, number: int) -> Path | None:
    """The head file that stage ``number`` starts from; None: a fresh head, or the file that the recipe names."""
    role = recipe.stages[number].learner
    place = None if role is None else giver(recipe, number, role, "head")
    return None if place is None else stage_folder(recipe, folder, place) / "head.safetensors"


def stage_seed(recipe: Recipe, stage: StageConfig) -> int:
    """The stage's own seed, or the recipe's."""
    return recipe.seed if stage.seed is None else stage.seed


def origin_of(recipe: Recipe, stage: StageConfig) -> Origin:
    """The part of a stage's fingerprint that comes from files: facts about its images, hashes of its start weights."""
    roles = stage.roles
    digests = {role: model_digests(getattr(recipe, role)) for role in ("student", "teacher") if role in roles}
    if own := stage.own_digests():
        digests["own"] = own
    return {"data": recipe.data.facts(*(selection for _, selection, _ in stage.reads())), **digests}


def fingerprints(recipe: Recipe, origins: Sequence[Origin] | None = None) -> list[str]:
    """One hash per stage of everything that its result depends on, including the stages before it.

    ``origins`` belong to the first stages, and only those are hashed; by default all are computed from the files.
    """
    prints: list[str] = []
    student_parent, precision = "", settled(recipe).precision
    origins = [origin_of(recipe, stage) for stage in recipe.stages] if origins is None else origins
    for number, (stage, origin) in enumerate(zip(recipe.stages, origins, strict=False)):
        roles = stage.roles
        facts = {
            "format": FORMAT,
            "stage": [stage.kind, stage.model_dump(mode="json", exclude_defaults=True)],
            "task": recipe.task,
            "data": origin["data"],
            "seed": stage_seed(recipe, stage),
            "precision": precision,
            "student": _model_facts(recipe.student, origin["student"]) if "student" in roles else None,
            "teacher": _model_facts(recipe.teacher, origin["teacher"]) if "teacher" in roles else None,
            "parent": student_parent if "student" in roles else "",
        }
        teacher = last_learner(recipe.stages, "teacher", number) if stage.reads_logits else None
        if teacher is not None:
            facts["teacher_head"] = prints[teacher]
        start = None if stage.learner is None else giver(recipe, number, stage.learner, "head")
        if start is not None:
            facts["start_head"] = prints[start]
        if "own" in origin:
            facts["own"] = origin["own"]
        facts |= _earlier_prints(recipe, number, prints)
        prints.append(facts_digest(facts))
        if "student" in roles:
            student_parent = prints[-1]
    return prints


def _earlier_prints(recipe: Recipe, number: int, prints: Sequence[str]) -> dict[str, Any]:
    """The fingerprints of other earlier stages on which the result of stage ``number`` depends."""
    stage, facts = recipe.stages[number], {}
    adapted = giver(recipe, number, "teacher", "encoder") if "teacher" in stage.roles else None
    if adapted is not None:
        facts["teacher_encoder"] = prints[adapted]
    before = None if stage.predicts is None else last_learner(recipe.stages, stage.predicts, number)
    if before is not None:
        facts["predicts"] = prints[before]
    names = [each.name for each in recipe.stages[:number]]
    if stage.earlier:
        facts["earlier"] = [prints[names.index(name)] for name in stage.earlier]
    return facts


def model_digests(model: ModelConfig | None) -> dict[str, str]:
    """SHA-256 of the files that a network starts from; a :class:`UserError` if one is missing."""
    digests: dict[str, str] = {}
    if model is not None and model.encoder.weights != "random":
        digests["sha256"] = digest_of(weights_path(model.encoder.weights, model.encoder.name))
    if model is not None and model.head_weights is not None:
        digests["head_sha256"] = input_digest(head_path(model.head_weights))
    return digests


def read_stage(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """The manifest of a finished stage, None if it is not finished; its files must match their digests."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    if manifest["fingerprint"] != fingerprint:
        raise UserError(f"{folder} was made with other settings or weights; choose another --out or delete it")
    if damaged := damaged_file(folder, manifest["files"]):
        raise UserError(f"{damaged} does not match the digest in its manifest; delete {folder} to run the stage again")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The content of a stage's manifest, None if there is none; a :class:`UserError` if it is damaged."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    manifest = read_signed(path)
    needed = {"fingerprint", "files", "seconds", "parameters", "name", "type", "steps"}
    if manifest is None or not needed <= manifest.keys() or not isinstance(manifest["files"], dict):
        raise UserError(f"damaged manifest {path}; delete the folder {folder} to run the stage again")
    return manifest


def model_of(finished: Finished, role: str, out: Path, *, place: str | None = None) -> Scored:
    """The finished model of ``role``: from its last task stage, or else from the recipe's weight files.

    ``place`` is its key in the results: its own role by default, "student" for the model under test.
    """
    recipe, stages = finished.recipe, finished.stages
    last = last_learner(stages, role, len(stages))
    if last is None:
        return model_from_files(recipe, role, out, place=place)
    own = [
        manifest["seconds"]
        for stage, manifest in zip(stages[: last + 1], finished.manifests, strict=False)
        if (stage.learner == "teacher") == (role == "teacher")
    ]
    return Scored(
        role=place or role,
        task=recipe.task,
        title=getattr(recipe, role).title or role.capitalize(),
        model=learned(recipe, finished.folder, last),
        seed=derive_seed(stage_seed(recipe, stages[last]), role),
        folder=out,
        fingerprint=finished.prints[last],
        parameters=finished.manifests[last]["parameters"],
        classes=tuple(finished.manifests[last].get("classes", ())),
        seconds=round(sum(own), 2),
    )


def learned(recipe: Recipe, folder: Path, number: int) -> ModelConfig:
    """The network that stage ``number`` trained, with its files in the run folder."""
    stage, own = recipe.stages[number], stage_folder(recipe, folder, number)
    assert stage.learner is not None
    trained = "encoder" in stage.trains
    encoder = own / "encoder.safetensors" if trained else handed_encoder(recipe, folder, number, stage.learner)
    model: ModelConfig = getattr(recipe, stage.learner)
    return model.filled(encoder=encoder, head=own / "head.safetensors")


def model_from_files(recipe: Recipe, role: str, out: Path, *, place: str | None = None) -> Scored:
    """The network of ``role`` with the encoder and head weights that the recipe names."""
    model: ModelConfig = getattr(recipe, role)
    if model.head_weights is None:
        raise UserError(f"the {role}'s head has no weights: set {role}.head.weights to a task checkpoint")
    return Scored(
        role=place or role,
        task=recipe.task,
        title=model.title or role.capitalize(),
        model=model,
        seed=derive_seed(recipe.seed, role),
        folder=out,
        fingerprint=facts_digest(_model_facts(model, model_digests(model))),
        parameters=None,
        classes=(),
        seconds=None,
    )


def learns_from_teacher(recipe: Recipe) -> bool:
    """Whether the student gets anything from a teacher: by a method, its weights, or pseudo-labels."""
    own = [stage for stage in recipe.stages if stage.first == "student"]
    labels = {stage.name for stage in recipe.stages if stage.gives_labels and stage.predicts != "student"}
    read = {name for stage in own for _, name in stage.pseudo_labelled()}
    return bool(read & labels) or any("teacher" in stage.roles for stage in own)


def write_results(
    recipe: Recipe,
    scored: Sequence[Scored],
    manifests: Sequence[dict[str, Any]],
    out: Path,
    *,
    fabric: Fabric,
    watcher: Watcher,
    reuse: Sequence[Path] = (),
) -> dict[str, Any]:
    """Score the models and write ``out/results.json``; returns its content."""
    about = environment.describe()  # now, since it names the start
    results: dict[str, Any] = {"format": FORMAT, "name": recipe.name, "title": recipe.title or recipe.name}
    results["seed"] = recipe.seed
    results["distilled"] = learns_from_teacher(recipe)
    results["paper"] = None if recipe.paper is None else recipe.paper.model_dump(mode="json")
    shown = ("name", "type", "steps", "seconds")
    results["stages"] = [{key: manifest[key] for key in shown} for manifest in manifests]
    for entry, manifest in zip(results["stages"], manifests, strict=True):
        entry |= {"facts": manifest["facts"]} if manifest.get("facts") else {}
    if recipe.evaluate is not None:
        began = time.perf_counter()
        for each in scored:
            results = score(recipe, each, fabric=fabric, results=results, reuse=reuse, watcher=watcher)
        results["evaluation_seconds"] = round(time.perf_counter() - began, 2)
    results["environment"] = about
    if fabric.is_global_zero:
        write_signed(out / "results.json", results)
    fabric.barrier()
    return results


def _model_facts(model: ModelConfig | None, digests: dict[str, str]) -> dict[str, Any] | None:
    return None if model is None else model.model_dump(mode="json", exclude={"title"}, exclude_defaults=True) | digests
