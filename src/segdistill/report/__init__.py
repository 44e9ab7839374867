"""Comparisons -> a table (terminal, Markdown, CSV, LaTeX, JSON) and one self-contained HTML page. No torch."""

from segdistill.report.answer import headline, remarks
from segdistill.report.corruptions import corruption_table
from segdistill.report.formats import corruptions_to_terminal, to_csv, to_json, to_latex, to_markdown, to_terminal
from segdistill.report.page import render, write_report, write_tables
from segdistill.report.table import Cell, Column, Line, Table, main_table

__all__ = [
    "Cell",
    "Column",
    "Line",
    "Table",
    "corruption_table",
    "corruptions_to_terminal",
    "headline",
    "main_table",
    "remarks",
    "render",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
    "to_terminal",
    "write_report",
    "write_tables",
]
