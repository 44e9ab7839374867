"""A table as Markdown, CSV, LaTeX and rows for a terminal; a comparison with all that it rests on as JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from segdistill.report.corruptions import corruption_table
from segdistill.report.table import DASH, Column, Table, main_table, summaries
from segdistill.results import Comparison, ModelResult

FIRST_OUT = ("validation", "paper", "memory", "seconds", "parameters", "gain", "unseen", "retention", "source", "clean")
"""Groups and keys of columns in the order in which a narrow terminal goes without them."""

TEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "±": r"$\pm$", DASH: "--"}
TEX |= {sign: f"\\{sign}" for sign in "&%_#${}"}
"""What LaTeX reads for a character that means something else to it."""

ENVIRONMENT = ("version", "commit", "hardware", "system", "python", "torch", "lightning", "timm", "started")


def to_markdown(found: Comparison) -> str:
    """The table; the best student of a column is bold, numbers are mean ± standard deviation over the seeds."""
    table = main_table(found)
    notes = {"validation": " (validation)", "source": " (source)"}
    heads = [_escape(table.first), *(_escape(c.title) + notes.get(c.group, "") for c in table.columns)]
    texts = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * len(table.columns)}"]
    group = ""
    for line in table.lines:
        if line.group not in ("", group):
            texts.append(f"| *{_escape(line.group)}* |{' |' * len(table.columns)}")
        cells = (f"**{cell.text}**" if cell.best else cell.text for cell in line.cells)
        texts.append(f"| {' | '.join([_escape(line.title), *cells])} |")
        group = line.group
    below = [found.sentence(lead) for lead in found.runner_ups()] or _short(found)
    return "\n".join([*texts, *([""] if below else []), *below]) + "\n"


def to_latex(found: Comparison) -> str:
    """The same table for the package booktabs."""
    table = main_table(found)
    heads = [table.first, *(column.title for column in table.columns)]
    texts = [rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}", r"\toprule"]
    texts += [" & ".join(map(_tex, heads)) + r" \\", r"\midrule"]
    group = ""
    for line in table.lines:
        if line.group not in ("", group):
            texts.append(rf"\multicolumn{{{len(heads)}}}{{l}}{{\emph{{{_tex(line.group)}}}}} \\")
        cells = (rf"\textbf{{{_tex(cell.text)}}}" if cell.best else _tex(cell.text) for cell in line.cells)
        texts.append(" & ".join([_tex(line.title), *cells]) + r" \\")
        group = line.group
    return "\n".join([*texts, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(found: Comparison) -> str:
    """Unrounded: shares in [0, 1], points, parameters, seconds; ``*_sd`` is the deviation over seeds, empty for one."""
    table = main_table(found)
    prefix = {group: f"{group}:" for group in ("source", "unseen", "validation")}
    head = ["group", "title", "role", "seeds"]
    for column in table.columns:
        key = prefix.get(column.group, "") + column.key
        head += [key, f"{key}_sd"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for line in table.lines:
        numbers = [number for cell in line.cells for number in (cell.value, cell.sd)]
        seeds = " ".join(map(str, line.seeds))
        writer.writerow([line.group, line.title, line.role, seeds, *("" if n is None else repr(n) for n in numbers)])
    return text.getvalue()


def to_terminal(found: Comparison, width: int = 100) -> tuple[list[list[str]], list[str]]:
    """Rows of text no wider than ``width``, heads first, a star at a column's best; and what must be said below."""
    table, lost = main_table(found), []
    kept = list(range(len(table.columns)))
    out: list[int] = []
    if not found.sweep and _width(_plain_rows(table, kept)) > width:
        table, lost = _without_spreads(table), ["± of single domains"] * (len(found.seeds) > 1)
    while len(kept) > 1 and _width(_plain_rows(table, kept)) > width:
        out.append(min(kept, key=lambda place: (_rank(table.columns[place]), -place)))
        kept.remove(out[-1])
    for place in reversed(out):  # room that a wide column has left
        more = sorted([*kept, place])
        kept = more if _width(_plain_rows(table, more)) <= width else kept
    titles = [column.title for place, column in enumerate(table.columns) if place not in kept] + lost
    below = [found.sentence(lead) for lead in found.runner_ups()] or _short(found)
    if titles:
        below.insert(0, f"Left out here, shown on the page: {', '.join(titles)}")
    return _plain_rows(table, kept), below + summaries(found)


def corruptions_to_terminal(found: Comparison, width: int = 100) -> list[list[str]]:
    """A row per corruption and a column per model, as many as fit into ``width``; empty without corrupted images."""
    if (table := corruption_table(found)) is None:
        return []
    fits = [n for n in range(1, len(table.columns) + 1) if _width(_plain_rows(table, range(n))) <= width]
    return _plain_rows(table, range(max(fits, default=1)))


def to_json(found: Comparison) -> str:
    """All that the table rests on: every run's scores by domain and class, its stages, commit and hardware.

    Scores with five decimals; teachers by sweep value and seed, since a table's runs share them.
    """
    runs = []
    for (number, value, seed), run in sorted(found.runs.items()):
        row = found.rows[number]
        place = {"group": row.group, "row": row.title, "sweep": value, "seed": seed}
        stages = [stage.model_dump(exclude_none=True) for stage in run.stages]
        scores = {"retention": _rounded(run.retention), **_scores(found, run.student)}
        environment = {key: run.environment[key] for key in ENVIRONMENT if key in run.environment}
        runs.append(place | scores | {"stages": stages, "environment": environment})
    values = {
        "format": 1,
        "table": found.config,
        "primary": found.metric.key,
        "metric": found.metric.model_dump(exclude={"key"}),
        "classes": list(found.first.classes) if found.first else [],
        "unseen": list(found.unseen),
        "too_short": list(found.shortcomings),
        "leads": [found.sentence(lead) for lead in found.runner_ups()],
        "not_finished": list(found.errors),
        "teachers": [
            {"sweep": value, "seed": seed, **_scores(found, model)}
            for value, arm in found.teachers.items()
            for seed, model in zip(arm.seeds, arm.models, strict=True)
        ],
        "runs": runs,
    }
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {_json(value)}" for key, value in values.items()) + "\n}\n"


def _short(found: Comparison) -> list[str]:
    return [f"Too short to compare: {'; '.join(found.shortcomings)}."] if found.shortcomings else []


def _plain_rows(table: Table, kept: Sequence[int]) -> list[list[str]]:
    """Text of the columns ``kept``, heads first; the first line of a group names it."""
    rows, group = [[table.first, *(table.columns[place].title for place in kept)]], ""
    for line in table.lines:
        title = f"{line.group}: {line.title}" if line.group not in ("", group) else line.title
        rows.append([title, *(line.cells[place].text + "*" * line.cells[place].best for place in kept)])
        group = line.group
    return rows


def _width(rows: Sequence[Sequence[str]]) -> int:
    """Characters of a line: the widest cell of every column and two spaces between columns."""
    return sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)) - 2


def _without_spreads(table: Table) -> Table:
    """The table with the spreads of means alone."""
    groups = [column.group for column in table.columns]
    return replace(table, lines=tuple(
        replace(line, cells=tuple(cell if group == "mean" else replace(cell, spread="")
                                  for cell, group in zip(line.cells, groups, strict=True)))
        for line in table.lines))  # fmt: skip


def _rank(column: Column) -> int:
    """How much a narrow table misses a column."""
    places = [place for place, name in enumerate(FIRST_OUT) if name in (column.key, column.group)]
    return min(places, default=len(FIRST_OUT))


def _scores(found: Comparison, model: ModelResult) -> dict[str, Any]:
    metric, beside = found.metric, found.first.beside if found.first else ()
    domains = {
        name: {
            metric.key: _rounded(score.score),
            **{one.key: _rounded(score.others.get(one.key)) for one in beside},
            **({metric.by_class: [_rounded(value) for value in score.by_class]} if metric.by_class else {}),
            "images": score.images,
        }
        for name, score in model.domains.items()
    }
    interval = model.mean_unseen_interval
    bounds = {} if interval is None else {"mean_unseen_interval": [_rounded(end) for end in interval]}
    return {"mean_unseen": _rounded(model.mean_unseen), **bounds, "domains": domains, **_corrupted(model)}


def _corrupted(model: ModelResult) -> dict[str, Any]:
    if (one := model.corruptions) is None:
        return {}
    scores = {name: [_rounded(value) for value in values] for name, values in one.scores.items()}
    means = {key: _rounded(getattr(one, key)) for key in ("clean", "mpc", "rpc")}
    return {"corruptions": one.model_dump(mode="json") | means | {"scores": scores}}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 5)


def _json(value: Any) -> str:
    """JSON with a line per element of a list: a run can be found, read and compared as a line."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(element, ensure_ascii=False) for element in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


def _escape(text: str) -> str:
    """Text that cannot end a Markdown cell or start markup."""
    text = " ".join(text.split())
    for sign in "\\|*_`<>[]":
        text = text.replace(sign, "\\" + sign)
    return text


def _tex(text: str) -> str:
    return re.sub("|".join(map(re.escape, TEX)), lambda sign: TEX[sign[0]], text)
