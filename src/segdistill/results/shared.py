"""What runs must have in common to share a table."""

from __future__ import annotations

from collections.abc import Sequence

from segdistill.config import UserError
from segdistill.results.run import Metric, Run

_SHARED = ("metric", "classes", "source", "unseen", "validation")


def check_shared(runs: Sequence[Run]) -> None:
    """Raise a :class:`UserError` if runs differ in primary score, classes or domains and so cannot share a table."""
    for run in runs:
        for what in _SHARED:
            if getattr(run, what) != getattr(runs[0], what):
                theirs, ours = (_listed(getattr(r, what)) for r in (run, runs[0]))
                raise UserError(
                    f"{run.folder} and {runs[0].folder} differ in {what}: {theirs} and {ours}; report them separately"
                )
    scored = [run for run in runs if run.corruptions is not None]
    for run in scored:
        if run.corruptions != scored[0].corruptions:
            raise UserError(
                f"{run.folder} and {scored[0].folder} were scored on other corruptions: {run.corruptions}; and "
                f"{scored[0].corruptions}; score both on the same, or report them separately"
            )


def _listed(value: tuple[str, ...] | Metric) -> str:
    return value.label if isinstance(value, Metric) else ", ".join(value) or "none"
