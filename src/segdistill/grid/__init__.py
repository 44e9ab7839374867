"""Tables of recipes: a grid of runs that share common stages, collected as one comparison."""

from segdistill.grid.collect import check_paper, collect_table
from segdistill.grid.costs import plan_cells
from segdistill.grid.execute import Outcome, finished_cells, run_cells, visible_gpus
from segdistill.grid.significance import lead, leads
from segdistill.grid.table import Cell, TableConfig, cells_of, load_table

__all__ = [
    "Cell",
    "Outcome",
    "TableConfig",
    "cells_of",
    "check_paper",
    "collect_table",
    "finished_cells",
    "lead",
    "leads",
    "load_table",
    "plan_cells",
    "run_cells",
    "visible_gpus",
]
