"""What the commands print."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text, the first as header, the first column and columns of sentences left-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(rows[0]):
        prose = any(len(row[number]) > 30 for row in rows[1:])
        table.add_column(title, justify="left" if number == 0 or prose else "right", no_wrap=number == 0)
    for row in rows[1:]:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 160
    Console(width=width).print(table)
