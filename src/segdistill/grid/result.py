"""What a table's runs say: one entry per row and sweep value, over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segdistill.config import UserError
from segdistill.grid.execute import Outcome
from segdistill.grid.table import TableConfig
from segdistill.papers import PaperPlace
from segdistill.report.compare import Arm, Stat
from segdistill.report.runs import Run, load_run

TEACHER = -1
"""The row number of the teacher's line."""


@dataclass(frozen=True)
class TableResult:
    """An arm over the seeds per row and sweep value; the ``runs`` behind; ``errors`` of cells that did not finish."""

    table: TableConfig
    unseen: tuple[str, ...]
    teachers: dict[str, Arm]  # per sweep value
    entries: dict[tuple[int, str], Arm]
    runs: dict[tuple[int, str, int], Run]
    errors: tuple[str, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """Headings of the rows, in their order; one empty heading without groups."""
        return tuple(dict.fromkeys(row.group for row in self.table.rows))

    @property
    def values(self) -> tuple[str, ...]:
        """Titles of the sweep's columns; one empty title without a sweep."""
        return tuple(self.table.sweep.values) if self.table.sweep else ("",)

    def baseline(self, row: int) -> int | None:
        """The row that gains of ``row`` are counted from: its group's baseline."""
        group = self.table.rows[row].group
        found = [i for i, other in enumerate(self.table.rows) if other.baseline and other.group == group]
        return found[0] if found and found[0] != row else None

    def entry(self, row: int, value: str) -> Arm | None:
        """The teacher's or a row's numbers at one sweep value."""
        return self.teachers.get(value) if row == TEACHER else self.entries.get((row, value))

    def ranked(self, group: str, value: str) -> list[int]:
        """The rows of a group that have a mean over the unseen domains, best first."""
        scores = {
            number: entry.mean_unseen.mean
            for number, row in enumerate(self.table.rows)
            if row.group == group and (entry := self.entry(number, value)) and entry.mean_unseen
        }
        return sorted(scores, key=lambda number: -scores[number])

    def memory(self, row: int, value: str) -> Stat | None:
        """Peak memory in MiB over the stages of a row's runs."""
        runs = [run for (r, v, _), run in self.runs.items() if (r, v) == (row, value)]
        peaks = [[stage.memory_mb for stage in run.stages if stage.memory_mb is not None] for run in runs]
        values = tuple(max(peak) for peak in peaks if peak)
        return Stat(values) if values else None

    def gain(self, row: int, value: str) -> float | None:
        """Mean over unseen domains minus the baseline's, in points."""
        base = None if row == TEACHER else self.baseline(row)
        own, other = self.entries.get((row, value)), None if base is None else self.entries.get((base, value))
        if own is None or other is None or own.mean_unseen is None or other.mean_unseen is None:
            return None
        return 100 * (own.mean_unseen.mean - other.mean_unseen.mean)

    @property
    def places(self) -> tuple[PaperPlace, ...]:
        """Where the paper prints what the table's groups compare."""
        found = dict.fromkeys(self.table.place(group) for group in self.groups)
        return tuple(place for place in found if place is not None)

    @property
    def paper_heads(self) -> tuple[str, ...]:
        """Heads of the paper's columns that stand beside ours: one per value of a sweep, else its last, the average.

        Empty where the paper has no such table, or where its columns are not the sweep's.
        """
        heads = dict.fromkeys(
            tuple(title.split("/")[-1] for title in place.block_of().columns) for place in self.places
        )
        if len(heads) != 1:
            return ()
        (all_heads,) = heads
        if not self.table.sweep:
            return all_heads[-1:]
        return all_heads if len(all_heads) == len(self.values) else ()

    def paper_scores(self, row: int) -> tuple[float | None, ...]:
        """The numbers of the row's counterpart in the paper below ``paper_heads``, in percent."""
        heads = self.paper_heads
        scores = self._paper_row(row)
        return scores[-len(heads) :] if scores and heads else (None,) * len(heads)

    def _paper_row(self, row: int) -> tuple[float | None, ...] | None:
        """All numbers of the paper's line; None where it has none."""
        if row == TEACHER:
            lines = [line for place in self.places for line in place.block_of().rows if line.role == "teacher"]
            return lines[0].scores if lines else None
        config = self.table.rows[row]
        place = self.table.place(config.group)
        return place.block_of().row(config.paper).scores if place is not None and config.paper else None


def collect_table(table: TableConfig, outcomes: Sequence[Outcome]) -> TableResult:
    """Read the folders of the cells that finished."""
    runs: dict[tuple[int, str, int], Run] = {}
    errors = []
    for outcome in outcomes:
        cell = outcome.cell
        if outcome.error is None:
            runs[cell.row, cell.value, cell.seed] = load_run(outcome.folder)
        else:
            value = f", {cell.value}" if cell.value else ""
            errors.append(f"{table.rows[cell.row].full_title}{value}, seed {cell.seed}: {outcome.error}")
    values = tuple(table.sweep.values) if table.sweep else ("",)
    entries = {}
    for number, row in enumerate(table.rows):
        for value in values:
            if own := [run for (i, v, _), run in sorted(runs.items()) if (i, v) == (number, value)]:
                entries[number, value] = _entry(row.title, own)
    unseen = next(iter(runs.values())).unseen if runs else ()
    return TableResult(table, unseen, _teachers(values, runs), entries, runs, tuple(errors))


def check_paper(table: TableConfig) -> None:
    """Raise a :class:`UserError` where the table names rows that the paper does not have; before anything is run."""
    for row in table.rows:
        place = table.place(row.group)
        if row.paper and place is None:
            raise UserError(f"row '{row.title}' names a row of a paper, and the table has no 'paper'")
        if place is not None:
            block = place.block_of()
            if row.paper:
                block.row(row.paper)


def _teachers(values: Sequence[str], runs: dict[tuple[int, str, int], Run]) -> dict[str, Arm]:
    """The teacher per sweep value: one model per seed (all rows share it)."""
    found = {}
    for value in values:
        seeds = {seed: run.teacher for (_, v, seed), run in sorted(runs.items()) if v == value and run.teacher}
        if seeds:
            models = tuple(seeds.values())
            found[value] = Arm("teacher", models[0].title, tuple(seeds), models)
    return found


def _entry(title: str, runs: Sequence[Run]) -> Arm:
    students = tuple(run.student for run in runs)
    return Arm(runs[0].name, title, tuple(run.seed for run in runs), students, tuple(run.retention for run in runs))
