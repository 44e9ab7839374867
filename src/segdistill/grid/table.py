"""A table file: which recipes are its rows, which settings vary, which seeds; and the runs that this makes.

Rows x sweep values x seeds = cells; a cell is one recipe with its overrides, run in a folder of its own. The folder's
name holds a hash of everything that the result depends on: cells that two tables have in common are run once.

Overrides of the command come last and are meant for every cell; those that begin with ``table.`` are meant for the
table file itself, such as ``table.seeds=[0]``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from segdistill.config import SLUG, Config, UserError, nearest, parse, read_yaml
from segdistill.papers import PaperPlace
from segdistill.recipe import Recipe, apply, load
from segdistill.runs.check import check
from segdistill.runs.execute import fingerprints

OWN = "table."
MOST_RUNS = 2000
LONGEST_NAME = 128  # of a run, as of a recipe


class RowConfig(Config):
    """One line of the table."""

    title: str = Field(min_length=1)
    recipe: str = Field(min_length=1, description="name of a recipe, or a path")
    settings: tuple[str, ...] = Field((), description="key=value overrides of that recipe")
    baseline: bool = Field(False, description="gains are counted from this row")
    paper: str = Field("", description="the row's name in the paper's table; empty: the paper has none")
    group: str = Field("", description="rows of one group stand under one heading")


class SweepConfig(Config):
    """A setting that varies along the columns: label fractions, sources, heads."""

    title: str
    values: dict[str, tuple[str, ...]] = Field(min_length=1, description="column title -> key=value overrides")


class TableConfig(Config):
    """A table; unknown keys are errors, as everywhere."""

    name: str = Field(pattern=SLUG, max_length=128)
    title: str
    paper: PaperPlace | None = None
    papers: dict[str, PaperPlace] = Field({}, description="group -> its place in the paper, where that is not 'paper'")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0,), min_length=1)
    settings: tuple[str, ...] = Field((), description="key=value overrides of every cell")
    rows: tuple[RowConfig, ...] = Field(min_length=1)
    sweep: SweepConfig | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TableConfig:
        titles = [(row.group, row.title) for row in self.rows]
        if twice := sorted({f"{group} {title}".strip() for group, title in titles if titles.count((group, title)) > 1}):
            raise ValueError(f"rows must differ in title or group; {', '.join(twice)} stands twice")
        for group in dict.fromkeys(row.group for row in self.rows):
            if sum(row.baseline for row in self.rows if row.group == group) > 1:
                raise ValueError(f"group '{group}' has more than one baseline; gains are counted from one")
        if strange := sorted(set(self.papers) - {row.group for row in self.rows}):
            raise ValueError(f"'papers' names the groups {', '.join(strange)}, and no row is in them")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {list(self.seeds)}")
        runs = len(self.rows) * len(self.sweep.values if self.sweep else [""]) * len(self.seeds)
        if runs > MOST_RUNS:
            raise ValueError(f"rows x values x seeds are {runs:,} runs, allowed are {MOST_RUNS:,}; make several tables")
        return self

    def place(self, group: str) -> PaperPlace | None:
        """Where the paper prints what a group of rows compares."""
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
    doubts: tuple[str, ...] = ()  # what it reads and is probably not meant

    @property
    def folder_name(self) -> str:
        """Readable, and different wherever the numbers may differ."""
        return f"{self.recipe.name}-s{self.seed}-{self.key[:10]}"

    @property
    def steps(self) -> int:
        """Training steps of all stages."""
        return sum(stage.steps for stage in self.recipe.stages)


def load_table(path: Path, overrides: tuple[str, ...] = ()) -> TableConfig:
    """The validated table in ``path`` with ``overrides``, of which only those that begin with ``table.`` count here.

    A :class:`UserError` lists all problems.
    """
    known = [file.stem for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    values = read_yaml(path, "table", f"{nearest(path.stem, known)}tables are in recipes/tables")
    for override in overrides:
        if override.startswith(OWN):
            apply(values, override.removeprefix(OWN))
    return parse(TableConfig, values, str(path.name))


def cells_of(table: TableConfig, recipes: Path, overrides: tuple[str, ...] = ()) -> list[Cell]:
    """All runs of ``table``, seed by seed; ``recipes`` is the folder in which names of recipes are looked up.

    Every recipe is resolved and validated, and every weight file read, before anything runs. ``overrides`` come last.
    The runs' pages show the table's place in the paper, whatever place their recipes name.
    """
    overrides = tuple(override for override in overrides if not override.startswith(OWN))
    values = table.sweep.values if table.sweep else {"": ()}
    cells, problems = [], []
    for seed in table.seeds:
        for number, row in enumerate(table.rows):
            place = table.place(row.group)
            paper = [f"paper={place.model_dump_json()}"] if place else []
            for value, changes in values.items():
                settings = [*paper, *table.settings, *row.settings, *changes, *overrides, f"seed={seed}"]
                try:
                    cells.append(_cell(number, row, value, seed, _recipe_path(row.recipe, recipes), settings))
                except UserError as error:
                    problems.append(f"row '{row.title}'{f', {value}' if value else ''}: {error}")
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))
    return cells


def _recipe_path(name: str, recipes: Path) -> Path:
    path = Path(name)
    return path if path.suffix else recipes / f"{name}.yaml"


def _cell(number: int, row: RowConfig, value: str, seed: int, path: Path, settings: list[str]) -> Cell:
    recipe = load(path, settings)
    evaluate = recipe.evaluate
    if evaluate is None:
        raise UserError(f"{path} scores nothing: a table needs 'evaluate'")
    recipe = recipe.model_copy(update={"name": _slug(recipe.name, row.title, value), "title": row.title})
    doubts, prints = check(recipe), fingerprints(recipe)
    facts = [prints, evaluate.model_dump(mode="json")]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Cell(number, value, seed, recipe, tuple(prints), key, tuple(doubts))


def _slug(*parts: str) -> str:
    """A recipe's name: lower-case letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", " ".join(part for part in parts if part).lower()).strip("_")[:LONGEST_NAME]
