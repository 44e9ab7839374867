"""The demos: recipes that share a teacher, run one after another, and one report page for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segdistill.config import Config
from segdistill.recipe import Recipe, load
from segdistill.runlog import Named, Watcher
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


def run_demo(out: Path, recipes: Sequence[Recipe], watcher: Watcher) -> list[dict[str, Any]]:
    """Run ``recipes`` in subfolders of ``out``; each reuses the stages that another one has already computed."""
    folders = [out / recipe.name for recipe in recipes]
    for recipe in recipes:
        fingerprints(recipe)  # reads every weight file, so a missing one is reported before training starts
    results = []
    for recipe, folder in zip(recipes, folders, strict=True):
        others = [other for other in folders if other != folder]
        results.append(run(recipe, folder, reuse=others, watcher=Named(watcher, recipe.name)))
    return results
