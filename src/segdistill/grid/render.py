"""A table in the paper's layout as Markdown, LaTeX and CSV; and all that it rests on as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from segdistill.grid.result import TEACHER, TableResult
from segdistill.grid.significance import leads
from segdistill.report.compare import Arm, Stat
from segdistill.report.runs import ModelResult

DASH = "–"


@dataclass(frozen=True)
class Column:
    """A column's title, the number of a row (a share, points or seconds), its text, and whether its best is marked."""

    title: str
    number: Callable[[int], Stat | float | None]
    text: Callable[[Stat | float], str]
    ranked: bool = False


@dataclass(frozen=True)
class Line:
    """``heading`` where a group of rows starts; ``best[j]`` says that cell j is its column's best student."""

    row: int
    heading: str
    title: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]


def layout(result: TableResult) -> tuple[list[str], list[Line]]:
    """The heads and the lines, teacher first; best by what is shown, students of one group only."""
    columns = [*_sweep_columns(result)] if result.table.sweep else [*_domain_columns(result)]
    rows = range(len(result.table.rows))
    tops = {
        group: [max(_shown(column, row) for row in rows if result.table.rows[row].group == group) for column in columns]
        for group in result.groups
    }
    lines, group = [], ""
    if result.teachers:
        title = f"Teacher: {next(iter(result.teachers.values())).title}"
        lines.append(
            Line(TEACHER, "", title, tuple(_cell(column, TEACHER) for column in columns), (False,) * len(columns))
        )
    for row in rows:
        config = result.table.rows[row]
        best = tuple(
            column.ranked and column.number(row) is not None and _shown(column, row) == top
            for column, top in zip(columns, tops[config.group], strict=True)
        )
        heading = config.group if config.group != group else ""
        lines.append(Line(row, heading, config.title, tuple(_cell(column, row) for column in columns), best))
        group = config.group
    first = result.table.sweep.title if result.table.sweep else "method"
    return [first, *(column.title for column in columns)], lines


def plain_rows(result: TableResult) -> list[list[str]]:
    """The table as rows of text, heads first; a star marks a column's best student."""
    heads, lines = layout(result)
    rows = [heads]
    for line in lines:
        title = f"{line.heading}: {line.title}" if line.heading else line.title
        rows.append([title, *(cell + "*" * best for cell, best in zip(line.cells, line.best, strict=True))])
    return rows


def to_markdown(result: TableResult) -> str:
    """The table; the best student of a column is bold, numbers are mean ± standard deviation over the seeds."""
    heads, lines = layout(result)
    texts = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for line in lines:
        if line.heading:
            texts.append(f"| *{line.heading}* |{' |' * (len(heads) - 1)}")
        cells = (f"**{cell}**" if best else cell for cell, best in zip(line.cells, line.best, strict=True))
        texts.append(f"| {' | '.join([line.title, *cells])} |")
    sentences = [one.sentence(result) for one in leads(result)]
    return "\n".join([*texts, *([""] if sentences else []), *sentences]) + "\n"


def to_latex(result: TableResult) -> str:
    """The same table for the package booktabs."""
    heads, lines = layout(result)
    texts = [rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", r"\toprule"]
    texts += [" & ".join(map(_tex, heads)) + r" \\", r"\midrule"]
    for line in lines:
        if line.heading:
            texts.append(rf"\multicolumn{{{len(heads)}}}{{l}}{{\emph{{{_tex(line.heading)}}}}} \\")
        pairs = zip(map(_tex, line.cells), line.best, strict=True)
        cells = (rf"\textbf{{{cell}}}" if best else cell for cell, best in pairs)
        texts.append(" & ".join([_tex(line.title), *cells]) + r" \\")
    return "\n".join([*texts, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(result: TableResult) -> str:
    """One line per row, sweep value and seed: unrounded shares in [0, 1], seconds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "row", "sweep", "seed", *result.unseen, "mean_unseen", "retention", "seconds"])
    for (number, value, seed), run in sorted(result.runs.items()):
        row = result.table.rows[number]
        scores = [run.student.domains[name].miou for name in result.unseen]
        numbers = [*scores, run.student.mean_unseen, run.retention, run.student.seconds]
        writer.writerow([row.group, row.title, value, seed, *("" if n is None else repr(n) for n in numbers)])
    return text.getvalue()


def to_json(result: TableResult) -> str:
    """All that the table rests on: its file, every run's scores by domain and class, its stages, commit and hardware.

    Shares in [0, 1] with five decimals; teachers by sweep value and seed, since a table's runs share them.
    """
    where = ("version", "commit", "hardware", "system", "python", "torch", "lightning", "timm", "started")
    runs = []
    for (number, value, seed), run in sorted(result.runs.items()):
        row = result.table.rows[number]
        place = {"group": row.group, "row": row.title, "sweep": value, "seed": seed}
        stages = [stage.model_dump(exclude_none=True, exclude={"finished"}) for stage in run.stages]
        scores = {"retention": _rounded(run.retention), **_scores(run.student)}
        environment = {key: run.environment[key] for key in where if key in run.environment}
        runs.append(place | scores | {"stages": stages, "environment": environment})
    teachers = [
        {"sweep": value, "seed": seed, **_scores(model)}
        for value, arm in result.teachers.items()
        for seed, model in zip(arm.seeds, arm.models, strict=True)
    ]
    values = {
        "format": 1,
        "table": result.table.model_dump(mode="json", exclude_defaults=True),
        "classes": next((list(run.classes) for run in result.runs.values()), []),
        "unseen": list(result.unseen),
        "leads": [one.sentence(result) for one in leads(result)],
        "not_finished": list(result.errors),
        "teachers": teachers,
        "runs": runs,
    }
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {_json(value)}" for key, value in values.items()) + "\n}\n"


def _json(value: Any) -> str:
    """JSON with a line per element of a list: a run can be found, read and compared as a line."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(element, ensure_ascii=False) for element in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


def _scores(model: ModelResult) -> dict[str, Any]:
    domains = {
        name: {"miou": _rounded(score.miou), "iou": [_rounded(share) for share in score.iou], "images": score.images}
        for name, score in model.domains.items()
    }
    return {"mean_unseen": _rounded(model.mean_unseen), "domains": domains}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 5)


def _domain_columns(result: TableResult) -> list[Column]:
    """Unseen domains, their mean, gain over the group's baseline if any, retention, cost, and the paper's mean."""

    def of(pick: Callable[[Arm], Stat | None]) -> Callable[[int], Stat | None]:
        return lambda row: None if (found := result.entry(row, "")) is None else pick(found)

    columns = [
        Column(domain, of(lambda found, domain=domain: found.score(domain)), _percent, ranked=True)
        for domain in result.unseen
    ]
    columns.append(Column("Avg.", of(lambda found: found.mean_unseen), _percent, ranked=True))
    if any(row.baseline for row in result.table.rows):
        columns.append(Column("gain", lambda row: result.gain(row, ""), lambda points: f"{_mean(points):+.1f}"))
    columns.append(Column("retention (%)", of(lambda found: found.retention), _percent))
    columns.append(Column("seconds", of(lambda found: found.seconds), lambda seconds: f"{_mean(seconds):.0f}"))
    columns.append(Column("peak MiB", lambda row: result.memory(row, ""), lambda memory: f"{_mean(memory):.0f}"))
    return columns + _paper_columns(result)


def _sweep_columns(result: TableResult) -> list[Column]:
    """The mean over the unseen domains at each value of the sweep."""

    def at(value: str) -> Callable[[int], Stat | None]:
        def number(row: int) -> Stat | None:
            found = result.entry(row, value)
            return found.mean_unseen if found else None

        return number

    columns = [Column(value, at(value), _percent, ranked=True) for value in result.values]
    return columns + _paper_columns(result)


def _paper_columns(result: TableResult) -> list[Column]:
    """What the paper prints for the row."""
    return [
        Column(f"paper: {head}", lambda row, i=i: result.paper_scores(row)[i], lambda score: f"{_mean(score):.1f}")
        for i, head in enumerate(result.paper_heads)
    ]


def _shown(column: Column, row: int) -> float:
    """The number as a reader sees it: with one decimal of a percent; minus infinity where there is none."""
    number = column.number(row)
    return float("-inf") if number is None else round(100 * _mean(number), 1)


def _cell(column: Column, row: int) -> str:
    number = column.number(row)
    return DASH if number is None else column.text(number)


def _percent(number: Stat | float) -> str:
    text = f"{100 * _mean(number):.1f}"
    spread = number.sd if isinstance(number, Stat) else None
    return text if spread is None else f"{text} ± {100 * spread:.1f}"


def _mean(number: Stat | float) -> float:
    return number.mean if isinstance(number, Stat) else number


def _tex(text: str) -> str:
    for sign, escaped in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("±", r"$\pm$")):
        text = text.replace(sign, escaped)
    return text.replace(DASH, "--")
