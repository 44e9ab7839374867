"""Files that are no weights, and files that would like to run something."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from official import dinov2_state, install, load
from segdistill.config import UserError
from segdistill.weights.reading import read_file


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    install(monkeypatch)


class Bomb:
    """Unpickling it creates a folder."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


class Disguised(argparse.Namespace):
    """A Namespace with code of its own is not the class that is allowed."""

    def __setstate__(self, state):
        raise AssertionError("must never run")


def test_the_bomb_is_real(tmp_path):
    pickle.loads(pickle.dumps(Bomb(str(tmp_path / "hit"))))
    assert (tmp_path / "hit").is_dir()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("hide", [
    lambda bomb: dinov2_state() | {"extra": bomb},
    lambda bomb: {"model": dinov2_state(), "args": argparse.Namespace(output=bomb)},
    lambda bomb: bomb,
])  # fmt: skip
def test_a_pickle_bomb_never_runs_and_the_line_says_how_to_convert(tmp_path, hide, zipped):
    path, target = tmp_path / "checkpoint.pth", tmp_path / "hit"
    torch.save(hide(Bomb(str(target))), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"more than tensors \(posix.mkdir\).*not opened.*torch.save\(") as error:
        load("tiny_dinov2", path)
    assert "\n" not in str(error.value)
    assert not target.exists()


class Lookup:
    """Unpickling it looks a name up in a class and calls what it finds."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


def test_the_names_of_a_training_log_are_swallowed_and_look_nothing_up(tmp_path):
    """mmengine's own class is not installed here; NumPy's arrays and ``getattr`` are what a bomb would be made of."""
    torch.save({"state_dict": {"x": torch.ones(1)}, "hub": [np.ones(3), np.float64(2), getattr]}, tmp_path / "log.pth")
    content = read_file(tmp_path / "log.pth")[0]
    assert torch.equal(content["state_dict"]["x"], torch.ones(1))
    assert not [thing for thing in content["hub"] if isinstance(thing, np.ndarray | np.generic) or thing is getattr]
    torch.save({"x": torch.ones(1), "extra": Lookup(str(tmp_path / "hit"))}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="more than tensors"):
        read_file(tmp_path / "bomb.pth")
    assert not (tmp_path / "hit").exists()
    with pytest.raises(pickle.UnpicklingError):  # the permission ends with the read
        torch.load(tmp_path / "log.pth", weights_only=True)


def test_only_a_plain_namespace_is_allowed(tmp_path):
    args = argparse.Namespace(lr=0.1, names=["a"], nested=argparse.Namespace(x=None))
    torch.save({"model": dinov2_state(), "args": args}, tmp_path / "plain.pth")
    assert read_file(tmp_path / "plain.pth")[0]["args"] == args
    torch.save({"model": dinov2_state(), "args": Disguised(lr=0.1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="Disguised"):
        read_file(tmp_path / "other.pth")
    with pytest.raises(pickle.UnpicklingError):  # the permission ends with the read
        torch.load(tmp_path / "plain.pth", weights_only=True)


def test_the_conversion_that_the_line_proposes_works(tmp_path, monkeypatch):
    torch.save({"model": dinov2_state(), "extra": Bomb(str(tmp_path / "hit"))}, tmp_path / "checkpoint.pth")
    with pytest.raises(UserError) as error:
        load("tiny_dinov2", tmp_path / "checkpoint.pth")
    code = str(error.value).split('python -c "')[1].removesuffix('"')
    monkeypatch.chdir(tmp_path)
    exec(code, {})  # the reader trusts the file and has the bomb run, in a place of its own
    assert load("tiny_dinov2", tmp_path / "weights.pth").loaded.share == 1.0


def cut(path) -> None:
    torch.save(dinov2_state(), path)
    path.write_bytes(path.read_bytes()[:-3000])


def strange_zip(path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.md", "hello")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b""), "is empty: fetch it again"),
        (lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"), "is a web page, not weights"),
        (lambda path: path.write_text("<html>" + "x" * 5000), "is a web page, not weights"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid 1"), "git-lfs pointer"),
        (lambda path: path.write_text("dear reader,\n"), "is a text file, not weights"),
        (lambda path: path.write_bytes(bytes(range(256)) * 20), "is damaged or not a PyTorch file"),
        (cut, "is damaged or not a PyTorch file"),
        (strange_zip, "is damaged or not a PyTorch file"),
        (lambda path: path.write_bytes(b"\x10\0\0\0\0\0\0\0{not json}" + b"\0" * 99), "not a safetensors file"),
        (lambda path: None, "no encoder weights at"),
        (lambda path: path.mkdir(), "no encoder weights at '.*encoder.safetensors'.*a folder with"),
    ],
)  # fmt: skip
def test_what_is_no_checkpoint_is_told_in_one_line(tmp_path, suffix, spoil, message):
    path = tmp_path / f"weights{suffix}"
    spoil(path)
    with pytest.raises(UserError, match=message) as error:
        load("tiny_dinov2", path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600
