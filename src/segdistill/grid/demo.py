"""The demos: recipes that share a teacher, for one report page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segdistill.config import Config, UserError
from segdistill.grid.execute import run_cells
from segdistill.grid.table import Cell
from segdistill.recipe import Recipe, load
from segdistill.runlog import Named, Watcher
from segdistill.runs.check import check
from segdistill.runs.execute import fingerprints, run
from segdistill.shipped import DEMOS, recipes_folder

SMOKE = ("data.size=[32,64]", "evaluate.images=2", "evaluate.pictures=1", "log_every=1", "checkpoint_every=2")


def load_arms(
    overrides: Sequence[str] = (), *, task: str = "semantic", smoke: bool = False, seed: int = 0
) -> list[Recipe]:
    """The demo's recipes; ``smoke`` keeps all their parts but trains each stage for only two steps."""
    recipes = []
    for arm in DEMOS[task]:
        path = recipes_folder() / f"{arm}.yaml"
        changes = [f"seed={seed}", *overrides]
        if smoke:
            changes += [*SMOKE, *shortened(load(path))]
        recipes.append(load(path, changes))
    return recipes


def shortened(recipe: Recipe, steps: int = 2, images: int = 4) -> list[str]:
    """Overrides that cut every stage to ``steps`` steps on ``images`` images."""
    changes = []
    for stage in recipe.stages:
        if stage.steps:
            changes += [f"stages.{stage.name}.steps={steps}", f"stages.{stage.name}.batch=2"]
        for part, value in (("stem_steps", steps), ("calibrate", images)):
            if hasattr(stage, part):
                changes.append(f"stages.{stage.name}.{part}={value}")
        changes.append(f"stages.{stage.name}.data.images={images}")
        for part in type(stage).model_fields:
            own, place = getattr(stage, part), f"stages.{stage.name}.{part}"
            if not isinstance(own, Config):
                continue
            changes += [f"{place}.batch=2"] if getattr(own, "batch", None) else []
            changes += [f"{place}.steps={steps}"] if getattr(own, "steps", None) else []
            changes += [f"{place}.data.images={images}"] if hasattr(own, "data") else []
    return changes


class Arm(Cell):
    """A run of a demo; its folder has the name of its recipe."""

    @property
    def folder_name(self) -> str:
        """The recipe's name."""
        return self.recipe.name


def run_demo(out: Path, recipes: Sequence[Recipe], watcher: Watcher, *, jobs: int = 1, gpus: int = 0) -> None:
    """Run ``recipes`` in subfolders of ``out``, ``jobs`` at a time; stages that several share are computed once.

    A small network has little work for a second thread, so runs side by side take less time than one after the other.
    Raises a :class:`UserError` with the errors of all runs that failed.
    """
    doubts = [tuple(check(recipe)) for recipe in recipes]
    prints = [tuple(fingerprints(recipe)) for recipe in recipes]  # reads every weight file, before training starts
    if jobs == 1:
        for recipe in recipes:
            others = [out / other.name for other in recipes if other is not recipe]
            run(recipe, out / recipe.name, reuse=others, watcher=Named(watcher, recipe.name))
        return
    for line in dict.fromkeys(line for lines in doubts for line in lines):
        watcher.warn(line)
    arms = [Arm(n, "", recipe.seed, recipe, prints[n], recipe.name, doubts[n]) for n, recipe in enumerate(recipes)]
    arms.sort(key=lambda arm: -arm.steps)  # the longest first, so that no core is left with it at the end
    outcomes = run_cells(arms, out, jobs=jobs, gpus=gpus, watch=watcher.work)
    if failed := [f"{outcome.cell.recipe.name}: {outcome.error}" for outcome in outcomes if outcome.error]:
        raise UserError("; ".join(failed))
