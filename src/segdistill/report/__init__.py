"""Run folders -> one comparison: a table (terminal, Markdown, CSV) and a self-contained HTML page. No torch."""

from segdistill.report.answer import headline, ranking, remarks
from segdistill.report.compare import Arm, Comparison, Stat, collect
from segdistill.report.page import write_report
from segdistill.report.runs import DomainScore, ModelResult, Run, Stage, Step, load_run
from segdistill.report.table import Cell, Column, Row, Table, table_rows, to_csv, to_markdown

__all__ = [
    "Arm",
    "Cell",
    "Column",
    "Comparison",
    "DomainScore",
    "ModelResult",
    "Row",
    "Run",
    "Stage",
    "Stat",
    "Step",
    "Table",
    "collect",
    "headline",
    "load_run",
    "ranking",
    "remarks",
    "table_rows",
    "to_csv",
    "to_markdown",
    "write_report",
]
