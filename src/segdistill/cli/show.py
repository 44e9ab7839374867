"""Printing of tables and warnings."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import typer

from segdistill.config import UserError, expanded

WIDTH = 100
"""Terminal columns that every table fits into."""


def need_model(what: str | Path, allowed: str) -> None:
    """Raise a :class:`UserError` for a wrong path before torch is imported; ``allowed``: what can be given."""
    named = "hf:" in allowed and str(what).startswith("hf:")
    if not named and not expanded(what).exists():
        raise UserError(f"no model at {what}; give {allowed}")


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text, the first as header; the first column and columns of prose are left-aligned."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(rows[0]):
        prose = number == 0 or any(len(row[number]) > 30 for row in rows[1:])  # wraps if space is short
        table.add_column(title, justify="left" if prose else "right", no_wrap=not prose, overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else WIDTH
    Console(width=width, markup=False, emoji=False).print(table)  # a class may be named "[red]"


def show_doubts(lines: Iterable[str]) -> None:
    """Print warnings about inputs that look like mistakes."""
    for line in lines:
        typer.echo(f"warning: {line}")
