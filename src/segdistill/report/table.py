"""The table as plain data, and as Markdown and CSV. The terminal and the page render the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from segdistill.report.compare import Arm, Comparison, Stat

Kind = Literal["miou", "parameters", "seconds", "retention"]
Role = Literal["teacher", "student"]
Group = Literal["source", "unseen", "mean", "validation", "cost"]


@dataclass(frozen=True)
class Column:
    """``key`` is the machine's name, ``title`` the reader's; ``group`` says what kind of evidence it is."""

    key: str
    title: str
    group: Group
    kind: Kind


@dataclass(frozen=True)
class Cell:
    """One number: a share in [0, 1] (miou), a count, seconds, or a ratio (retention); None where not measured."""

    value: float | int | None
    kind: Kind
    sd: float | None = None
    best: bool = False
    interval: tuple[float, float] | None = None

    @property
    def number(self) -> str:
        """As shown: percent, millions, seconds."""
        return "–" if self.value is None else _FORMATS[self.kind](self.value)

    @property
    def spread(self) -> str:
        """The standard deviation over seeds, else the 95 % interval over images, else nothing."""
        if self.sd is not None:
            return f"± {_FORMATS[self.kind](self.sd)}"
        return f"[{', '.join(map(_FORMATS[self.kind], self.interval))}]" if self.interval else ""

    @property
    def text(self) -> str:
        """Number and spread."""
        return f"{self.number} {self.spread}".rstrip()


@dataclass(frozen=True)
class Row:
    """``role`` tells the teacher from the students; ``seeds`` are those behind the means."""

    name: str
    label: str
    role: Role
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """``rows[i].cells[j]`` belongs to ``columns[j]``."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def percent(value: float | int) -> str:
    """A share as percent with one decimal."""
    return f"{100 * value:.1f}"


def millions(value: float | int) -> str:
    """A count in millions, two significant decimals below ten."""
    return f"{value / 1e6:.2f}" if value < 1e7 else f"{value / 1e6:.1f}"


_FORMATS: dict[Kind, Callable[[float | int], str]] = {
    "miou": percent,
    "retention": percent,
    "parameters": millions,
    "seconds": lambda value: f"{value:,.1f}" if value < 100 else f"{value:,.0f}",
}


def table_rows(comparison: Comparison) -> Table:
    """Teacher and arms against domains, mean over unseen, validation apart, size, seconds, retention.

    ``best`` marks the best students (ties included) where there are several: by shown value, on source and unseen
    domains, their mean, and retention; never on validation domains, where things were chosen.
    """
    columns = [
        *(Column(d, d, "source", "miou") for d in comparison.source),
        *(Column(d, d, "unseen", "miou") for d in comparison.unseen),
        *([Column("mean_unseen", "mean unseen", "mean", "miou")] if comparison.unseen else []),
        *(Column(d, d, "validation", "miou") for d in comparison.validation),
        Column("parameters", "parameters (M)", "cost", "parameters"),
        Column("seconds", "seconds", "cost", "seconds"),
        *([Column("retention", "retention (%)", "mean", "retention")] if comparison.teacher else []),
    ]
    arms = ([comparison.teacher] if comparison.teacher else []) + list(comparison.arms)
    rows = [_row(arm, columns, "teacher" if arm is comparison.teacher else "student") for arm in arms]
    return Table(tuple(columns), tuple(_mark_best(rows, columns)))


def to_markdown(comparison: Comparison) -> str:
    """A Markdown table; the best student of a column is bold."""
    table = table_rows(comparison)
    note = {"validation": " (validation)", "source": " (source)"}
    head = ["model", *(f"{_escape(c.title)}{note.get(c.group, '')}" for c in table.columns)]
    lines = [head, ["---", *("---:" for _ in table.columns)]]
    for row in table.rows:
        cells = [f"**{cell.text}**" if cell.best else cell.text for cell in row.cells]
        lines.append([_escape(row.label), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_csv(comparison: Comparison) -> str:
    """Unrounded numbers: shares in [0, 1], parameters, seconds; ``*_sd`` is the deviation over seeds, empty for one."""
    table = table_rows(comparison)
    prefix = {"source": "source:", "unseen": "unseen:", "validation": "validation:"}
    head = ["name", "title", "role", "seeds"]
    for column in table.columns:
        key = prefix.get(column.group, "") + column.key
        head += [key, f"{key}_sd"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        numbers = [number for cell in row.cells for number in (cell.value, cell.sd)]
        seeds = " ".join(map(str, row.seeds))
        writer.writerow([row.name, row.label, row.role, seeds, *("" if n is None else repr(n) for n in numbers)])
    return text.getvalue()


def _row(arm: Arm, columns: list[Column], role: Role) -> Row:
    """The numbers of ``arm``, none of them marked yet."""
    return Row(arm.name, arm.title, role, arm.seeds, tuple(_cell(arm, column) for column in columns))


def _cell(arm: Arm, column: Column) -> Cell:
    """The number of ``arm`` in ``column``."""
    if column.kind == "parameters":
        return Cell(arm.size, "parameters")
    if column.key in ("mean_unseen", "seconds", "retention") and column.group in ("mean", "cost"):
        stat: Stat | None = getattr(arm, column.key)
    else:
        stat = arm.score(column.key)
    if stat is None:
        return Cell(None, column.kind)
    interval = arm.mean_unseen_interval if column.key == "mean_unseen" and column.group == "mean" else None
    return Cell(stat.mean, column.kind, stat.sd, interval=interval)


def _mark_best(rows: list[Row], columns: list[Column]) -> list[Row]:
    """``rows`` with the best students' cells marked."""
    students = [row for row in rows if row.role == "student"]
    best: dict[int, str] = {}
    for j, column in enumerate(columns):
        values = [value for row in students if (value := row.cells[j].value) is not None]
        if column.group in ("source", "unseen", "mean") and len(students) > 1 and values:
            best[j] = _FORMATS[column.kind](max(values))
    marked = []
    for row in rows:
        cells = tuple(
            replace(cell, best=True)
            if row.role == "student" and cell.value is not None and best.get(j) == _FORMATS[cell.kind](cell.value)
            else cell
            for j, cell in enumerate(row.cells)
        )
        marked.append(replace(row, cells=cells))
    return marked


def _escape(text: str) -> str:
    """Text that cannot end a Markdown cell or start markup."""
    text = " ".join(text.split())
    for sign in "\\|*_`<>[]":
        text = text.replace(sign, "\\" + sign)
    return text
