"""Checkpoints of the loop: whole or absent, the newest two kept, read without unpickling anything but tensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from segdistill.config import UserError
from segdistill.files import write_atomic

KEPT = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write ``folder/step-NNNNNNNN.pt`` atomically, then remove all but the newest two."""
    try:
        write_atomic(folder / f"step-{step:08d}.pt", lambda file: torch.save({"step": step, **state}, file))
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch hides a failed write behind its own
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot write the checkpoint of step {step} to {folder}: {cause.strerror}; the earlier one is whole: "
            "free space and run the same command again"
        ) from None
    for old in _files(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def load(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint's state, or None where there is none; a damaged file is an error, never skipped."""
    files = _files(folder)
    if not files:
        return None
    path = files[-1]
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch.load raises many kinds for a damaged file; each becomes one line
        earlier = f"continue from {files[-2].name}" if len(files) > 1 else "start the stage again"
        raise UserError(
            f"damaged checkpoint {path} ({type(error).__name__}); delete it to {earlier}, then run the same command"
        ) from None


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"step-\d{8}\.pt", path.name))
