"""The command line as tests use it: in this process, with what it printed."""

from __future__ import annotations

import sys

import pytest

from segdistill import cli


@pytest.fixture
def call(capsys, monkeypatch):
    """Call the command line: (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["segdistill", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def complaint(call):
    """The one line in which a command complains: exit status 2, no traceback."""

    def run(*arguments):
        status, out, err = call(*arguments)
        assert status == 2, out + err
        assert "Traceback" not in err
        lines = [line for line in err.splitlines() if line.startswith("segdistill: ")]
        assert len(lines) == 1, err
        assert err.endswith(lines[0] + "\n")
        return lines[0]

    return run
