"""Checkpoints: whole or absent, the newest two, a damaged one is named."""

from __future__ import annotations

import errno
import os
import re

import pytest
import torch

from segdistill.config import UserError
from segdistill.files import write_sealed
from segdistill.train import checkpoint

STEPS = 10


def test_the_newest_of_two_kept_checkpoints_is_loaded(tmp_path):
    assert checkpoint.load(tmp_path / "none", STEPS) is None
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, step, {"modules": {"a": torch.full((2,), float(step))}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004.pt", "step-00000006.pt"]
    state = checkpoint.load(tmp_path, STEPS)
    assert state is not None
    assert state["step"] == 6
    assert state["modules"]["a"].tolist() == [6.0, 6.0]


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def resealed_at(step: int):
    """A checkpoint of another step, whole by its digest."""

    def damage(path):
        state = torch.load(path, weights_only=True)
        write_sealed(path, lambda file: torch.save(state | {"step": step}, file))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" + path.read_bytes()),
        lambda path: path.write_bytes(flipped(path.read_bytes(), path.read_bytes().index(b"\x07" * 400) + 200)),
        lambda path: path.write_bytes(flipped(path.read_bytes(), path.stat().st_size - 20)),
        resealed_at(10**9),
        resealed_at(3),
        resealed_at(-1),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(tmp_path, caplog, damage):
    """One flipped bit in the middle of the weights is seen, and so is a step that its stage does not have."""
    weights = {"x": torch.full((400,), 7, dtype=torch.uint8)}
    checkpoint.save(tmp_path, 2, weights)
    checkpoint.save(tmp_path, 4, weights)
    damage(tmp_path / "step-00000004.pt")
    state = checkpoint.load(tmp_path, STEPS)
    assert state is not None
    assert state["step"] == 2
    (line,) = caplog.messages
    assert re.match(r"warning: damaged checkpoint .*step-00000004.pt .*continuing from step-00000002.pt$", line)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.pt"]
    (tmp_path / "step-00000002.pt").write_bytes(b"")
    assert checkpoint.load(tmp_path, STEPS) is None
    assert caplog.messages[-1].endswith("the stage restarts")


def test_a_file_that_would_run_code_is_refused(tmp_path, caplog):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harmed"),))

    write_sealed(tmp_path / "step-00000002.pt", lambda file: torch.save({"step": 2, "x": Harmful()}, file))
    assert checkpoint.load(tmp_path, STEPS) is None
    assert "damaged checkpoint" in caplog.text
    assert not (tmp_path / "harmed").exists()


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 2, {"x": torch.zeros(3)})

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write the checkpoint of step 4.*No space left.*free space"):
        checkpoint.save(tmp_path, 4, {"x": torch.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.pt"]
    state = checkpoint.load(tmp_path, STEPS)
    assert state is not None
    assert state["step"] == 2
