"""Checkpoints of the loop: atomic, with a digest, the newest two kept, loaded with ``weights_only``."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch

from segdistill.config import UserError
from segdistill.files import is_whole, write_sealed

KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write ``folder/step-NNNNNNNN.pt`` atomically, then remove all but the newest two."""
    try:
        write_sealed(folder / f"step-{step:08d}.pt", lambda file: torch.save({"step": step, **state}, file))
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch wraps a failed write
        if not isinstance(cause, OSError):
            raise
        kept = "the earlier one is intact: " if _files(folder) else ""
        raise UserError(
            f"cannot write the checkpoint of step {step} to {folder}: {cause.strerror}; {kept}"
            "free space and run the same command again"
        ) from None
    for old in _files(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def load(folder: Path, steps: int, *, clean: bool = True) -> dict[str, Any] | None:
    """The state of the newest intact checkpoint of a stage of ``steps`` steps, None if there is none.

    Damaged checkpoints are skipped; with ``clean`` (in one process only) they are reported and removed.
    """
    files = _files(folder)
    for number, path in reversed(list(enumerate(files))):
        state, fault = _read(path, steps)
        if state is not None:
            return state
        if clean:
            instead = f"continuing from {files[number - 1].name}" if number else "the stage restarts"
            logging.getLogger(__name__).warning("warning: damaged checkpoint %s (%s): %s", path, fault, instead)
            path.unlink(missing_ok=True)
    return None


def _read(path: Path, steps: int) -> tuple[dict[str, Any] | None, str]:
    """The state, or None and the reason why the file is unusable."""
    try:
        if not is_whole(path):
            return None, "its digest differs"
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:  # another process of the run removed it
        return None, "it is missing"
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {path}: {error.strerror}; run the same command again") from None
    except Exception as error:  # noqa: BLE001  torch.load raises many types for damaged files
        return None, type(error).__name__
    step = state.get("step") if isinstance(state, dict) else None
    if not isinstance(step, int) or path.name != f"step-{step:08d}.pt" or not 0 < step <= steps:
        return None, f"step {step} of {steps}"
    return state, ""


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}\.pt", path.name))
