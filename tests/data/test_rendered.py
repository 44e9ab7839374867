"""The world as a data set: selections, label spaces, and a cache on disk that changes nothing."""

from __future__ import annotations

import fcntl

import numpy as np
import pytest

from segdistill import world
from segdistill.config import UserError, parse
from segdistill.data import rendered
from segdistill.data.dataset import DataSelection
from segdistill.data.rendered import WorldSource

SIZE = (32, 64)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(domains=("game", "fog"), images=2, first=0, split="train", progress=None, **source):
    selection = DataSelection(domains=domains, images=images, first=first, split=split)
    return parse(WorldSource, {"size": SIZE, **source}).open(selection, progress)


def test_samples_are_the_worlds_own_domain_by_domain(cache):
    data = opened(first=3)
    assert len(data) == 4
    assert [(sample.domain, sample.name) for sample in data] == [
        ("game", "000003"), ("game", "000004"), ("fog", "000003"), ("fog", "000004")]  # fmt: skip
    rendered = world.render("fog", "train", 4, size=SIZE)
    assert np.array_equal(data[3].image, rendered.image)
    assert np.array_equal(data[3].label, rendered.label)
    assert data[3].image.shape == (*SIZE, 3)
    for outside in (-1, 4):
        with pytest.raises(IndexError):
            data[outside]


def test_a_second_opening_reads_the_cache_and_renders_nothing(cache, monkeypatch):
    calls = []
    first = [sample.image.copy() for sample in opened(progress=lambda *told: calls.append(told))]
    assert calls == [("rendering game", 2, 2), ("rendering fog", 2, 2)]
    monkeypatch.setattr(world, "render", None)
    assert all(np.array_equal(sample.image, image) for sample, image in zip(opened(), first, strict=True))
    assert len(list((cache / "world").iterdir())) == 4


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"redraw": 1}, {"split": "val"}, {"first": 1}, {"domains": ("clear", "fog")}]
)
def test_every_setting_of_the_selection_gives_other_images(cache, change):
    base, changed = opened()[0].image, opened(**change)[0].image
    assert not np.array_equal(base, changed)


def test_the_size_and_the_number_of_images_are_those_asked_for(cache):
    assert len(opened(images=3)) == 6
    small = WorldSource(size=(16, 32)).open(DataSelection(domains=("game",), images=1))
    assert small[0].image.shape == (16, 32, 3)


def test_images_of_another_renderer_are_not_taken_from_the_cache(cache, monkeypatch):
    opened(domains=("game",), images=1)
    monkeypatch.setattr(rendered, "RENDERER", -1)
    opened(domains=("game",), images=1)
    assert len(list((cache / "world").glob("game-*.images.npy"))) == 2


def test_merged_classes_are_the_full_ones_mapped(cache):
    full, merged = opened(), opened(classes="world13")
    assert (len(full.names), len(merged.names)) == (19, 13)
    assert len(full.colors) == 19
    lookup = world.LABEL_SPACES["world13"].lookup
    for a, b in zip(full, merged, strict=True):
        assert np.array_equal(np.asarray(lookup)[a.label], b.label)
        assert set(np.unique(b.label)) <= {*range(13), 255}


def test_unlabelled_domains_have_no_labels(cache):
    assert opened(domains=("proxy",))[0].label is None
    assert opened(domains=("game",))[0].label is not None


def test_mistakes_are_one_line(cache, monkeypatch):
    with pytest.raises(UserError, match="unknown domain 'gmae': did you mean 'game'"):
        opened(domains=("gmae",))
    with pytest.raises(UserError, match="unknown label space 'x'"):
        opened(classes="x")
    blocked = cache.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("SEGDISTILL_CACHE", str(blocked))
    with pytest.raises(UserError, match=r"cannot read the image cache .*SEGDISTILL_CACHE"):
        opened(domains=("game",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "val", "first": 99_999}, r"images 99999 to 100001 of split 'val' are requested.* has 100,000"),
        ({"size": (8, 64)}, "size: the world is rendered with sides from 16 to 4096, got 8 x 64"),
        ({"size": (32, 4097)}, r"size: .* got 32 x 4097"),
    ],
)
def test_what_cannot_be_rendered_is_told_before_rendering(settings, message, cache, monkeypatch):
    monkeypatch.setattr(world, "render", None)
    with pytest.raises(UserError, match=message):
        opened(**settings)


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize(
    "damage", [lambda data: data[:100], lambda data: data[:200] + bytes([data[200] ^ 4]) + data[201:]]
)
def test_a_damaged_cache_is_named_and_rendered_anew(cache, caplog, kind, damage):
    whole = [sample.image.copy() for sample in opened(domains=("game",))]
    (path,) = (cache / "world").glob(f"*.{kind}.npy")
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert all(np.array_equal(sample.image, image) for sample, image in zip(opened(("game",)), whole, strict=True))
    (line,) = caplog.messages
    assert line == f"warning: damaged image cache {path}: its images are rendered again"
    assert path.read_bytes() == content


def test_a_process_hashes_a_cache_file_once(cache, monkeypatch):
    opened()
    hashed = []
    monkeypatch.setattr(rendered, "is_whole", lambda path: hashed.append(path) or True)
    opened()
    opened()
    assert len(hashed) == len(set(hashed)) == 4


def test_what_a_killed_renderer_left_is_removed_and_a_living_ones_file_is_not(cache):
    opened(domains=("game",))
    folder = cache / "world"
    dead, alive = folder / ".game.npy.abcdefgh.tmp", folder / ".game.npy.abcdefgi.tmp"
    dead.write_bytes(b"half")
    with alive.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        opened(domains=("fog",))
        assert not dead.exists()
        assert alive.exists()


def test_the_source_lists_what_the_images_list_and_renders_nothing(cache, monkeypatch):
    selection = parse(
        DataSelection, {"domains": ["game", "fog"], "images": 8, "first": 3, "fraction": "1/4", "rest": True}
    )
    source = WorldSource(size=(32, 64))
    listed = list(source.open(selection).listing())
    monkeypatch.setattr(rendered, "_load_or_render", None)
    assert list(source.listing(selection)) == listed
    assert len(listed) == 12
