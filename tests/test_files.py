"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from segdistill.files import sha256, write_atomic, write_json


def test_a_file_is_written_with_its_folders_and_is_readable_by_all(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, lambda file: file.write(b"one"))
    write_atomic(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("fault", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, fault, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise error

    def write(file):
        file.write(b"half")
        if fault == "write":
            fail()

    if fault == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    if fault == "replace":
        monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(error):
        write_atomic(path, write)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_file_appears_only_after_it_was_flushed_to_disk(tmp_path, monkeypatch):
    path, sync, seen = tmp_path / "file", os.fsync, []

    def look(handle):
        seen.append((path.exists(), os.fstat(handle).st_size))
        sync(handle)

    monkeypatch.setattr(os, "fsync", look)
    write_atomic(path, lambda file: file.write(b"content"))
    assert seen == [(False, 7)]


def test_json_keeps_letters_and_values_that_are_no_numbers(tmp_path):
    write_json(tmp_path / "x.json", {"\u00fc": float("nan"), "b": [1]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert "\u00fc" in text
    assert text.endswith("}\n")
    assert str(json.loads(text)) == "{'\u00fc': nan, 'b': [1]}"


def test_sha256_equals_the_librarys(tmp_path):
    data = bytes(range(256)) * 5000  # more than one chunk
    (tmp_path / "x").write_bytes(data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()
