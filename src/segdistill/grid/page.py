"""The page that a table ends in: its answer, the table in the paper's layout, and the figures behind it."""

from __future__ import annotations

from collections.abc import Callable
from html import escape as e
from pathlib import Path

from segdistill.files import write_atomic
from segdistill.grid.answer import answer, remarks
from segdistill.grid.charts import lead_rows, sweep_panels
from segdistill.grid.render import DASH, layout, to_csv, to_json, to_latex, to_markdown
from segdistill.grid.result import TEACHER, TableResult
from segdistill.grid.significance import Lead, leads, leads_over_all
from segdistill.grid.views import View, detail_views, everything, group_views, last_value, row_colors
from segdistill.report import charts
from segdistill.report.compare import Comparison, Stat
from segdistill.report.frame import frame, hero_section, meter, tile
from segdistill.report.page import (
    class_section,
    curve_section,
    domains_line,
    duration,
    how_section,
    paper_table,
    picture_rows,
)
from segdistill.report.radar import radar
from segdistill.report.table import millions, percent


def render(result: TableResult) -> str:
    """The page as text."""
    found, value = leads(result), last_value(result)
    details = detail_views(result, value)
    sections = [
        ("errors", "Not finished", errors_section(result)),
        ("table", "Table", table_section(result) if result.runs else ""),
        ("paper", "The paper's numbers", "".join(map(paper_table, result.places))),
        ("sweep", _sweep_title(result), sweep_section(result)),
        ("bars", "Unseen domains", domain_section(result, value, details)),
        ("leads", "How sure", lead_section(result, found)),
        ("classes", "Classes", _each(details, class_section)),
        ("curves", "Learning", _each(details, curve_section)),
        ("pictures", "Pictures", picture_rows([(view.title, view.comparison) for view in details])),
        ("cost", "Cost", cost_section(result)),
        ("how", "How it was made", how_section(everything(result)) if result.runs else ""),
    ]
    title = result.table.title
    return frame(f"{title}: {answer(result, found)}", hero(result, found), sections)


def write_table(result: TableResult, folder: Path) -> list[Path]:
    """Write the table as Markdown, CSV, JSON, LaTeX and the page; the files that were written."""
    texts = {
        "table.md": to_markdown(result),
        "table.csv": to_csv(result),
        "table.json": to_json(result),
        "table.tex": to_latex(result),
        "report.html": render(result),
    }
    for name, text in texts.items():
        write_atomic(folder / name, lambda file, text=text: file.write(text.encode()))
    return [folder / name for name in texts]


def hero(result: TableResult, found: list[Lead]) -> str:
    """The table's title, its answer, the numbers behind it, and what else must be said."""
    views = group_views(result, last_value(result))
    eyebrow = result.table.title + (f" · {domains_line(views[0].comparison)}" if views else "")
    tiles = sweep_tiles(result) if result.table.sweep else best_tiles(result, found)
    return hero_section(eyebrow, answer(result, found), tiles, remarks(result, found))


def best_tiles(result: TableResult, found: list[Lead]) -> str:
    """The best row: its score, its lead over the next row of its group, its gain over the baseline, its retention."""
    tops = [ranked for group in result.groups if (ranked := result.ranked(group, ""))]
    if not tops:
        return ""
    ranked = max(tops, key=lambda ranked: _unseen(result, ranked[0], "").mean)
    best, score = ranked[0], _unseen(result, ranked[0], "")
    parts = [
        tile(
            "mean over unseen", percent(score.mean), "mIoU", f"{e(result.table.rows[best].full_title)}, {_seeds(score)}"
        )
    ]
    if len(ranked) > 1:
        second = _unseen(result, ranked[1], "")
        lead = next((one for one in found if (one.first, one.second) == (best, ranked[1])), None)
        sure = "" if lead is None else f"<div>95 % interval {' to '.join(lead.bounds)}</div>"
        note = f"{e(result.table.rows[ranked[1]].title)}, {percent(second.mean)}{sure}"
        parts.append(tile("ahead of the runner-up", f"{100 * (score.mean - second.mean):+.1f}", "points", note))
    gain, base = result.gain(best, ""), result.baseline(best)
    if gain is not None and base is not None:
        note = f"{e(result.table.rows[base].title)}, {percent(_unseen(result, base, '').mean)}"
        parts.append(tile("gain over the baseline", f"{gain:+.1f}", "points", note))
    kept, teacher = result.entries[best, ""].retention, result.entry(TEACHER, "")
    if kept is not None and teacher is not None and teacher.mean_unseen is not None:
        note = f"{meter(kept.mean)}teacher: {percent(teacher.mean_unseen.mean)} mIoU"
        parts.append(tile("retention", percent(kept.mean), "%", note))
    return f'<div class="tiles">{"".join(parts)}</div>'


def sweep_tiles(result: TableResult) -> str:
    """The best row at each value of the sweep."""
    assert result.table.sweep is not None
    parts = []
    for value in result.values:
        tops = [ranked[0] for group in result.groups if (ranked := result.ranked(group, value))]
        if tops:
            best = max(tops, key=lambda row: _unseen(result, row, value).mean)
            score = _unseen(result, best, value)
            label = f"{e(result.table.sweep.title)}: {e(value)}"
            parts.append(
                tile(label, percent(score.mean), "mIoU", f"{e(result.table.rows[best].full_title)}, {_seeds(score)}")
            )
    return f'<div class="tiles">{"".join(parts)}</div>' if parts else ""


def errors_section(result: TableResult) -> str:
    """What went wrong where; empty where every run finished."""
    if not result.errors:
        return ""
    lines = "".join(f"<li>{e(line)}</li>" for line in result.errors)
    what, them = ("1 run has", "it") if len(result.errors) == 1 else (f"{len(result.errors)} runs have", "them")
    return (
        f'<p class="lead">{what} not finished; the table shows the others. The command that made this page runs {them} '
        f'(without <code>--collect</code>).</p><ul class="errors">{lines}</ul>'
    )


def table_section(result: TableResult) -> str:
    """The table as :func:`segdistill.grid.render.layout` has it."""
    heads, lines = layout(result)
    kinds = ["", *(_kind(head) for head in heads[1:])]
    if "paper" in kinds:
        kinds[kinds.index("paper")] += " first"
    top = "".join(f'<th scope="col" class="{kind}">{e(head)}</th>' for head, kind in zip(heads, kinds, strict=True))
    colors, rows = row_colors(result), []
    for line in lines:
        if line.heading:
            rows.append(f'<tr class="group"><th colspan="{len(heads)}" scope="rowgroup">{e(line.heading)}</th></tr>')
        cells = "".join(
            f'<td class="{kind}">{_cell(cell, best)}</td>'
            for cell, best, kind in zip(line.cells, line.best, kinds[1:], strict=True)
        )
        role = "teacher" if line.row == TEACHER else "student"
        head = f'<th scope="row" class="{colors[line.row]}"><i></i>{e(line.title)}</th>'
        rows.append(f'<tr class="{role}">{head}{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f'</div><p class="note">{e(" ".join(_notes(result)))}</p>'
    )


def _kind(head: str) -> str:
    """The CSS class of a column."""
    return "key" if head == "Avg." else "paper" if head.startswith("paper:") else ""


def _cell(text: str, best: bool) -> str:
    number, _, spread = text.partition(" ± ")
    shown = f"<strong>{e(number)}</strong>" if best else e(number)
    return f"{shown}<small> ±&nbsp;{e(spread)}</small>" if spread else shown


def _notes(result: TableResult) -> list[str]:
    """What the table's columns are."""
    names = ", ".join(result.unseen)
    lines = ["mIoU in percent." if not result.table.sweep else f"Mean mIoU in percent over {names}."]
    lines.append(f"Bold: the best student of a column{' in its group' if len(result.groups) > 1 else ''}.")
    if len(result.table.seeds) > 1:
        lines.append("With several seeds: mean ± standard deviation over the seeds.")
    if not result.table.sweep:
        if any(row.baseline for row in result.table.rows):
            bases = dict.fromkeys(row.title for row in result.table.rows if row.baseline)
            lines.append(f"Gain: points of the average over {', '.join(bases)}.")
        lines.append("Retention: the average divided by the teacher's. Seconds: training of all the row's own stages.")
    if result.paper_heads:
        lines.append("In italics what the paper prints: other data, networks and schedules.")
    return lines


def sweep_section(result: TableResult) -> str:
    """Scores along the sweep, a panel per group."""
    panels = sweep_panels(result) if result.table.sweep else []
    if not panels:
        return ""
    colors = row_colors(result)
    entries = {row.title: colors[number] for number, row in enumerate(result.table.rows)}
    if result.teachers:
        entries = {next(iter(result.teachers.values())).title: "teacher"} | entries
    figures = "".join(
        f"<figure>{f'<figcaption>{e(group)}</figcaption>' if group else ''}{svg}</figure>" for group, svg in panels
    )
    several = " Whiskers: one standard deviation over the seeds." if len(result.table.seeds) > 1 else ""
    return (
        f'<p class="lead">Mean mIoU over the unseen domains; the teacher is dashed. The axis covers the scores.'
        f'{several}</p>{charts.chips(entries.items())}<div class="curves wide">{figures}</div>'
    )


def _sweep_title(result: TableResult) -> str:
    title = result.table.sweep.title if result.table.sweep else ""
    return title[:1].upper() + title[1:]


def domain_section(result: TableResult, value: str, details: list[View]) -> str:
    """Bars of the means (a sweep has its curves), then radar and dots domain by domain."""
    if not result.unseen:
        return ""
    parts = []
    if not result.table.sweep:
        dots = " Each dot is a seed." if len(result.table.seeds) > 1 else ""
        dashed = " The dashed line is the teacher." if result.teachers else ""
        parts.append(f'<p class="lead">Mean mIoU over domains that no training stage saw.{dots}{dashed}</p>')
        parts += [f"{_heading(view)}{charts.mean_bars(view.comparison)}" for view in group_views(result, value)]
    front = {str(number) for number, row in enumerate(result.table.rows) if row.baseline}
    parts.append("<h3>Domain by domain</h3>")
    if any(radar(view.comparison) for view in details):
        parts.append('<p class="lead">Radar: zero in the middle, percent on the rings; the best student is filled, '
                     "the teacher dashed, rows other than the best and the baseline are thin.</p>")  # fmt: skip
    for view in details:
        entries = charts.everyone(view.comparison)
        figures = f"{radar(view.comparison, front)}{charts.domain_dots(view.comparison)}"
        parts.append(f'{_heading(view)}{charts.legend(entries)}<div class="pair">{figures}</div>')
    return "".join(parts)


def lead_section(result: TableResult, found: list[Lead]) -> str:
    """The best row against the others (a sweep: against the runner-up at every value), with intervals."""
    colors = row_colors(result)
    rows = result.table.rows
    if result.table.sweep:
        names = [f"{e(one.where(result))}<small>{e(rows[one.first].title)} over {e(rows[one.second].title)}</small>"
                 for one in found]  # fmt: skip
        body = lead_rows([(n, colors[one.first], one) for n, one in zip(names, found, strict=True)]) if found else ""
    else:
        body = ""
        for group in result.groups:
            if ahead := leads_over_all(result, group, ""):
                title = f"{result.table.rows[ahead[0].first].full_title} ahead of"
                body += f"<h3>{e(title)}</h3>"
                body += lead_rows([(e(rows[one.second].title), colors[one.second], one) for one in ahead])
    if not body:
        return ""
    return (
        '<p class="lead">Paired bootstrap: the test images of every unseen domain are drawn with replacement, both '
        "rows are scored on the same draw, seed by seed. A lead whose interval holds zero may be chance of the images; "
        f"the spread over training seeds stands in the table.</p>{body}"
    )


def cost_section(result: TableResult) -> str:
    """Training seconds and peak memory of every row."""
    if not result.runs:
        return ""
    rows = [row for row in range(len(result.table.rows)) if any((row, v) in result.entries for v in result.values)]
    longest = max((stat.mean for row in rows for v in result.values if (stat := _seconds(result, row, v))), default=0.0)
    heads = [*(value or "training" for value in result.values), "peak MiB", "parameters (M)"]
    top = "".join(f'<th scope="col" class="number">{e(head)}</th>' for head in heads)
    body = "".join(_cost_row(result, row, longest or 1.0) for row in ([TEACHER] if result.teachers else []) + rows)
    return (
        '<p class="lead">Mean over the seeds: training time of all the row\'s own stages (the teacher: its decoder), '
        "and the most memory that a stage of the row has held, on the GPU where one is used.</p>"
        '<div class="scroll" tabindex="0"><table class="stages"><thead><tr><th scope="col">method</th>'
        f"{top}<td></td></tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cost_row(result: TableResult, row: int, longest: float) -> str:
    """One row's numbers and the bar of its longest training."""
    times = [_seconds(result, row, value) for value in result.values]
    peaks = [stat.mean for value in result.values if (stat := result.memory(row, value))]
    size = next((entry.size for value in result.values if (entry := result.entry(row, value))), None)
    cells = [DASH if time is None else duration(time.mean) for time in times]
    cells += [f"{max(peaks):,.0f}" if peaks else DASH, DASH if size is None else millions(size)]
    bar = 100 * min(max((time.mean for time in times if time), default=0.0) / longest, 1.0)
    title = result.teachers[next(iter(result.teachers))].title if row == TEACHER else result.table.rows[row].full_title
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    role = "teacher" if row == TEACHER else "student"
    head = f'<th scope="row" class="{row_colors(result)[row]}"><i></i>{e(title)}</th>'
    return f'<tr class="{role}">{head}{numbers}<td class="time"><i style="width:{bar:.1f}%"></i></td></tr>'


def _each(views: list[View], section: Callable[[Comparison], str]) -> str:
    """A section of the report for every view, under its heading."""
    return "".join(f"{_heading(view)}{body}" for view in views if (body := section(view.comparison)))


def _heading(view: View) -> str:
    return f'<h3 class="group">{e(view.title)}</h3>' if view.title else ""


def _unseen(result: TableResult, row: int, value: str) -> Stat:
    stat = result.entries[row, value].mean_unseen
    assert stat is not None
    return stat


def _seconds(result: TableResult, row: int, value: str) -> Stat | None:
    entry = result.entry(row, value)
    return entry.seconds if entry else None


def _seeds(score: Stat) -> str:
    return f"± {percent(score.sd)} over {len(score.values)} seeds" if score.sd is not None else "one seed"
