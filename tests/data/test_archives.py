"""Archives are read like folders, in any process, and a damaged one is one line."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import pickle
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest

from segdistill.config import UserError
from segdistill.data.archives import BadSample, Folder, Several, open_store
from segdistill.data.catalog import DATASETS
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from tiny_sets import pack, put_together, truncate, write

FILES = {"a/b/one.txt": b"1" * 5000, "a/two.txt": b"2", "zebra.txt": b"3"}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for hidden in (".DS_Store", "a/._two.txt", "__MACOSX/x.txt", ".cache/y.txt"):
        path = tmp_path / "folder" / hidden
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"hidden")
    return tmp_path / "folder"


def archive(folder, name):
    path = folder.parent / name
    put_together(path, {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()})
    return path


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz"])
def test_an_archive_has_the_files_of_the_folder_and_none_of_the_hidden_ones(folder, name):
    store, plain = open_store(archive(folder, name)), open_store(folder)
    assert store.names() == plain.names() == sorted(FILES)
    for file in sorted(FILES, reverse=True):
        assert store.read(file) == plain.read(file) == FILES[file]
    assert plain.names("a") == ["a/b/one.txt", "a/two.txt"]
    assert plain.names("nothing") == []


def _read(store, name, pipe):
    pipe.send_bytes(store.read(name))


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_a_fork_has_a_handle_of_its_own(folder, name):
    store = open_store(archive(folder, name))
    before = store.handle()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_read, args=(store, "a/b/one.txt", there))
    child.start()
    assert store.read("zebra.txt") == b"3"
    assert here.recv_bytes() == FILES["a/b/one.txt"]
    child.join()
    assert child.exitcode == 0
    assert store.handle() is before
    copy = pickle.loads(pickle.dumps(store))
    assert copy.read("a/two.txt") == b"2"
    assert copy.handle() is not before
    store._handle = (os.getpid() + 1, before)  # as a fork finds it
    assert store.read("a/two.txt") == b"2"
    assert store.handle() is not before


def test_links_are_followed_and_a_loop_ends(folder):
    (folder / "link").symlink_to(folder / "a", target_is_directory=True)
    (folder / "a" / "up").symlink_to(folder, target_is_directory=True)
    names = Folder(folder).names()
    assert "zebra.txt" in names
    assert len(names) < 20


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_hard_link_in_a_tar_is_the_file_it_names(folder, name):
    (folder / "a/again.txt").hardlink_to(folder / "a/two.txt")
    (folder / "soft.txt").symlink_to("zebra.txt")
    with tarfile.open(folder.parent / name, "w:gz" if name.endswith("gz") else "w") as tar:
        tar.add(folder, ".")
        assert any(entry.islnk() for entry in tar.getmembers())
    store = open_store(folder.parent / name)
    assert store.names() == ["a/again.txt", *sorted(FILES)]
    assert store.read("a/again.txt") == store.read("a/two.txt") == FILES["a/two.txt"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_a_damaged_archive_is_one_line(folder, name):
    path = archive(folder, name)
    path.write_bytes(path.read_bytes()[:100] + b"\x07" * 400)
    with pytest.raises(UserError, match=r"cannot read the archive .*it is damaged or incomplete"):
        open_store(path)
    with pytest.raises(UserError, match="neither a folder nor a supported archive"):
        open_store(folder / "zebra.txt")


def test_a_damaged_member_names_itself(folder):
    path = archive(folder, "x.zip")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"1" * 5000, b"1" * 4999 + b"x"))
    with pytest.raises(BadSample, match=r"cannot read a/b/one.txt in .*x.zip"):
        open_store(path).read("a/b/one.txt")
    with pytest.raises(BadSample, match=r"cannot read .*nothing.txt"):
        open_store(folder).read("nothing.txt")


def test_several_archives_are_one(folder):
    first, second = archive(folder, "x.zip"), folder.parent / "y.tar"
    put_together(second, {"more.txt": folder / "zebra.txt", "zebra.txt": folder / "a/two.txt"})
    store = Several(folder, [open_store(first), open_store(second)])
    assert store.names() == sorted([*FILES, "more.txt"])
    assert store.read("zebra.txt") == store.read("more.txt") == b"3"


OFFICIAL = [("cityscapes", 1, ""), ("acdc", 0, ""), ("bdd100k", 0, "bdd100k/"), ("voc2012", 0, "VOCdevkit/VOC2012/"),
            ("ade20k", 0, "ADEChallengeData2016/"), ("mapillary", 2, ""), ("gtav", 1, "")]  # fmt: skip


@pytest.mark.parametrize(("name", "layout", "above"), OFFICIAL)
def test_official_archives_give_what_the_folder_gives(tmp_path, name, layout, above):
    truth = write(name, tmp_path, layout=layout)
    folder = tmp_path / DATASETS[name].folders[0]
    names = DATASETS[name].layouts[layout].archives
    selection = DataSelection(domains=(name,), split="train")
    plain = FilesSource(root=tmp_path)
    unpacked, facts = list(plain.open(selection)), plain.facts(selection)
    shutil.copytree(folder, tmp_path / "one")
    put_together(tmp_path / "all.zip", {f"top/{p.relative_to(folder)}": p for p in folder.rglob("*") if p.is_file()})
    pack(folder, (*names[:1], names[-1]) if len(names) > 1 else names, above)
    assert not [path for path in folder.iterdir() if path.is_dir()]
    for source in (FilesSource(root=tmp_path), FilesSource(roots={name: tmp_path / "all.zip"})):
        packed = list(source.open(selection))
        assert len(packed) == len(unpacked) == sum(split == "train" for split, _ in truth)
        for one, other in zip(packed, unpacked, strict=True):
            assert np.array_equal(one.image, other.image)
            assert np.array_equal(one.label, other.label)
        assert source.facts(selection) == facts


def test_a_truncated_official_archive_is_one_line_of_problems(tmp_path):
    write("cityscapes", tmp_path, layout=1)
    folder = tmp_path / "cityscapes"
    pack(folder, DATASETS["cityscapes"].layouts[1].archives)
    truncate(folder / "gtFine_trainvaltest.zip")
    lines = FilesSource(root=tmp_path).problems(DataSelection(domains=("cityscapes",)), labelled=True)
    assert len(lines) == 1
    assert "gtFine_trainvaltest.zip" in lines[0]


def bomb(path, size):
    """A zip whose one member says that it unpacks to ``size`` bytes; it is small and holds zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images/a.png", b"\0" * 1000)
    content = path.read_bytes()
    place = content.index(b"PK\1\2") + 24  # its size in the central directory
    path.write_bytes(content[:place] + struct.pack("<I", size) + content[place + 4 :])


def test_a_member_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    bomb(tmp_path / "x.zip", 4_000_000_000)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)  # nothing is unpacked
    with pytest.raises(
        BadSample, match=r"a.png in .*x.zip: unpacks to 3.7 GiB, and archive members may have at most 1 GiB; unpack it"
    ):
        open_store(tmp_path / "x.zip").read("images/a.png")


def test_a_member_is_never_larger_than_it_says(tmp_path):
    bomb(tmp_path / "x.zip", 10)
    with pytest.raises(BadSample, match=r"cannot read images/a.png"):
        open_store(tmp_path / "x.zip").read("images/a.png")


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_tar_of_gigabytes_is_refused_without_stepping_over_them(tmp_path, name):
    head = tarfile.TarInfo("images/a.png")
    head.size = 1 << 42
    content = head.tobuf() + b"\0" * 1000
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(UserError, match=r"x.tar(.gz: unpacks to 4096.0 GiB|: .*damaged or incomplete)"):
        open_store(tmp_path / name)


def test_only_what_is_larger_than_the_limit_is_refused(folder, monkeypatch):
    for name in ("x.zip", "x.tar"):
        store = open_store(archive(folder, name))
        monkeypatch.setattr("segdistill.data.archives.LARGEST", 4999)
        with pytest.raises(BadSample, match=r"a/b/one.txt in .*: unpacks to"):
            store.read("a/b/one.txt")
        assert store.read("a/two.txt") == b"2"
        monkeypatch.setattr("segdistill.data.archives.LARGEST", 5000)
        assert store.read("a/b/one.txt") == FILES["a/b/one.txt"]
