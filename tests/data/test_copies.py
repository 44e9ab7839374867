"""Copies of image files are found under every name, in every store."""

import zipfile

import pytest

from segdistill.data.archives import BadSample, Folder, ImageFile, Several, open_store
from segdistill.data.coco import CocoStore
from segdistill.data.copies import Originals

LONG = 1 << 17


def filed(store, name):
    return ImageFile("fog", f"{store.where}/{name}", name, store)


@pytest.fixture
def folder(tmp_path):
    """Files of one size: a.bmp; its copy b.bmp; two that differ from it in their first and in their last byte."""
    content = bytes(range(256)) * (LONG // 256)
    for name, data in (
        ("a.bmp", content), ("b.bmp", content), ("first.bmp", b"x" + content[1:]), ("last.bmp", content[:-1] + b"x"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
    (tmp_path / "short.bmp").write_bytes(content[:-1])
    return Folder(tmp_path)


def test_a_copy_is_found_and_a_file_of_the_same_size_is_not(folder):
    scored = Originals([filed(folder, "a.bmp"), filed(folder, "a.bmp")])
    path = f"{folder.where}/a.bmp"
    for name, found in (("a.bmp", [path]), ("b.bmp", [path]), ("first.bmp", []), ("last.bmp", []), ("short.bmp", [])):
        assert scored.same(filed(folder, name)) == found, name
    assert scored.same(filed(folder, "gone.bmp")) == []
    assert Originals([]).same(filed(folder, "a.bmp")) == []
    both = Originals([filed(folder, "a.bmp"), filed(folder, "b.bmp")])
    assert both.same(filed(folder, "a.bmp")) == [path, f"{folder.where}/b.bmp"]


def test_only_the_start_of_files_of_one_size_is_read(folder, monkeypatch):
    read = []
    monkeypatch.setattr(Folder, "read", lambda self, name: read.append(name) or (self.where / name).read_bytes())
    scored = Originals([filed(folder, "a.bmp")])
    assert scored.same(filed(folder, "first.bmp")) == scored.same(filed(folder, "short.bmp")) == []
    assert read == []
    assert scored.same(filed(folder, "last.bmp")) == []
    assert read == ["last.bmp", "a.bmp"]


def test_every_store_knows_the_size_and_the_start_of_its_files(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder.where / "b.bmp", "deep/b.bmp")
    packed = open_store(tmp_path / "packed.zip")
    several, coco = Several(tmp_path, [packed]), CocoStore(folder, {}, {}, (), None)
    for store, name in ((folder, "a.bmp"), (coco, "a.bmp"), (packed, "deep/b.bmp"), (several, "deep/b.bmp")):
        assert store.size(name) == len(store.read(name)) == LONG
        assert store.start(name, 10) == bytes(range(10))
        assert len(store.start(name, 2 * LONG)) == LONG
    with pytest.raises(BadSample, match="gone"):
        folder.size("gone.bmp")
    path = f"{folder.where}/a.bmp"
    assert Originals([filed(folder, "a.bmp")]).same(filed(packed, "deep/b.bmp")) == [path]
