"""Tables of runs as Markdown: what ``segdistill bench`` collected, and results of single runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from segdistill.papers import paper_block

RAW = Path(__file__).resolve().parent / "raw"
VALIDATION = ("dusk", "haze", "drizzle")
Record = dict[str, Any]
Page = tuple[list[str], Record, list[str]]
"""Lines of the page, facts about the runs, raw files."""


def grid(name: str, entry: Record) -> Page:
    """A table that ``segdistill bench`` wrote."""
    raw = read(f"{name}.json")
    table = raw["table"]
    values = list(table["sweep"]["values"]) if "sweep" in table else [""]
    rows = [row | {"title": today(row["title"]), "group": row.get("group", "")} for row in table["rows"]]
    label, primary = raw.get("metric", {}).get("label", "mIoU"), raw.get("primary", "miou")
    runs = [run | {"row": today(run["row"]), "label": label} for run in raw["runs"]]
    for model in (*runs, *raw["teachers"]):
        for found in model["domains"].values():
            found["score"] = found[primary]
    lines: list[str] = []
    if "sweep" in table:
        lines += sweep(table, rows, values, runs, raw["teachers"])
    lines += overview(rows, values, runs, raw["teachers"], table, raw["unseen"])
    lines += leads(raw["leads"])
    lines += corrupted(rows, runs, raw["teachers"])
    lines += by_seed(rows, values, runs, raw["teachers"])
    lines += settings_of(rows, table)
    facts = sources_of([run["environment"] for run in runs]) | {
        "command": f"segdistill bench recipes/tables/{name}.yaml --out runs/bench"
    }
    return lines, facts, [f"{name}.json"]


def single_runs(name: str, entry: Record) -> Page:
    """A table put together from the results of single runs."""
    runs, teachers, files = [], {}, []
    for row, names in entry["files"].items():
        for file in names:
            results = read(f"{file}.json")
            student = results["models"]["student"]
            runs.append({
                "row": row, "sweep": "", "group": "", "seed": results["seed"], "retention": results["retention"],
                "parameters": sum(student["parameters"].values()), "stages": results["stages"],
                "environment": results["environment"], **scores_of(student),
            })  # fmt: skip
            teachers[results["seed"]] = {
                "sweep": "", "seed": results["seed"],
                "parameters": sum(results["models"]["teacher"]["parameters"].values()),
                **scores_of(results["models"]["teacher"]),
            }  # fmt: skip
            files.append(f"{file}.json")
    rows = [
        {"title": row, "group": "", "paper": entry.get("rows", {}).get(row), "baseline": number == 0}
        for number, row in enumerate(entry["files"])
    ]
    lines = overview(rows, [""], runs, list(teachers.values()), entry, results["unseen"])
    lines += leads(entry.get("leads", []))
    lines += by_seed(rows, [""], runs, list(teachers.values()))
    sizes = {"Teacher": next(iter(teachers.values())), "student": runs[0]}
    sizes_text = ", ".join(f"{name.lower()} {model['parameters'] / 1e6:.2f} M" for name, model in sizes.items())
    return lines, sources_of([run["environment"] for run in runs]) | {"parameters": sizes_text}, files


def scores_of(model: Record) -> Record:
    """Scores of one model of a run's results."""
    picked = ("mean_unseen", "mean_unseen_interval", "domains")
    found = {key: model[key] for key in picked if key in model} | {"label": "mIoU"}
    return found | {"domains": {name: each | {"score": each["miou"]} for name, each in model["domains"].items()}}


def overview(
    rows: list[Record], values: Sequence[str], runs: list[Record], teachers: list[Record], place: Record,
    unseen: list[str],
) -> list[str]:  # fmt: skip
    """Source, unseen domains, gain, retention and cost, one line per row; then a table of the validation domains."""
    source = next(name for name in runs[0]["domains"] if name not in (*unseen, *VALIDATION))
    has_base = any(row.get("baseline") for row in rows)
    has_memory = any("memory_mb" in stage for run in runs for stage in run["stages"])
    has_paper = any(row.get("paper") for row in rows) and not values[1:]
    head = ["model", f"{source} (source)", *unseen, "mean unseen"]
    head += ["gain"] * has_base + ["retention (%)", "seconds"] + ["peak MiB"] * has_memory
    printed = f"paper: {paper_column(place)}"
    head += [printed] * has_paper
    body, validation = [], []
    checked = [VALIDATION] if set(VALIDATION) <= set(runs[0]["domains"]) else []
    for value in values:
        own = [teacher for teacher in teachers if teacher["sweep"] == value]
        picked = [run for run in runs if run["sweep"] == value]
        groups = list(dict.fromkeys(row["group"] for row in rows))
        line = [*scores(own, [source, *unseen], mean_unseen), *["–"] * (1 + has_base), teacher_seconds(picked)]
        line += ["–"] * has_memory + ([paper(place, groups[0], None)] if has_paper else [])
        for table, cells in ((body, line), *((validation, scores(own, each, mean_validation)) for each in checked)):
            table += [[f"*{value}*", *[""] * len(cells)]] if value else []
            table.append(["Teacher", *cells])
        for group in groups:
            extra = (has_base, has_memory, place if has_paper else None)
            for table, cells in ((body, len(head)), (validation, len(VALIDATION) + 2)):
                table += [[f"*{group}*", *[""] * (cells - 1)]] if group else []
            lines = block(rows, group, picked, [source, *unseen], mean_unseen)
            more = costs(rows, group, picked, extra)
            body += [line + cost for line, cost in zip(lines, more, strict=True)]
            for each in checked:
                validation += block(rows, group, picked, each, mean_validation)
    beside = markdown(["model", *VALIDATION, "mean validation"], validation)
    first = ["model", f"{source} (source)", "mean unseen", "gain", "retention (%)", printed]
    order = sorted(range(len(head)), key=lambda place: first.index(head[place]) if head[place] in first else len(first))
    shown = [[line[place] for place in order] for line in (head, *body)]
    return [
        *markdown(shown[0], shown[1:]),
        "",
        caption(runs),
        "",
        *(["Validation domains:", "", *beside, ""] if checked else []),
    ]


def caption(runs: list[Record]) -> str:
    """How to read the table."""
    count = len({run["seed"] for run in runs})
    seeds = f"mean ± standard deviation of {count} seeds" if count > 1 else f"seed {runs[0]['seed']}"
    interval = ", 95 % bootstrap intervals over images in brackets" if "mean_unseen_interval" in runs[0] else ""
    return f"{runs[0]['label']} in percent, {seeds}{interval if count == 1 else ''}. Best student per column in bold."


def block(
    rows: list[Record], group: str, runs: list[Record], domains: Sequence[str], average: Callable[[list[Record]], str]
) -> list[list[str]]:
    """Title and scores of each row of one group, the best in bold."""
    picked = [row for row in rows if row["group"] == group]
    lines = [scores(of_row(row, runs), domains, average) for row in picked]
    for column in range(len(lines[0])):
        numbers = [number(line[column]) for line in lines]
        for line, value in zip(lines, numbers, strict=True):
            if value == max(numbers) and len(lines) > 1:
                line[column] = f"**{line[column]}**"
    return [[row["title"], *line] for row, line in zip(picked, lines, strict=True)]


def costs(
    rows: list[Record], group: str, runs: list[Record], extra: tuple[bool, bool, Record | None]
) -> list[list[str]]:
    """Gain, retention, seconds, memory and the paper's number of each row of one group."""
    has_base, has_memory, place = extra
    bases = [row for row in rows if row.get("baseline")]
    base = next((row for row in bases if row["group"] == group), bases[0] if bases else None)
    lines = []
    for row in (row for row in rows if row["group"] == group):
        own, line = of_row(row, runs), []
        if has_base and base is not None:
            gain = 100 * (
                mean(run["mean_unseen"] for run in own) - mean(run["mean_unseen"] for run in of_row(base, runs))
            )
            line.append("–" if row is base else decimal(gain, sign="+"))
        kept = [100 * run["retention"] for run in own if run["retention"] is not None]
        line.append(spread(kept) if kept else "–")
        line.append(f"{mean(seconds_of(run) for run in own):.0f}")
        line += [f"{mean(memory_of(run) for run in own):.0f}"] if has_memory else []
        if place is not None:
            line.append(paper(place, group, row["paper"]) if row.get("paper") else "–")
        lines.append(line)
    return lines


def of_row(row: Record, runs: list[Record]) -> list[Record]:
    """The runs of a row."""
    return [run for run in runs if (run["row"], run["group"]) == (row["title"], row["group"])]


def scores(runs: list[Record], domains: Iterable[str], average: Callable[[list[Record]], str]) -> list[str]:
    """The primary score of every domain, and an average."""
    return [*[spread([100 * run["domains"][name]["score"] for run in runs]) for name in domains], average(runs)]


def mean_unseen(runs: list[Record]) -> str:
    """Mean over the unseen domains, with its interval where one run has it."""
    text = spread([100 * run["mean_unseen"] for run in runs])
    if len(runs) == 1 and (interval := runs[0].get("mean_unseen_interval")):
        text += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return text


def mean_validation(runs: list[Record]) -> str:
    """Mean over the validation domains."""
    return spread([100 * mean(run["domains"][name]["score"] for name in VALIDATION) for run in runs])


def spread(values: Sequence[float]) -> str:
    """Mean, and the standard deviation over the seeds where there are several."""
    if len(values) == 1:
        return decimal(values[0])
    return f"{decimal(mean(values))} ± {decimal(stdev(values))}"


def number(cell: str) -> float:
    """The number that a cell begins with."""
    return float(cell.split()[0])


def seconds_of(run: Record) -> float:
    """Training time of the student's stages."""
    return sum(stage["seconds"] for stage in run["stages"] if stage["name"] != "teacher")


def memory_of(run: Record) -> float:
    """Peak memory of the run."""
    return max((stage.get("memory_mb", 0) for stage in run["stages"]), default=0)


def teacher_seconds(runs: list[Record]) -> str:
    """Training time of the teacher's head, the mean over the seeds."""
    found = {run["seed"]: stage["seconds"] for run in runs for stage in run["stages"] if stage["name"] == "teacher"}
    return f"{mean(found.values()):.0f}" if found else "–"


def paper(place: Record, group: str, name: str | None, column: str = "Avg.") -> str:
    """The paper's number in the same place; ``name`` None is its teacher."""
    where = place.get("paper") or place.get("papers", {}).get(group)
    if where is None:
        return "–"
    found = paper_block(where["table"], where["block"], where.get("source", ""), paper=where.get("paper", "gkd"))
    heads = [title.split("/")[-1] for title in found.columns]
    position = heads.index(column) if column in heads else len(heads) - 1
    teacher = next((row for row in found.rows if row.role == "teacher"), None)
    row = found.row(name) if name else teacher
    score = row.scores[position] if row else None
    return "–" if score is None else f"{score:.1f}"


def paper_column(place: Record, column: str = "Avg.") -> str:
    """Which of the paper's columns :func:`paper` reads."""
    where = place.get("paper") or next(iter(place.get("papers", {}).values()), None)
    if where is None:
        return "mean unseen"
    found = paper_block(where["table"], where["block"], where.get("source", ""), paper=where.get("paper", "gkd"))
    heads = [title.split("/")[-1] for title in found.columns]
    return "mean unseen" if column in heads else heads[-1]


def corrupted(rows: list[Record], runs: list[Record], teachers: list[Record]) -> list[str]:
    """Scores on corrupted images, corruption by corruption."""
    if not any("corruptions" in run for run in runs):
        return []
    models = [("Teacher", teachers), *[(row["title"], of_row(row, runs)) for row in rows]]
    first = runs[0]["corruptions"]
    lines = []
    for title, own in models:
        found = [each["corruptions"] for each in own]
        shares = [spread([100 * each[key] for each in found]) for key in ("clean", "mpc", "rpc")]
        lines.append([title, *shares, *[spread([100 * mean(each["scores"][name]) for each in found])
                                        for name in first["scores"]]])  # fmt: skip
    severities = ", ".join(map(str, first["severities"]))
    head = ["model", "clean", "mPC", "rPC (%)", *[name.replace("_", " ") for name in first["scores"]]]
    where = ", ".join(first["domains"])
    about = (
        f"{runs[0]['label']} in percent on {first['images']} images of {where}, mean over the severities {severities}:"
    )
    return ["## Under corruption", "", about, "", *markdown(head, lines), ""]


def sweep(
    table: Record, rows: list[Record], values: list[str], runs: list[Record], teachers: list[Record]
) -> list[str]:
    """Mean over the unseen domains by sweep value, with the paper's numbers."""
    columns = {value: value.replace("/", ":") for value in values}
    printed = "paper" in table
    head = [table["sweep"]["title"], *values, *[f"paper: {columns[value]}" for value in values if printed]]
    lines = [
        ["Teacher", *[spread([100 * t["mean_unseen"] for t in teachers if t["sweep"] == value]) for value in values]]
    ]
    lines[0] += ["–" for _ in values if printed]
    for row in rows:
        cells = [
            spread([100 * run["mean_unseen"] for run in runs if (run["row"], run["sweep"]) == (row["title"], value)])
            for value in values
        ]
        if printed:
            named = row.get("paper")
            cells += [paper(table, "", named, columns[value]) if named else "–" for value in values]
        lines.append([row["title"], *cells])
    return [f"Mean over the unseen domains, {runs[0]['label']} in percent:", "", *markdown(head, lines), ""]


def leads(sentences: Iterable[str]) -> list[str]:
    """The comparisons of best rows; a leading plus sign is no bullet."""
    return [f"{re.sub(r'^[+] ', '', today(sentence))}\n" for sentence in sentences]


def by_seed(rows: list[Record], values: Sequence[str], runs: list[Record], teachers: list[Record]) -> list[str]:
    """Mean over the unseen domains, seed by seed."""
    seeds = sorted({run["seed"] for run in runs})
    if len(seeds) == 1 or values[1:]:
        return []
    lines = []
    several = len({row["group"] for row in rows}) > 1
    for row in [{"title": "Teacher", "group": ""}, *rows]:
        title = f"{row['group']}: {row['title']}" if several and row["group"] else row["title"]
        own = teachers if title == "Teacher" else of_row(row, runs)
        found = {run["seed"]: run for run in own}
        each = [found.get(seed, {}) for seed in seeds]  # a row may have fewer
        cells = [f"{100 * run['mean_unseen']:.1f}" if run else "–" for run in each]
        kept = [f"{100 * share:.1f}" if (share := run.get("retention")) else "–" for run in each]
        lines.append([title, *cells, *kept])
    head = ["model", *[f"seed {seed}" for seed in seeds], *[f"retention, seed {seed}" for seed in seeds]]
    return [
        "## Seed by seed",
        "",
        "Mean over the unseen domains, and retention in percent:",
        "",
        *markdown(head, lines),
        "",
    ]


def settings_of(rows: list[Record], table: Record) -> list[str]:
    """Recipe and settings of every row."""
    lines = []
    for row in rows:
        settings = " ".join(f"`{today(each)}`" for each in row.get("settings", []))
        name = f"{row['group']}: {row['title']}" if row["group"] else row["title"]
        lines.append([name, f"`recipes/{row['recipe']}.yaml`", settings])
    for value, settings in table.get("sweep", {}).get("values", {}).items():
        lines.append([f"{table['sweep']['title']}: {value}", "", " ".join(f"`{each}`" for each in settings)])
    return ["## Settings", "", *markdown(["row", "recipe", "settings"], lines), ""]


def hardware(found: Iterable[Record]) -> str:
    """The machines, each once."""
    return "; ".join(
        sorted({re.sub(r"\b1 (core|thread)s", r"1 \1", each["hardware"]) for each in found if "hardware" in each})
    )


def sources_of(environments: list[Record]) -> Record:
    """Hardware, versions and commits of the runs."""
    return {
        "hardware": hardware(environments),
        "torch": ", ".join(sorted({each["torch"] for each in environments})),
        "commits": ", ".join(sorted({each["commit"] for each in environments})),
    }


def read(name: str) -> Any:
    """A raw file."""
    return json.loads((RAW / name).read_text(encoding="utf-8"))


def today(text: str) -> str:
    """Names as they are now: a decoder is called a head."""
    return re.sub(r"\bdecoder(s?)\b", r"head\1", text)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table; columns of numbers are aligned to the right."""
    lines = [list(line) for line in rows]
    rule = []
    for column, title in enumerate(head):
        cells = [line[column] for line in lines if line[column] not in ("", "–")]
        numbers = all(
            re.match(r"[*]*[+-]?[0-9]", cell) and not re.search(r"[0-9][)]|, [a-z0-9]+:|: ", cell) for cell in cells
        )
        rule.append("---:" if numbers and column and title else "---")
    return [f"| {' | '.join(line)} |" for line in (head, rule, *lines)]


def decimal(value: float, places: int = 1, sign: str = "") -> str:
    """A number with a fixed number of places; halves are rounded up."""
    exact = Decimal(str(round(value, 6)))
    return f"{exact.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP):{sign}f}"
