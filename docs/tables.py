"""Writes a page for every table of measurements, docs/raw/NAME.md, from its raw file: ``uv run python docs/tables.py``.

docs/tables.yml lists the pages. Numbers come from the raw files alone; a test fails when a page is out of date.
"""

from __future__ import annotations

import json
import re

import yaml
from grids import RAW, Page, Record, grid, hardware, markdown, read, single_runs, today


def pages() -> dict[str, str]:
    """File name -> text of every page."""
    entries = yaml.safe_load(RAW.with_name("tables.yml").read_text(encoding="utf-8"))
    texts = {f"{name}.md": page(name, entry) for name, entry in entries.items()}
    return texts | {"index.md": index(entries)}


def page(name: str, entry: Record) -> str:
    """One page: what is compared, the tables, where the numbers come from."""
    body, facts, raw = KINDS[entry["kind"]](name, entry)
    lines = [f"# {title_of(name, entry)}", "", f"{NOTE}", "", entry["what"].strip(), "", *body, "## Source", ""]
    if command := entry.get("command", facts.pop("command", "")):
        lines += ["```console", f"$ {command if command.startswith('uv ') else 'uv run ' + command}", "```", ""]
    facts |= {"raw": ", ".join(f"[{file}]({file})" for file in raw)}
    if "findings" in entry:
        facts["discussed in"] = f"[{entry['findings']}](../results/{entry['findings']})"
    lines += [f"- {key[0].upper()}{key[1:]}: {value}" for key, value in facts.items() if value]
    return "\n".join([*lines, ""])


NOTE = "<!-- Written by docs/tables.py; edit docs/tables.yml instead. -->"


def title_of(name: str, entry: Record) -> str:
    """The title that the entry gives, or the one of the grid."""
    return entry.get("title") or today(read(f"{name}.json")["table"]["title"])


def index(entries: dict[str, Record]) -> str:
    """The list of all pages."""
    rows = [[f"[{title_of(name, entry)}]({name}.md)", entry["what"].strip()] for name, entry in entries.items()]
    head = ["# Tables and raw numbers", "", NOTE, "", "One page per table, written from the raw file beside it."]
    return "\n".join([*head, "", *markdown(["table", "what is compared"], rows), ""])


def records(name: str, entry: Record) -> Page:
    """A list of records, one line each; numbers as they are in the raw file."""
    found = [flat(record) for record in read(f"{name}.json")]
    dropped = ("hardware", "commit")
    columns = [key for key in dict.fromkeys(key for record in found for key in record) if key not in dropped]
    lines = [[cell(record.get(column, "")) for column in columns] for record in found]
    facts = {
        "hardware": hardware(found),
        "commits": ", ".join(sorted({record["commit"] for record in found if "commit" in record})),
    }
    heads = [NAMES.get(column, column.replace("_", " ")) for column in columns]
    return [*markdown(heads, lines), ""], facts, [f"{name}.json"]


NAMES = {
    "val": "mean validation", "validation": "mean validation", "mean_validation": "mean validation",
    "enc": "encoder rate",
    "base": "recipe", "game": "game (source)", "drop": "without the domain-agnostic stage", "row": "run",
}  # fmt: skip
"""Column titles that differ from the keys of the raw files."""


def flat(record: Record) -> Record:
    """The record with the scores by domain as columns, and its stages as text."""
    kept: Record = {}
    for key, value in record.items():
        if key == "unexplained":
            kept |= {domain: f"{share:.3f}" for domain, share in value.items()}
        elif key == "stages":
            kept[key] = ", ".join(f"{name} {steps}" for name, steps, _ in value)
        else:
            kept[key] = value
    return kept


def cell(value: object) -> str:
    """A value as text."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {cell(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " ".join(f"`{today(str(each))}`" for each in value)
    return "yes" if value is True else today(str(value))


def convolutional(name: str, entry: Record) -> Page:
    """The arms of the convolutional student."""
    raw = read(f"{name}.json")
    domains = list(raw["teacher_miou"])
    lines = [["Teacher", *[f"{100 * raw['teacher_miou'][domain]:.1f}" for domain in domains], "–", "–", "–"]]
    settings = []
    for arm in raw["arms"].values():
        low, high = arm["mean_unseen_interval"]
        unseen = f"{100 * arm['mean_unseen']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        seconds = sum(stage["seconds"] for stage in arm["stages"] if stage["name"] != "teacher")
        title = today(arm["title"])
        lines.append([title, *[f"{100 * arm['miou'][domain]:.1f}" for domain in domains], unseen,
                      f"{100 * arm['retention']:.1f}", f"{seconds:.0f}"])  # fmt: skip
        settings.append(f"- {title}: `{arm['command']}`")
    head = ["model", "game (source)", *domains[1:], "mean unseen", "retention (%)", "seconds"]
    text = f"mIoU in percent, seed {raw['seed']}, 95 % bootstrap intervals over images in brackets."
    facts = {"hardware": hardware([raw]), "commits": raw["commit"]}
    return [*markdown(head, lines), "", text, "", *settings, ""], facts, [f"{name}.json"]


def roads(name: str, entry: Record) -> Page:
    """Shares by row and seed."""
    raw = read(f"{name}.json")
    rows = {"Teacher": list(raw["teacher"].values())} | raw["rows"]
    lines = [[title, *[f"{value:.0f}" for value in values]] for title, values in rows.items()]
    head = ["model", *[f"seed {seed}" for seed in raw["teacher"]]]
    return [*markdown(head, lines), ""], {"runs": "those of [Table 1](table1_world.md)"}, [f"{name}.json"]


def probe(name: str, entry: Record) -> Page:
    """Scores of the probe by snapshot."""
    text = (RAW / f"{name}.jsonl").read_text(encoding="utf-8")
    found = {}
    for record in map(json.loads, text.splitlines()):
        digits = re.sub(r"\D", "", record["snapshot"])
        found[int(digits) if digits else 8000] = record
    domains = list(next(iter(found.values()))["domains"])
    lines = [
        [
            f"{step:,}",
            *[f"{100 * record['domains'][domain]:.1f}" for domain in domains],
            f"{100 * record['validation']:.1f}",
        ]
        for step, record in sorted(found.items())
    ]
    head = ["step", "game (source)", *domains[1:], "mean validation"]
    return [*markdown(head, lines), ""], {}, [f"{name}.jsonl"]


def curve(name: str, entry: Record) -> Page:
    """Every fifth line of a logged curve."""
    raw = read(f"{name}.json")
    picked = [row for row in raw["rows"] if row[0] % 500 == 0]
    lines = [[f"{row[0]:,}", *[f"{value:.5g}" for value in row[1:]]] for row in picked]
    return [*markdown([column.replace("_", " ") for column in raw["columns"]], lines), ""], {}, [f"{name}.json"]


KINDS = {
    "grid": grid, "runs": single_runs, "list": records, "cnn": convolutional, "roads": roads, "probe": probe,
    "curve": curve,
}  # fmt: skip


if __name__ == "__main__":
    for file, text in pages().items():
        (RAW / file).write_text(text, encoding="utf-8")
