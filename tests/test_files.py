"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mutations import damaged, spoiled
from segdistill import files
from segdistill.config import UserError
from segdistill.files import (
    checked_line,
    input_digest,
    is_whole,
    plain_name,
    read_metrics_line,
    read_signed,
    sealed_text,
    sha256,
    sweep,
    text_is_whole,
    write_atomic,
    write_json,
    write_sealed,
    write_signed,
)


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


def test_an_input_file_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    read, path = [], tmp_path / "weights.pth"
    monkeypatch.setattr(files, "sha256", lambda path: read.append(path) or sha256(path))

    def digests(data, seconds):
        path.write_bytes(data)
        os.utime(path, (seconds, seconds))
        monkeypatch.setattr(files.time, "time", lambda: path.stat().st_ctime + files.SETTLED + 1)
        assert {input_digest(path) for _ in range(3)} == {hashlib.sha256(data).hexdigest()}
        return len(read)

    assert [digests(b"one", 1), digests(b"two", 2), digests(b"two", 3)] == [1, 2, 3]
    monkeypatch.setattr(files.time, "time", lambda: path.stat().st_ctime)
    for data in (b"six", b"ten"):  # changed within the resolution of a file's times, perhaps
        path.write_bytes(data)
        assert input_digest(path) == hashlib.sha256(data).hexdigest()
    assert len(read) == 5


VALUE = {"a": [1, 2.5, float("nan")], "\u00fc": {"b": None, "c": "text"}, "d": True}
QUICK = settings(derandomize=True, max_examples=200, deadline=None)


@QUICK
@given(data=st.data())
def test_no_damage_to_a_sealed_file_goes_unnoticed(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "sealed"
    content = data.draw(st.binary(max_size=300))
    write_sealed(path, lambda file: file.write(content))
    whole = path.read_bytes()
    assert whole.startswith(content)
    assert whole.endswith(hashlib.sha256(content).hexdigest().encode() + b"\n")
    assert is_whole(path)
    other = data.draw(damaged(whole))
    path.write_bytes(other)
    assert is_whole(path) == (other == whole)


@QUICK
@given(data=st.data())
def test_what_is_read_back_of_damaged_json_is_what_was_written(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "signed.json"
    write_signed(path, VALUE)
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    else:
        path.write_text(json.dumps(data.draw(spoiled(json.loads(path.read_text()), most=1))))
    found = read_signed(path)
    if found is not None:
        kept = {key: value for key, value in found.items() if key in VALUE}
        assert json.dumps(kept, sort_keys=True) == json.dumps(VALUE, sort_keys=True)


@QUICK
@given(data=st.data())
def test_a_damaged_line_of_the_log_is_noticed(data):
    entry = {"stage": "00-x", "step": 3, "loss": 0.1234567, "terms": {"a": float("nan")}, "diagnostics": {}}
    line = checked_line(entry).encode()
    assert json.dumps(read_metrics_line(line.decode())) == json.dumps(entry)
    found = read_metrics_line(data.draw(damaged(line)).decode(errors="replace"))
    if found is not None:
        assert json.dumps({key: found.get(key) for key in entry}) == json.dumps(entry)


def test_a_sealed_text_is_yaml_and_a_changed_one_is_noticed():
    text = sealed_text("name: tiny\nseed: 0\n")
    assert yaml.safe_load(text) == {"name": "tiny", "seed": 0}
    assert text_is_whole(text.encode())
    assert not text_is_whole(text.replace("seed: 0", "seed: 1").encode())
    assert text_is_whole(b"name: never_sealed\n")


def test_a_killed_writers_file_is_swept_and_a_living_ones_and_foreign_ones_are_not(tmp_path):
    """The kernel says who lives: a writer holds a lock on its temporary file."""
    foreign = [tmp_path / name for name in (".other.tmp", "x.abcdefgh.tmp", ".file.abcdefgh")]
    for path in (*foreign, tmp_path / ".file.abcdefgh.tmp"):
        path.write_bytes(b"half")
    seen = []

    def write(file):
        seen.append(sweep(tmp_path))
        file.write(b"content")

    write_atomic(tmp_path / "file", write)
    assert seen == [[tmp_path / ".file.abcdefgh.tmp"]]
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file", *foreign])


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "..", ".hidden", "a\\b", "a\0b", "a\nb", "", "x" * 300])
def test_a_name_that_would_lead_elsewhere_is_refused(name):
    with pytest.raises(UserError, match="cannot be a file name") as error:
        plain_name(name)
    assert "\n" not in str(error.value)
    assert plain_name("acdc:night-0.png") == "acdc:night-0.png"
