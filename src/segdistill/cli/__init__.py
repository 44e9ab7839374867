"""The command line: the only place that parses arguments or prints. torch is imported when a command needs it."""

from __future__ import annotations

from segdistill.cli.app import main

__all__ = ["main"]
