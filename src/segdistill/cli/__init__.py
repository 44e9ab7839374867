"""The command line: the only place that parses arguments or prints. Imports torch only when a command needs it."""

from __future__ import annotations

from segdistill.cli.commands import app, main

__all__ = ["app", "main"]
