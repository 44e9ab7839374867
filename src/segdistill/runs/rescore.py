"""Scores trained models: a run folder, one of its stages, or a checkpoint file with a matching recipe.

Needs only the images to score and the weights that no run folder holds: those of the teacher's encoder and of a
student encoder that was never trained. In the results, the model under test has the role "student".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from segdistill.config import UserError, choose, expanded, nearest, parse
from segdistill.data.corrupted import CorruptConfig
from segdistill.data.dataset import DataSelection, DataSource, Split
from segdistill.environment import within_memory
from segdistill.locking import locked
from segdistill.overrides import apply
from segdistill.recipe import Recipe, change, load
from segdistill.runlog import Quiet, Watcher
from segdistill.runs.check import check
from segdistill.runs.fabric import explained, make_fabric
from segdistill.runs.folder import (
    Finished,
    Origin,
    fingerprints,
    load_finished,
    model_digests,
    model_from_files,
    model_of,
    origin_of,
    read_manifest,
    read_stage,
    stage_folder,
    write_results,
)
from segdistill.runs.score import Scored
from segdistill.stages.base import ModelConfig, need, need_head

ROLES = {"student": "student", "teacher": "teacher"}
FILES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Wanted:
    """What to score on: names of datasets below ``root``, or the recipe's own domains; and overrides of settings."""

    data: Sequence[str] = ()
    root: Path | None = None
    overrides: Sequence[str] = ()

    @staticmethod
    def corrupted(names: str, severities: str | None = None, images: int | None = None) -> str:
        """The override for corruptions: names and severities separated by commas, images per domain."""
        values: dict[str, Any] = {"names": [name.strip() for name in names.split(",")]}
        if severities is not None:
            values["severities"] = [_number(each.strip()) for each in severities.split(",")]
        if images is not None:
            values["images"] = images
        parse(CorruptConfig, values, "corrupt")  # its mistakes, before anything is read
        return f"evaluate.corrupt={json.dumps(values)}"

    def applied(self, recipe: Recipe) -> Recipe:
        """``recipe`` with this evaluation."""
        if self.data:
            return retarget(recipe, self.data, self.root, self.overrides)
        if self.root is not None:
            raise UserError("--root only works with --data NAME ...; name the datasets to score")
        return change(recipe, self.overrides)

    def folder(self, base: Path) -> Path:
        """The folder for the scores: ``base``, or a folder below it if datasets are named."""
        return base / "on" / "-".join(name.replace(":", "_") for name in self.data) if self.data else base


@within_memory()
def rescore(
    what: Path,
    wanted: Wanted,
    *,
    recipe: Path | None = None,
    role: str | None = None,
    out: Path | None = None,
    watcher: Watcher | None = None,
) -> Path:
    """Score the run folder, stage folder or checkpoint file ``what``; returns the folder of the scores.

    ``recipe`` describes the network of a checkpoint file. ``role`` scores one network alone; the default is the student
    together with the teacher for a run, and the student for a file. The default of ``out`` is the run folder, its
    ``on/STAGE`` or ``on/ROLE`` for a stage or a single role, and ``NAME-scores`` beside a checkpoint file.
    """
    if role is not None:
        choose("role", role, ROLES)
    if what.is_file():
        if recipe is None:
            raise UserError(
                f"{what} is a checkpoint file: describe its network with --recipe RECIPE, or give its run or stage"
            )
        out = out or wanted.folder(what.with_name(f"{what.stem}-scores"))
        evaluate_file(what, recipe, wanted, out, role=role or "student", watcher=watcher)
        return out
    if recipe is not None:
        raise UserError(f"--recipe is for a checkpoint file ({', '.join(FILES)}), but {what} is not one")
    run, label = _place(what)
    finished = load_finished(run)
    upto, part = len(finished.stages), label or role
    if label is not None:
        upto = 1 + _stage_number(finished, run, label, role)
        role = "teacher" if finished.stages[upto - 1].learner == "teacher" else None
    out = out or wanted.folder(run if part is None else run / "on" / part)
    changed = wanted.applied(finished)
    evaluate_run(finished, changed, run, out, upto=upto, role=role, watcher=watcher)
    return out


def trained(what: Path, role: str | None = None) -> tuple[Finished, Scored]:
    """The run in the folder ``what``, and its model of ``role``: by default the student, or else the teacher.

    ``what`` is a run folder, or the folder of one of its task stages for that stage's network. No image is read.
    """
    if role is not None:
        choose("role", role, ROLES)
    folder, label = _place(what)
    recipe = load_finished(folder)
    upto = len(recipe.stages)
    if label is not None:
        upto = 1 + _stage_number(recipe, folder, label, role)
        role = recipe.stages[upto - 1].learner
    run, origins = _read_run(recipe, recipe, folder, upto)
    wanted = role or next((each for each in ("student", "teacher") if each in run.roles), None)
    if wanted is None or wanted not in run.roles:
        has = ", ".join(run.roles) or "none"
        raise UserError(f"{what} has no trained head for the {wanted or 'student'}; available: {has}")
    scored = model_of(run, wanted, folder)
    _check_start(run, origins, wanted, scored)
    return run, scored


def evaluate_run(
    finished: Recipe,
    changed: Recipe,
    folder: Path,
    out: Path,
    *,
    upto: int | None = None,
    role: str | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Score the models of the run in ``folder`` with the data and evaluation settings of ``changed``.

    ``finished`` is the run's own recipe; its stages, or the first ``upto`` of them, must be finished. ``role`` scores
    one network alone. The scores are written to ``out``.
    """
    trained = [
        key for key in ("teacher", "student", "stages", "seed") if getattr(finished, key) != getattr(changed, key)
    ]
    if trained:
        raise UserError(f"evaluate cannot change {', '.join(trained)}; only evaluate.* and data.* settings are allowed")
    _need_evaluation(changed)
    run, origins = _read_run(finished, changed, folder, len(finished.stages) if upto is None else upto)
    if not run.roles or (role or run.roles[0]) not in run.roles:
        has = ", ".join(run.roles) or "none"
        raise UserError(f"{folder} has no trained head for the {role or 'student'}; available: {has}")
    places = run.places(role)
    scored = [model_of(run, each, out, place=place) for each, place in places.items()]
    for each, model in zip(places, scored, strict=True):
        _check_start(run, origins, each, model)
    before = finished.model_copy(update={"stages": finished.stages[: len(run.manifests)]})
    return _scores(changed, scored, before, run.manifests, out, watcher or Quiet())


def evaluate_file(
    file: Path, recipe: Path, wanted: Wanted, out: Path, *, role: str = "student", watcher: Watcher | None = None
) -> dict[str, Any]:
    """Score a task checkpoint (``backbone.*`` and ``decode_head.*``) as the network of ``role`` in ``recipe``.

    Overrides may name further files: ``student.encoder.weights=...`` if the file has no backbone; with weights for
    ``teacher.encoder`` and ``teacher.head``, the teacher is scored as well. Which domains are unseen follows from the
    training data of the recipe's stages.
    """
    scoring = [setting for setting in wanted.overrides if setting.startswith("evaluate.")]
    networks = [setting for setting in wanted.overrides if setting not in scoring]
    plain = load(recipe, networks)
    need_head(need(getattr(plain, role), role, "evaluate"), role, "evaluate")
    given = {setting.partition("=")[0].strip() for setting in networks}
    keys = [key for part in ("encoder", "head") if (key := f"{role}.{part}.weights") not in given]
    plain = change(plain, [f"{key}={json.dumps(str(file))}" for key in keys])
    changed = Wanted(wanted.data, wanted.root, scoring).applied(plain)
    _need_evaluation(changed)
    scored = [model_from_files(changed, role, out, place="student")]
    if role == "student" and changed.teacher is not None and changed.teacher.head_weights is not None:
        scored.insert(0, model_from_files(changed, "teacher", out))
    return _scores(changed, scored, plain, (), out, watcher or Quiet())


def _scores(
    recipe: Recipe,
    scored: Sequence[Scored],
    trained: Recipe,
    manifests: Sequence[dict[str, Any]],
    out: Path,
    watcher: Watcher,
) -> dict[str, Any]:
    """Score, holding the lock of ``out``; ``trained`` has the stages that the networks come from."""
    for line in check(recipe, trained=trained):
        watcher.warn(line)
    fabric = make_fabric(recipe)
    with explained(), locked(out) if fabric.is_global_zero else nullcontext():
        return write_results(recipe, scored, manifests, out, fabric=fabric, watcher=watcher)


def _place(what: Path) -> tuple[Path, str | None]:
    """The run folder, and the stage's label if ``what`` is a stage folder."""
    what = expanded(what)
    if (what / "recipe.yaml").exists():
        return what, None
    stage = what.resolve()
    if stage.parent.name == "stages" and (stage.parents[1] / "recipe.yaml").exists():
        return stage.parents[1], stage.name
    if (what / "manifest.json").exists():
        raise UserError(f"{what} is a stage outside its run folder, so its recipe is missing; give the run folder")
    raise UserError(
        f"no recipe at {what / 'recipe.yaml'}; give a run folder, the folder of one of its stages, or a checkpoint file"
    )


def _stage_number(recipe: Recipe, run: Path, label: str, role: str | None) -> int:
    """The number of the task stage in the folder ``label``."""
    labels = [stage_folder(recipe, run, number).name for number in range(len(recipe.stages))]
    tasks = [name for number, name in enumerate(labels) if recipe.stages[number].learner]
    if role is not None:
        raise UserError(f"--role {role} works for runs and files only; stage {label} has one network")
    if label not in tasks:
        raise UserError(f"stage {label} trains no head: {nearest(label, tasks)}allowed: {', '.join(tasks) or 'none'}")
    return labels.index(label)


def _need_evaluation(recipe: Recipe) -> None:
    if recipe.evaluate is None:
        raise UserError("nothing to evaluate: give --data NAME ..., or evaluate.domains=[...]")


def _read_run(finished: Recipe, changed: Recipe, folder: Path, count: int) -> tuple[Finished, list[Origin]]:
    """The first ``count`` stages, which must be finished and match the recipe, and their origins.

    If a manifest of an earlier version stores no origin, it is computed from the files.
    """
    places = [stage_folder(finished, folder, number) for number in range(count)]
    origins = []
    for place, stage in zip(places, finished.stages, strict=False):
        manifest = read_manifest(place)
        if manifest is None:
            raise UserError(f"stage {place} is not finished; run the recipe to its end first")
        origins.append(manifest.get("origin") or origin_of(finished, stage))
    prints = fingerprints(finished, origins)
    manifests = [read_stage(place, each) for place, each in zip(places, prints, strict=True)]
    return Finished(changed, folder, [manifest for manifest in manifests if manifest is not None], prints), origins


def _check_start(run: Finished, origins: Sequence[Mapping[str, Any]], role: str, scored: Scored) -> None:
    """Weights that no run folder holds must exist and be the ones that the run started from."""
    model: ModelConfig = getattr(run.recipe, role)
    outside = {
        key: path
        for key, path, used in (
            ("sha256", model.encoder.weights, scored.model.encoder.weights),
            ("head_sha256", model.head_weights, scored.model.head_weights),
        )
        if path is not None and path == used
    }
    try:
        digests = model_digests(scored.model) if outside else {}
    except UserError as error:
        alone = "; or score only the student with --role student" if role == "teacher" else ""
        raise UserError(f"the run folder does not hold the {role}'s start weights: {error}{alone}") from None
    known = next((origin[role] for origin in origins if role in origin), {})
    for key, path in outside.items():
        if key in known and digests.get(key) != known[key]:
            raise UserError(f"'{path}' is not the file that the {role} started from; restore the original")


def retarget(recipe: Recipe, items: Sequence[str], root: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """``recipe`` scored on other data: ``items`` have the form NAME[:SUBSET][:SPLIT], such as ``acdc:night:val``.

    The images come from the recipe's own source. If that is the built-in world and it knows none of the names, they
    come from the dataset files under ``root``, with all images of a split. Validation domains of the recipe stay
    validation domains, domains that a stage was trained on are listed for reference; the others are unseen.
    ``overrides`` are applied last. The training images need not exist.
    """
    splits = dict(map(_read_item, items))
    if len(splits) < len(items):
        raise UserError(f"--data {' '.join(items)}: one domain appears twice; score its splits in two commands")
    values = recipe.model_dump(mode="json")
    config, data = values["evaluate"] or {}, values["data"]
    source = recipe.data
    files = data["source"] == "files"
    at_home = files or (root is None and any(map(partial(_knows, source), splits)))
    if not at_home:
        data = {"source": "files", "size": data["size"]}
    if root is not None:
        data = data | {"root": str(root)}
    if files or not at_home:
        config |= {"images": None, "batch": 4}
    validation = [name for name in splits if at_home and name in config.get("validation", [])]
    seen = [name for name, split in splits.items() if recipe.trained_on(name, split or source.evaluation_split(name))]
    unseen = [name for name in splits if name not in validation and not (at_home and name in seen)]
    config |= {"domains": list(splits), "unseen": unseen, "validation": validation, "split": None}
    if config.get("corrupt"):
        config |= {"corrupt": config["corrupt"] | {"domains": []}}
    config |= {"data": None if data == values["data"] else data}
    config |= {"splits": {name: split for name, split in splits.items() if split is not None}}
    values["evaluate"] = config
    for override in overrides:
        apply(values, override)
    return parse(Recipe, values)


def _number(text: str) -> int | str:
    """A whole number; other text stays as it is, for the message of the setting that it is for."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else text


def _knows(source: DataSource, name: str) -> bool:
    """Whether ``source`` has images of a domain ``name``."""
    return not source.problems(DataSelection(domains=(name,), images=1), labelled=False)


def _read_item(item: str) -> tuple[str, Split | None]:
    """The domain and the split of NAME[:SUBSET][:SPLIT]."""
    name, _, last = item.rpartition(":")
    split = next((split for split in get_args(Split) if split == last), None)
    domain = name if split else item
    if not all(domain.split(":")):
        raise UserError(f"--data '{item}': write NAME[:SUBSET][:SPLIT], such as cityscapes:val or acdc:night")
    return domain, split
