"""Tables as a command: a grid of runs that share what is shared, in the papers' layout, their numbers beside ours."""

from segdistill.grid.costs import plan_cells
from segdistill.grid.execute import Outcome, finished_cells, run_cells, visible_gpus
from segdistill.grid.page import write_table
from segdistill.grid.render import plain_rows, to_csv, to_json, to_latex, to_markdown
from segdistill.grid.result import TableResult, check_paper, collect_table
from segdistill.grid.significance import Lead, lead, leads
from segdistill.grid.table import Cell, TableConfig, cells_of, load_table

__all__ = [
    "Cell",
    "Lead",
    "Outcome",
    "TableConfig",
    "TableResult",
    "cells_of",
    "check_paper",
    "collect_table",
    "finished_cells",
    "lead",
    "leads",
    "load_table",
    "plain_rows",
    "plan_cells",
    "run_cells",
    "to_csv",
    "to_json",
    "to_latex",
    "to_markdown",
    "visible_gpus",
    "write_table",
]
