"""Checks everything that a recipe reads before anything is trained: images, labels, start weights.

``segdistill run``, its ``--dry-run``, ``bench`` and ``evaluate`` share this check; parsing a recipe opens no file.
"""

from __future__ import annotations

from functools import cache

from segdistill.config import UserError
from segdistill.encoders.anytimm import blueprint
from segdistill.recipe import Recipe
from segdistill.runs.folder import model_digests
from segdistill.runs.overlap import overlaps, still_there
from segdistill.stages.base import ModelConfig
from segdistill.stages.fitting import sketch
from segdistill.stages.task import build_model, check_head
from segdistill.tasks.table import TASKS


def check(recipe: Recipe, *, trained: Recipe | None = None) -> list[str]:
    """Warnings about inputs that work but look like mistakes, one line each.

    With ``trained``, whose stages are finished, only the evaluation is checked, and compared with the images of these
    stages that are still there. Raises a :class:`UserError` that lists everything that is missing or unreadable.
    """
    readings = recipe.readings(training=trained is None)
    problems = [f"{each.where}: {line}" for each in readings for line in each.problems()]
    problems += _unseen_problems(recipe)
    before = [] if trained is None else still_there(trained)
    shared = [] if problems else overlaps(recipe, before + readings)
    problems += [line for line, unseen in shared if unseen]
    if trained is None and not problems:
        problems = _label_problems(recipe) + _weight_problems(recipe)
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))
    doubts = [line for line, _ in shared]
    doubts += [line for each in readings for line in each.doubts()]
    return list(dict.fromkeys(doubts))


def _unseen_problems(recipe: Recipe) -> list[str]:
    """Domains listed as unseen that a stage trains on."""
    config, source, lines = recipe.evaluate, recipe.scored_source, []
    if config is None or type(source) is not type(recipe.data):
        return lines
    for name in config.unseen:
        if stage := recipe.trained_on(name, config.selection(source, name).split):
            lines.append(f"stage {stage} is trained on '{name}'; remove it from 'unseen' to list it for reference only")
    return [f"evaluate: {line}" for line in lines]


def _label_problems(recipe: Recipe) -> list[str]:
    """Images that learn from pseudo-labels which no stage predicts for them."""
    lines = []
    reads = {stage.name: [selection for _, selection, _ in stage.reads()] for stage in recipe.stages}
    for stage in recipe.stages:
        for selection, giver in stage.pseudo_labelled():
            given = {image for each in reads[giver] for image in recipe.data.listing(each)}
            images = list(recipe.data.listing(selection))
            if missing := [image for image in images if image not in given]:
                lines.append(
                    f"stage {stage.name}: stage {giver} labels only {len(images) - len(missing)} of its {len(images)} "
                    f"unlabelled images (missing, for example: {missing[0]}); select the same images in both"
                )
    return lines


def _weight_problems(recipe: Recipe) -> list[str]:
    """Missing start weights, methods and heads that do not fit their networks, heads that do not match their file."""
    problems = []
    for stage in recipe.stages:
        try:
            stage.own_digests()
            models = {role: getattr(recipe, role) for role in stage.roles}
            if models and all(model is not None for model in models.values()):
                stage.misfits(models, recipe.classes())
        except UserError as error:
            problems.append(f"stage {stage.name}: {error}")
    for role in dict.fromkeys(role for stage in recipe.stages for role in stage.roles):
        model = getattr(recipe, role)
        try:
            model_digests(model)
            if model.head_weights is not None:
                check_head(TASKS[recipe.task], model, recipe.classes())
            elif model.head is not None and any(stage.learner == role for stage in recipe.stages):
                _check_fresh_head(recipe.task, role, model, recipe.classes())
        except UserError as error:
            problems.append(str(error))
    return problems


@cache
def _check_fresh_head(task: str, role: str, model: ModelConfig, classes: tuple[str, ...]) -> None:
    """Raise a :class:`UserError` if the head does not fit its encoder."""
    try:
        with blueprint():
            build_model(TASKS[task], model, sketch(model.encoder), classes, seed=0, stage="none")
    except UserError as error:
        raise UserError(f"{role}.head: {error}") from None
