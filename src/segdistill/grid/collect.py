"""Collects a table's runs: one entry per row and sweep value, over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from segdistill.config import UserError
from segdistill.grid.execute import Outcome
from segdistill.grid.significance import leads
from segdistill.grid.table import TableConfig
from segdistill.results import Arm, Comparison, ModelResult, Row, Run, arm_of, load_run


def collect_table(table: TableConfig, outcomes: Sequence[Outcome]) -> Comparison:
    """Read the folders of the finished cells and compare the best rows with the others."""
    runs: dict[tuple[int, str, int], Run] = {}
    rows = tuple(Row(row.title, row.group, row.baseline, table.place(row.group), row.paper) for row in table.rows)
    errors = []
    for outcome in outcomes:
        cell = outcome.cell
        if outcome.error is None:
            runs[cell.row, cell.value, cell.seed] = load_run(outcome.folder)
        else:
            value = f", {cell.value}" if cell.value else ""
            errors.append(f"{rows[cell.row].full_title}{value}, seed {cell.seed}: {outcome.error}")
    runs = dict(sorted(runs.items()))
    values = tuple(table.sweep.values) if table.sweep else ("",)
    arms = {
        (number, value): arm_of(row.title, own, _group_teachers(rows, row, value, runs))
        for number, row in enumerate(rows)
        for value in values
        if (own := [run for key, run in runs.items() if key[:2] == (number, value)])
    }
    found = Comparison(
        rows=rows,
        arms=arms,
        teachers=_teachers(values, runs),
        runs=runs,
        title=table.title,
        sweep=table.sweep.title if table.sweep else "",
        values=values,
        seeds=table.seeds,
        errors=tuple(errors),
        config=table.model_dump(mode="json", exclude_defaults=True),
    )
    return replace(found, leads=leads(found))


def check_paper(table: TableConfig) -> None:
    """Raise a :class:`UserError` if the table names rows that the paper does not have, before anything runs."""
    for row in table.rows:
        place = table.place(row.group)
        if row.paper and place is None:
            raise UserError(f"row '{row.title}' names a row of a paper, but the table has no 'paper'")
        if place is not None:
            block = place.block_of()
            if row.paper:
                block.row(row.paper)


def _group_teachers(
    rows: Sequence[Row], row: Row, value: str, runs: dict[tuple[int, str, int], Run]
) -> list[tuple[int, ModelResult]]:
    """The teachers (seed, teacher) of the students in ``row``'s group: those of rows that learn from none as well."""
    return [
        (seed, run.teacher)
        for (number, v, seed), run in runs.items()
        if v == value and rows[number].group == row.group and run.teacher and run.retention is not None
    ]


def _teachers(values: Sequence[str], runs: dict[tuple[int, str, int], Run]) -> dict[str, Arm]:
    """The teacher per sweep value: one model per seed, shared by all rows."""
    found = {}
    for value in values:
        seeds = {seed: run.teacher for (_, v, seed), run in runs.items() if v == value and run.teacher}
        if seeds:
            models = tuple(seeds.values())
            found[value] = Arm(models[0].title, tuple(seeds), models)
    return found
