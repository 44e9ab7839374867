"""A table file: its rows (recipes), the settings that vary, the seeds, and the runs that follow from them.

Rows x sweep values x seeds = cells; a cell is one recipe with its overrides, run in its own folder. The folder name
contains a hash of everything that the result depends on, so cells that two tables share run once.

Overrides on the command line come last and apply to every cell; those that start with ``table.`` change the table file
itself, such as ``table.seeds=[0]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from segdistill.config import SLUG, Config, UserError, parse
from segdistill.data.dataset import DataSource
from segdistill.files import facts_digest
from segdistill.overrides import OWN, table_values
from segdistill.papers import PaperPlace
from segdistill.recipe import Recipe, load
from segdistill.runs.check import check
from segdistill.runs.folder import AUTOMATIC, fingerprints, origin_of, settled
from segdistill.shipped import listed_path

MOST_RUNS = 2000
LONGEST_NAME = 128  # of a run, the same as of a recipe


class RowConfig(Config):
    """One row of the table."""

    title: str = Field(min_length=1)
    recipe: str = Field(min_length=1, description="name of a recipe, or a path")
    settings: tuple[str, ...] = Field((), description="key=value overrides for this recipe")
    baseline: bool = Field(False, description="gains are counted from this row")
    paper: str = Field("", description="the row's name in the paper's table; empty: not in the paper")
    group: str = Field("", description="heading that rows of one group share")


class SweepConfig(Config):
    """A setting that varies across the columns, such as label fractions, sources or heads."""

    title: str
    values: dict[str, tuple[str, ...]] = Field(min_length=1, description="column title -> key=value overrides")


class TableConfig(Config):
    """A table; unknown keys are errors, as everywhere."""

    name: str = Field(pattern=SLUG, max_length=128)
    title: str
    paper: PaperPlace | None = None
    papers: dict[str, PaperPlace] = Field({}, description="group -> its place in the paper, if it is not 'paper'")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0,), min_length=1)
    settings: tuple[str, ...] = Field((), description="key=value overrides for every cell")
    rows: tuple[RowConfig, ...] = Field(min_length=1)
    sweep: SweepConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TableConfig:
        titles = [(row.group, row.title) for row in self.rows]
        if twice := sorted({f"{group} {title}".strip() for group, title in titles if titles.count((group, title)) > 1}):
            raise ValueError(f"rows must differ in title or group; {', '.join(twice)} appears twice")
        for group in dict.fromkeys(row.group for row in self.rows):
            if sum(row.baseline for row in self.rows if row.group == group) > 1:
                raise ValueError(f"group '{group}' has more than one baseline; gains are counted from one")
        if strange := sorted(set(self.papers) - {row.group for row in self.rows}):
            raise ValueError(f"'papers' names the groups {', '.join(strange)}, but no row is in them")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        runs = len(self.rows) * len(self.sweep.values if self.sweep else [""]) * len(self.seeds)
        if runs > MOST_RUNS:
            raise ValueError(f"rows x values x seeds give {runs:,} runs, more than {MOST_RUNS:,}; split the table")
        return self

    def place(self, group: str) -> PaperPlace | None:
        """Where the paper prints the comparison of a group of rows."""
        return self.papers.get(group, self.paper)


@dataclass(frozen=True)
class Cell:
    """One run of a table: the row, sweep value and seed that it fills, its recipe and its stages' fingerprints."""

    row: int
    value: str
    seed: int
    recipe: Recipe
    prints: tuple[str, ...]
    key: str  # of everything that its numbers depend on
    doubts: tuple[str, ...] = ()  # warnings about inputs that look like mistakes

    @property
    def folder_name(self) -> str:
        """A readable name that differs whenever the numbers may differ."""
        return f"{self.recipe.name}-s{self.seed}-{self.key[:10]}"

    @property
    def steps(self) -> int:
        """Training steps of all stages."""
        return sum(stage.steps for stage in self.recipe.stages)


def load_table(path: Path, overrides: tuple[str, ...] = ()) -> TableConfig:
    """The validated table in ``path``, changed by those ``overrides`` that start with ``table.``.

    A :class:`UserError` lists all problems.
    """
    return parse(TableConfig, table_values(path, overrides), path.name)


def cells_of(
    table: TableConfig, recipes: Path, overrides: tuple[str, ...] = (), begun: Path | None = None
) -> list[Cell]:
    """All runs of ``table``, seed by seed; recipe names are looked up in the folder ``recipes``.

    Every recipe is validated and every weight file read before anything runs. ``overrides`` come last. The runs'
    report pages show the table's place in the paper, not the one that their recipes name. ``precision: auto`` is that
    of the runs in the folder ``begun``, which another machine may have begun, or else this machine's.
    """
    overrides = tuple(override for override in overrides if not override.startswith(OWN))
    values, sources = table.sweep.values if table.sweep else {"": ()}, dict[str, DataSource]()
    cells: list[tuple[Cell, Cell]] = []
    problems: list[str] = []
    for seed in table.seeds:
        for number, row in enumerate(table.rows):
            place = table.place(row.group)
            paper = [f"paper={place.model_dump_json()}"] if place else []
            for value, changes in values.items():
                settings = [*paper, *table.settings, *row.settings, *changes, *overrides, f"seed={seed}"]
                try:
                    recipe = load(listed_path(row.recipe, recipes), settings).sharing(sources)
                    cells.append(_cell(number, row, value, seed, recipe))
                except UserError as error:
                    problems.append(f"row '{row.title}'{f', {value}' if value else ''}: {error}")
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))
    own, moved = ([pair[which] for pair in cells] for which in (0, 1))
    return moved if begun is not None and _found(moved, begun) > _found(own, begun) else own


def _found(cells: list[Cell], begun: Path) -> int:
    """How many of the cells have a folder in ``begun``."""
    return sum((begun / cell.folder_name).is_dir() for cell in cells)


def _cell(number: int, row: RowConfig, value: str, seed: int, recipe: Recipe) -> tuple[Cell, Cell]:
    """The run as this machine would compute it, and as one with the other automatic precision would."""
    evaluate = recipe.evaluate
    if evaluate is None:
        raise UserError(f"{row.recipe} has no 'evaluate', which a table needs")
    recipe = recipe.model_copy(update={"name": _slug(recipe.name, row.title, value), "title": row.title})
    doubts, origins = tuple(check(recipe)), [origin_of(recipe, stage) for stage in recipe.stages]

    def of(known: Recipe) -> Cell:
        prints = fingerprints(known, origins)
        return Cell(number, value, seed, known, tuple(prints), facts_digest([prints, evaluate.facts()]), doubts)

    own = of(settled(recipe))
    if recipe.precision != "auto":
        return own, own
    [other] = (each for each in AUTOMATIC if each != own.recipe.precision)
    return own, of(recipe.model_copy(update={"precision": other}))


def _slug(*parts: str) -> str:
    """A valid recipe name: lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", " ".join(part for part in parts if part).lower()).strip("_")[:LONGEST_NAME]
