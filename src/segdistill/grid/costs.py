"""The cost of a table: a stage that several runs share counts once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from segdistill.grid.table import Cell
from segdistill.runs.plan import Plan, make_plan


def plan_cells(cells: Sequence[Cell]) -> Plan:
    """One plan for all ``cells``: every stage, listed with the first run that has it, and all images to score.

    Raises :class:`segdistill.config.UserError` like :func:`segdistill.runs.plan.make_plan`. Work that an earlier call
    has finished still counts.
    """
    stages, evaluation, weights, seen = [], dict[str, int](), dict[str, None](), set[str]()
    doubts, plans, plan, speed = dict[str, None](), dict[str, Plan](), None, None
    for cell in {cell.key: cell for cell in cells}.values():
        alike = cell.recipe.model_dump_json(exclude={"seed"})  # another seed costs the same
        if alike not in plans:
            plans[alike] = make_plan(cell.recipe, speed=speed, doubts=cell.doubts)
        plan = plans[alike]
        speed = plan.speed
        doubts |= dict.fromkeys(plan.doubts)
        title = ", ".join(filter(None, (cell.recipe.title, cell.value, f"seed {cell.seed}")))
        for stage, fingerprint in zip(plan.stages, cell.prints, strict=True):
            if fingerprint not in seen:
                seen.add(fingerprint)
                stages.append(replace(stage, label=f"{title}: {stage.label}"))
        for domain, images in plan.evaluation.items():
            evaluation[domain] = evaluation.get(domain, 0) + images
        weights |= dict.fromkeys(plan.weights)
    assert plan is not None, "a table has rows"
    return Plan(tuple(stages), evaluation, tuple(weights), plan.speed, plan.device, tuple(doubts))
