"""The page: one HTML file that needs nothing else, with the answer at its top."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as e
from itertools import groupby
from pathlib import Path
from statistics import fmean

from segdistill.files import write_atomic
from segdistill.papers import PaperPlace
from segdistill.report import charts
from segdistill.report.answer import headline, ranking, remarks
from segdistill.report.compare import Comparison, collect
from segdistill.report.frame import frame, hero_section, meter, tile
from segdistill.report.gallery import class_legend, gallery
from segdistill.report.runs import Run
from segdistill.report.table import Cell, Column, millions, percent, table_rows

GROUPS = {
    "source": "source",
    "unseen": "unseen domains",
    "mean": "",
    "validation": "validation, not unseen",
    "cost": "cost",
}


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Read the run folders and write the page to ``out``, whole or not at all."""
    page = render(collect(folders)).encode()
    write_atomic(out, lambda file: file.write(page))


def render(comparison: Comparison) -> str:
    """The page as text."""
    sections = [
        ("table", "Table", table_section(comparison)),
        ("paper", "The paper's numbers", paper_section(comparison)),
        ("bars", "Unseen domains", bars_section(comparison)),
        ("classes", "Classes", class_section(comparison)),
        ("curves", "Learning", curve_section(comparison)),
        ("pictures", "Pictures", picture_section(comparison)),
        ("how", "How it was made", how_section(comparison)),
    ]
    return frame(headline(comparison), hero(comparison), sections)


def hero(comparison: Comparison) -> str:
    """The answer: a sentence, four numbers, and what else must be said."""
    return hero_section(domains_line(comparison), headline(comparison), tiles(comparison), remarks(comparison))


def domains_line(comparison: Comparison) -> str:
    """Where the models were trained and where they are tested."""
    names = ", ".join(comparison.unseen)
    line = f"{len(comparison.unseen)} unseen domains: {names}" if names else "no unseen domains"
    return f"Trained on {', '.join(comparison.source)} · {line}" if comparison.source else line


def tiles(comparison: Comparison) -> str:
    """The best student's numbers: score, lead, share kept of the teacher, size."""
    ranked = ranking(comparison)
    if not ranked:
        return ""
    best, teacher = ranked[0], comparison.teacher
    score, kept = best.mean_unseen, best.retention
    assert score is not None
    spread = f"± {percent(score.sd)} over {len(score.values)} seeds" if score.sd is not None else "one seed"
    parts = [tile("mean over unseen", percent(score.mean), "mIoU", f"{e(best.title)}, {spread}")]
    if len(ranked) > 1 and (second := ranked[1].mean_unseen) is not None:
        lead = f"{100 * (score.mean - second.mean):+.1f}"
        parts.append(tile("ahead of the next student", lead, "mIoU", f"{e(ranked[1].title)}, {percent(second.mean)}"))
    if kept is not None and teacher is not None and teacher.mean_unseen is not None:
        note = f"teacher: {percent(teacher.mean_unseen.mean)} mIoU"
        parts.append(tile("retention", percent(kept.mean), "%", f"{meter(kept.mean)}{note}"))
    if best.size is not None:
        note = ""
        if teacher is not None and teacher.size:
            share = best.size / teacher.size
            note = f"{meter(share)}{100 * share:.0f} % of the teacher's {millions(teacher.size)} M"
        parts.append(tile("parameters", millions(best.size), "M", note))
    return f'<div class="tiles">{"".join(parts)}</div>'


def table_section(comparison: Comparison) -> str:
    """The table of ``table_rows``."""
    table = table_rows(comparison)
    spans = [tuple(columns) for _, columns in groupby(table.columns, key=lambda column: column.group)]
    groups = "".join(
        f'<th colspan="{len(span)}" scope="colgroup" class="{_classes(span[0], True)}">{GROUPS[span[0].group]}</th>'
        for span in spans
    )
    starts = {sum(map(len, spans[:i])) for i in range(len(spans))}
    heads = "".join(
        f'<th scope="col" class="{_classes(c, j in starts)}">{e(c.title)}</th>' for j, c in enumerate(table.columns)
    )
    colors = charts.arm_colors(comparison)
    rows = []
    for row in table.rows:
        cells = "".join(
            f'<td class="{_classes(column, j in starts)}">{_cell(cell)}</td>'
            for j, (column, cell) in enumerate(zip(table.columns, row.cells, strict=True))
        )
        color = colors["teacher" if row.role == "teacher" else row.name]
        rows.append(f'<tr class="{row.role}"><th scope="row" class="{color}"><i></i>{e(row.label)}</th>{cells}</tr>')
    notes = ["mIoU in percent.", "Bold: the best student of a column."]
    if any(len(row.seeds) > 1 for row in table.rows):
        notes.append("With several seeds: mean ± standard deviation over the seeds.")
    if any(cell.interval and cell.sd is None for row in table.rows for cell in row.cells):
        notes.append("In brackets: 95 % interval of a bootstrap over the images.")
    if comparison.teacher is not None and comparison.unseen:
        notes.append("Retention: the student's mean over unseen domains divided by its teacher's.")
    notes.append("Seconds: training time.")
    if comparison.validation:
        notes.append("Validation domains were used to choose settings; they count neither as unseen nor in any mean.")
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr class="groups"><td></td>{groups}</tr>'
        f'<tr><th scope="col">model</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<p class="note">{" ".join(notes)}</p>'
    )


def _classes(column: Column, first: bool) -> str:
    return f"{column.group}{' first' if first else ''}{' key' if column.key == 'mean_unseen' else ''}"


def _cell(cell: Cell) -> str:
    text = f"<strong>{cell.number}</strong>" if cell.best else cell.number
    return f"{text}<small> {cell.spread.replace(' ', '&nbsp;')}</small>" if cell.spread else text


def paper_section(comparison: Comparison) -> str:
    """What the paper prints where it makes this comparison, its own data and networks."""
    places = list(dict.fromkeys(run.paper for run in comparison.runs if run.paper is not None))
    return "".join(paper_table(place) for place in places)


def paper_table(place: PaperPlace) -> str:
    """One group of rows of a table of the paper, all that it prints."""
    block = place.block_of()
    heads = "".join(f'<th scope="col">{e(name)}</th>' for name in block.columns)
    rows = "".join(
        f'<tr class="{e(row.role)}"><th scope="row">{e(f"{row.name}, {row.arch}" if row.arch else row.name)}</th>'
        + "".join(f"<td>{'–' if score is None else f'{score:.1f}'}</td>" for score in row.scores)
        + "</tr>"
        for row in block.rows
    )
    return (
        f'<p class="lead">arXiv 2603.02554, Table {e(place.table)}, {e(place.block)}: mIoU in percent, as printed. '
        "Other data, networks and schedules than in the table above.</p>"
        f'<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">model</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def bars_section(comparison: Comparison) -> str:
    """Mean over unseen domains, then domain by domain."""
    if not comparison.unseen:
        return ""
    several = any(len(arm.seeds) > 1 for arm in comparison.arms)
    dashed = " The dashed line is the teacher." if comparison.teacher else ""
    return (
        f'<p class="lead">Mean mIoU over domains that no training stage saw.{" Each dot is a seed." if several else ""}'
        f"{dashed}</p>{charts.mean_bars(comparison)}"
        f"<h3>Domain by domain</h3>{charts.legend(charts.everyone(comparison))}{charts.domain_dots(comparison)}"
    )


def class_section(comparison: Comparison) -> str:
    """IoU per class over the unseen domains."""
    if not comparison.unseen:
        return ""
    return (
        '<p class="lead">IoU of each class, mean over the unseen domains.</p>'
        f"{charts.legend(charts.everyone(comparison))}{charts.class_bars(comparison)}"
    )


def curve_section(comparison: Comparison) -> str:
    """Loss per stage, then probes and diagnostics."""
    panels = charts.curve_panels(comparison)
    if not panels:
        return ""
    entries = [(arm, color) for arm, color in charts.everyone(comparison) if arm is not comparison.teacher]
    figures = "".join(f"<figure><figcaption>{e(title)}</figcaption>{svg}</figure>" for title, svg in panels)
    return (
        '<p class="lead">One line per run. Losses of different methods have different units: '
        "compare shapes, not heights.</p>"
        f'{charts.legend(entries)}<div class="curves">{figures}</div>'
    )


def picture_section(comparison: Comparison) -> str:
    """The gallery with its legend and a switch between classes and errors (plain CSS)."""
    return picture_rows([("", comparison)])


def picture_rows(named: Sequence[tuple[str, Comparison]]) -> str:
    """(heading, comparison): several galleries under one switch."""
    rows = "".join(
        f"{f'<h3 class=group>{e(name)}</h3>' if name else ''}{shown}"
        for name, comparison in named
        if (shown := gallery(comparison))
    )
    if not rows:
        return ""
    return (
        '<p class="lead">The first seed of every model on the same scenes; beside each name the share of pixels '
        "with the right class.</p>"
        '<div class="switch" role="radiogroup" aria-label="Show"><label><input type="radio" name="view" checked>'
        'Classes</label><label><input type="radio" name="view" id="view-errors">Errors</label></div>'
        f'<div class="keys">{class_legend(named[0][1])}<p class="key-errors"><i></i>wrong class '
        f'<i class="right"></i>right <i class="ignored"></i>not counted</p></div>{rows}'
    )


def how_section(comparison: Comparison) -> str:
    """Where the numbers come from: environment, stages with their times, recipes."""
    return f"{_environment(comparison.runs)}{_stages(comparison)}{_recipes(comparison)}"


def _environment(runs: Sequence[Run]) -> str:
    """What all runs share once, what differs per run."""
    keys = list(dict.fromkeys(key for run in runs for key in run.environment))
    items = []
    for key in keys:
        values: dict[str, list[Run]] = {}
        for run in runs:
            values.setdefault(run.environment.get(key, "unknown"), []).append(run)
        if key == "started" and len(values) > 1:
            text = f"<code>{e(min(values))}</code> to <code>{e(max(values))}</code>"
        elif len(values) == 1:
            text = f"<code>{e(next(iter(values)))}</code>"
        else:
            lines = (f"<li><code>{e(v)}</code> <small>{e(_whose(who))}</small></li>" for v, who in values.items())
            text = f"<ul>{''.join(lines)}</ul>"
        items.append(f"<dt>{e(key.replace('_', ' '))}</dt><dd>{text}</dd>")
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    items.append(f"<dt>seeds</dt><dd><code>{seeds}</code></dd>")
    return f"<dl>{''.join(items)}</dl>"


def _whose(runs: Sequence[Run]) -> str:
    """``GKD, seeds 0 1; Vanilla KD, seed 0``."""
    seeds: dict[str, list[str]] = {}
    for run in runs:
        seeds.setdefault(run.title, []).append(str(run.seed))
    return "; ".join(f"{title}, seed{'s' * (len(own) > 1)} {' '.join(own)}" for title, own in seeds.items())


def _stages(comparison: Comparison) -> str:
    """Run time per stage, the mean over seeds; the bars compare all stages."""
    longest = max((stage.seconds or 0.0 for run in comparison.runs for stage in run.stages), default=0.0) or 1.0
    bodies = [_arm_stages(arm.title, comparison.arm_runs(arm), longest) for arm in comparison.arms]
    if not any(bodies):
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("model", "stage", "type"))
    head += "".join(f'<th scope="col" class="number">{name}</th>' for name in ("steps", "images/s", "time"))
    return (
        '<h3>Run time per stage</h3><div class="scroll" tabindex="0"><table class="stages">'
        f"<thead><tr>{head}<td></td></tr></thead>{''.join(bodies)}</table></div>"
    )


def _arm_stages(title: str, runs: Sequence[Run], longest: float) -> str:
    """The rows of one arm; empty where its first run left no manifests."""
    rows = []
    for i, stage in enumerate(runs[0].stages):
        same = [s.seconds for run in runs for s in run.stages if s.name == stage.name and s.seconds is not None]
        time = fmean(same) if same else None
        numbers = (_count(stage.steps), _speed(runs, stage.name), "–" if time is None else duration(time))
        name = f'<th scope="row" rowspan="{len(runs[0].stages)}">{e(title)}</th>' if i == 0 else ""
        rows.append(
            f"<tr>{name}<td>{e(charts.stage_title(stage.name))}</td><td>{e(stage.type or '–')}</td>"
            + "".join(f'<td class="number">{number}</td>' for number in numbers)
            + f'<td class="time"><i style="width:{100 * (time or 0) / longest:.1f}%"></i></td></tr>'
        )
    return f"<tbody>{''.join(rows)}</tbody>" if rows else ""


def _speed(runs: Sequence[Run], stage: str) -> str:
    """Images per second in the log of a stage."""
    wanted = charts.stage_title(stage)
    values = [
        step.images_per_s
        for run in runs
        for step in run.metrics
        if charts.stage_title(step.stage) == wanted and step.images_per_s is not None
    ]
    return f"{fmean(values):.0f}" if values else "–"


def _recipes(comparison: Comparison) -> str:
    """The resolved recipe of every arm's first run."""
    parts = []
    for arm in comparison.arms:
        run = comparison.arm_runs(arm)[0]
        if run.recipe is not None:
            parts.append(f"<details><summary>Recipe: {e(arm.title)}</summary><pre>{e(run.recipe)}</pre></details>")
    return "".join(parts)


def duration(seconds: float | int) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
