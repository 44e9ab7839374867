"""Checkpoints: whole or absent, the newest two, a damaged one is named."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from segdistill.config import UserError
from segdistill.train import checkpoint


def test_the_newest_of_two_kept_checkpoints_is_loaded(tmp_path):
    assert checkpoint.load(tmp_path / "none") is None
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, step, {"modules": {"a": torch.full((2,), float(step))}})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004.pt", "step-00000006.pt"]
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 6
    assert state["modules"]["a"].tolist() == [6.0, 6.0]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" + data])
def test_a_damaged_checkpoint_is_named_and_deleting_it_continues_from_the_earlier_one(tmp_path, damage):
    checkpoint.save(tmp_path, 2, {"x": torch.zeros(100)})
    newest = tmp_path / "step-00000004.pt"
    checkpoint.save(tmp_path, 4, {"x": torch.zeros(100)})
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.raises(UserError, match=r"step-00000004.pt .*delete it to continue from step-00000002.pt"):
        checkpoint.load(tmp_path)
    newest.unlink()
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 2
    only = tmp_path / "step-00000002.pt"
    only.write_bytes(b"")
    with pytest.raises(UserError, match="delete it to start the stage again"):
        checkpoint.load(tmp_path)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harmed"),))

    torch.save({"step": 2, "x": Harmful()}, tmp_path / "step-00000002.pt")
    with pytest.raises(UserError, match="damaged checkpoint"):
        checkpoint.load(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_rubbish(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 2, {"x": torch.zeros(3)})

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write the checkpoint of step 4.*No space left.*free space"):
        checkpoint.save(tmp_path, 4, {"x": torch.zeros(3)})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002.pt"]
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 2
