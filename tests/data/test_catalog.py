"""The records: consistent in themselves, true to the published tables, and readable in every layout."""

from __future__ import annotations

import string

import numpy as np
import pytest

from segdistill.data.catalog import DATASETS, IGNORE
from segdistill.data.catalog.record import UNPAIRED, interleaved_colors
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from tiny_sets import write

LAYOUTS = [  # those with objects: tests/test_instance_data.py
    (name, number)
    for name, record in DATASETS.items()
    for number, layout in enumerate(record.layouts)
    if not layout.objects
]


def fields(template):
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


@pytest.mark.parametrize("name", DATASETS)
def test_a_record_agrees_with_itself(name):
    record = DATASETS[name]
    assert len(record.colors) == len(record.classes) == len(set(record.classes)) == len(set(record.colors))
    splits = {split for layout in record.layouts for split in layout.splits}
    assert record.evaluation is None or record.evaluation in splits
    assert {count.rpartition(":")[2] for count in record.counts} == splits
    assert {count.partition(":")[0] for count in record.counts if ":" in count} == set(record.subsets)
    for layout in (*record.layouts, *record.raw):
        assert (layout.encoding is None) == (not record.classes)
        if layout.encoding is not None:
            table = layout.encoding.ids or layout.encoding.colors
            assert set(table.values()) - {IGNORE} <= set(range(len(record.classes)))
        for files in layout.splits.values():
            if files.labels:
                assert fields(files.labels) - set(UNPAIRED) == fields(files.images) - set(UNPAIRED)
    for subset in record.subsets:
        assert all(f"{subset}:{split}" in record.counts for split in splits)


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_every_layout_is_read_as_it_was_written(tmp_path, name, layout):
    truth = write(name, tmp_path, layout=layout)
    source = FilesSource(root=tmp_path)
    for split in {split for split, _ in truth}:
        data = source.open(DataSelection(domains=(name,), split=split))
        wanted = {image: label for (other, image), label in truth.items() if other == split}
        assert [sample.name for sample in data] == sorted(wanted)
        for sample in data:
            expected = wanted[sample.name]
            assert (sample.label is None) == (expected is None)
            assert expected is None or np.array_equal(sample.label, expected)


def test_ids_are_those_of_the_published_tables():
    ids = {name: record.layouts[-1].encoding for name, record in DATASETS.items() if record.classes}
    assert [ids["cityscapes"].ids[i] for i in (7, 8, 11, 12, 17, 24, 26, 33)] == [0, 1, 2, 3, 5, 11, 13, 18]
    assert [ids["gtav"].ids[i] for i in (0, 6, 9, 29, 31, 34)] == [255, 255, 255, 255, 16, 255]
    assert [ids["synthia"].ids[i] for i in (1, 3, 8, 10, 11, 12, 0, 22)] == [10, 0, 13, 11, 18, 17, 255, 255]
    assert [ids["mapillary"].ids[i] for i in (13, 2, 46, 44, 20, 55, 52, 62, 65)] == [0, 1, 7, 5, 12, 13, 18, 255, 255]
    assert ids["urbansyn"].ids[19] == 255
    assert [ids["ade20k"].ids[i] for i in (0, 1, 150)] == [255, 0, 149]
    assert [ids["potsdam_rgb"].ids[i] for i in (0, 1, 6)] == [255, 0, 5]
    assert ids["endovis18"].colors[(12, 255, 141)] == 11
    raw = DATASETS["vaihingen_irrg"].raw[0]
    assert [raw.encoding.colors[c] for c in ((0, 0, 0), (255, 255, 255), (255, 255, 0), (255, 0, 0))] == [255, 0, 4, 5]
    assert [len(raw.splits[split].members) for split in ("train", "val")] == [16, 17]
    assert [len(DATASETS["potsdam_irrg"].raw[0].splits[split].members) for split in ("train", "val")] == [24, 14]


def test_tables_cover_what_their_files_may_hold():
    tables = {name: record.layouts[-1].encoding.ids for name, record in DATASETS.items() if record.classes}
    assert set(tables["mapillary"]) == set(range(66))
    assert set(tables["synthia"]) == set(range(23))
    assert set(tables["mapillary"].values()) == set(tables["gtav"].values()) == {*range(19), IGNORE}
    assert len(DATASETS["camvid"].layouts[0].encoding.colors) == 32


def test_voc_colours_are_the_official_ones():
    colors = interleaved_colors(21)
    assert [colors[i] for i in (0, 1, 2, 8, 15, 20)] == [
        (0, 0, 0), (128, 0, 0), (0, 128, 0), (64, 0, 0), (192, 128, 128), (0, 64, 128)]  # fmt: skip
    assert len(set(interleaved_colors(151))) == 151


def test_the_sum_of_the_subsets_is_the_whole():
    counts = DATASETS["acdc"].counts
    for split in ("train", "val", "test"):
        assert sum(counts[f"{subset}:{split}"] for subset in DATASETS["acdc"].subsets) == counts[split]
