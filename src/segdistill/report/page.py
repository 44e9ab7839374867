"""The page: one HTML file that needs nothing else, with the answer at its top, for runs and for tables of recipes."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from segdistill.files import write_bytes
from segdistill.report import charts
from segdistill.report.answer import headline, remarks, tiles
from segdistill.report.corruptions import corruption_table, severity_panels
from segdistill.report.formats import to_csv, to_json, to_latex, to_markdown
from segdistill.report.gallery import failures, gallery
from segdistill.report.table import cost_table, main_table, paper_table, shared_runs, stage_table
from segdistill.report.views import detail_views, group_views, hex_color, row_colors
from segdistill.results import Comparison, collect

SCRIPTS = ("sort.js", "csv.js", "zoom.js")


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Read the run folders and write the page to ``out``, whole or not at all."""
    page = render(collect(folders)).encode()
    write_bytes(out, page)


def write_tables(found: Comparison, folder: Path) -> list[Path]:
    """Write the table as Markdown, CSV, JSON, LaTeX and the page; the files that were written."""
    texts = {
        "table.md": to_markdown(found),
        "table.csv": to_csv(found),
        "table.json": to_json(found),
        "table.tex": to_latex(found),
        "report.html": render(found),
    }
    for name, text in texts.items():
        write_bytes(folder / name, text.encode())
    return [folder / name for name in texts]


def render(found: Comparison) -> str:
    """The page as text."""
    details, first, colors = detail_views(found), found.first, row_colors(found)
    titles = {found.title_of(row): colors[row] for row in found.lines}
    galleries = [(view, kept) for view in details if (kept := gallery(view))]
    return (
        _templates()
        .get_template("page.html")
        .render(
            c=found,
            charts=charts,
            policy=policy(),
            script=_script(),
            headline=headline(found),
            remarks=remarks(found),
            tiles=tiles(found),
            eyebrow=_eyebrow(found),
            main=main_table(found),
            costs=cost_table(found),
            stages=stage_table(found),
            corruptions=corruption_table(found),
            severities=[(view, panels) for view in details if (panels := severity_panels(view))],
            papers=[paper_table(place) for place in found.places],
            colors=colors,
            all_entries=[{"title": title, "color": color} for title, color in titles.items()],
            sweeps=charts.sweep_panels(found),
            leads=charts.lead_panels(found),
            views=group_views(found),
            details=details,
            front={row for row, line in enumerate(found.rows) if line.baseline},
            galleries=galleries,
            switched=any(
                len(figure.pictures) > 1
                for _, domains in galleries
                for domain in domains
                for scene in domain.scenes
                for figure in scene.figures
            ),
            failures=[(view, *kept) for view in details if (kept := failures(view))[1]],
            swatches=[(name, hex_color(color)) for name, color in zip(first.classes, first.colors, strict=True)]
            if first
            else [],
            environment=_environment(found),
            recipes=_recipes(found),
        )
    )


@cache
def policy() -> str:
    """What a browser may load: nothing from outside, no script but ours."""
    digest = base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@cache
def _script() -> str:
    folder = resources.files("segdistill.report").joinpath("templates")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("segdistill.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = _unbroken
    return environment


def _unbroken(text: str) -> str:
    """``text`` whose numbers stay on one line with their units, and names such as ``+ GKD`` with their sign."""
    return re.sub(r"(?<=\d) (?=[%\w])|(?<=\+) ", "\u00a0", text)


def _eyebrow(found: Comparison) -> list[str]:
    """The table's title, where the models were trained and where they are tested."""
    if (first := found.first) is None:
        return [found.title]
    names = ", ".join(first.unseen)
    parts = [found.title, f"Trained on {', '.join(first.source)}" if first.source else ""]
    parts.append(
        f"{len(first.unseen)} unseen {'domain' if len(first.unseen) == 1 else 'domains'}: {names}"
        if names
        else "no unseen domains"
    )
    return [part for part in parts if part]


def _environment(found: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """What all runs share once, what differs with the runs that it belongs to: (key, [(value, whose)])."""
    runs = shared_runs(found)
    items = []
    for key in dict.fromkeys(key for _, run in runs for key in run.environment):
        values: dict[str, dict[str, list[str]]] = {}
        for title, run in runs:
            whose = values.setdefault(run.environment.get(key, "unknown"), {})
            whose.setdefault(title, []).append(str(run.seed))
        if key == "started" and len(values) > 1:
            values = {f"{min(values)} to {max(values)}": {}}
        named = [(value, "" if len(values) == 1 else _whose(whose)) for value, whose in values.items()]
        items.append((key.replace("_", " "), named))
    return [*items, ("seeds", [(", ".join(map(str, sorted({run.seed for _, run in runs}))), "")])]


def _whose(seeds: dict[str, list[str]]) -> str:
    """``GKD, seeds 0 1; Vanilla KD, seed 0``."""
    return "; ".join(f"{title}, seed{'s' * (len(own) > 1)} {' '.join(own)}" for title, own in seeds.items())


def _recipes(found: Comparison) -> list[tuple[str, str]]:
    """The resolved recipe of every row's first run."""
    firsts = {title: run.recipe for title, run in reversed(shared_runs(found)) if run.recipe is not None}
    return list(firsts.items())[::-1]
