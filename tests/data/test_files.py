"""Real data sets as a source: order, selections, faults, and what a fingerprint says of them."""

from __future__ import annotations

import itertools
import logging
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from segdistill.config import UserError, parse
from segdistill.data.archives import BadSample
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.fraction import chosen_rows
from segdistill.data.loader import StepBatches, loaded, weighted_order
from segdistill.data.rendered import WorldSource
from segdistill.data.transforms import TaskAugment, TaskTransform
from segdistill.ops import generator
from tiny_sets import picture, truncate, write

LABEL = "gtFine/train/ulm/a0_gtFine_labelIds.png"
IMAGE = "leftImg8bit/train/ulm/a0_leftImg8bit.png"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    truth = {"cityscapes": write("cityscapes", root, layout=1, count=3), "acdc": write("acdc", root, count=2)}
    write("potsdam_rgb", root)
    write("imagenet", root)
    return root, truth


@pytest.fixture
def root(written, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(written[0], tmp_path / "sets")
    return tmp_path / "sets"


def select(*domains, **settings):
    return parse(DataSelection, {"domains": domains, **settings})


def test_domains_come_one_after_the_other_each_in_the_order_of_its_names(written):
    data = FilesSource(root=written[0]).open(select("acdc:night", "cityscapes", split="val"))
    assert data.sizes == (2, 3)
    assert len(data) == 5
    assert [sample.domain for sample in data] == ["acdc:night"] * 2 + ["cityscapes"] * 3
    assert [f"{sample.domain}/{sample.name}" for sample in data] == list(data.listing())
    assert list(data.listing())[2].startswith("cityscapes/leftImg8bit/val/ulm/a")
    assert all("/night/" in sample.name for sample in list(data)[:2])
    assert data.names[0] == "road"
    assert data.colors.shape == (19, 3)
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            data[outside]


def test_a_data_set_with_subsets_can_be_read_whole(written):
    data = FilesSource(root=written[0]).open(select("acdc", split="val"))
    assert len(data) == 8
    assert {name.split("/")[2] for name in data.listing()} == {"night", "snow", "fog", "rain"}


def test_the_folder_may_be_named_by_the_environment_or_one_by_one(written, monkeypatch):
    monkeypatch.delenv("SEGDISTILL_DATA", raising=False)
    with pytest.raises(UserError, match=r"set data\.root or SEGDISTILL_DATA to the folder that holds cityscapes/"):
        FilesSource().open(select("cityscapes"))
    monkeypatch.setenv("SEGDISTILL_DATA", str(written[0]))
    assert len(FilesSource().open(select("cityscapes"))) == 3
    monkeypatch.setenv("SEGDISTILL_DATA", "nowhere")
    assert len(FilesSource(roots={"cityscapes": written[0] / "cityscapes"}).open(select("cityscapes"))) == 3


def test_a_list_chooses_by_stem_and_by_path(written, tmp_path):
    path = tmp_path / "list.txt"
    for lines, wanted in (
        ("a2\n\na0\n", ["a0", "a2"]),
        (f"{IMAGE} {LABEL}\n", ["a0"]),
        ("train/ulm/a1_leftImg8bit.png", ["a1"]),
        ("a1_leftImg8bit", ["a1"]),
    ):
        path.write_text(lines)
        data = FilesSource(root=written[0]).open(select("cityscapes", list=path))
        assert [name.rpartition("/")[2].partition("_")[0] for name in data.listing()] == wanted
    for lines, message in (("a0\na7", "1 of 2 lines match no image, such as 'a7'"), ("\n", "is empty")):
        path.write_text(lines)
        with pytest.raises(UserError, match=message):
            FilesSource(root=written[0]).open(select("cityscapes", list=path))
    with pytest.raises(UserError, match="a list names the images of one domain"):
        FilesSource(root=written[0]).open(select("acdc:fog", "acdc:rain", list=path))
    with pytest.raises(UserError, match="cannot read the list"):
        FilesSource(root=written[0]).open(select("cityscapes", list=tmp_path / "none"))


def test_images_and_first_take_a_part_and_no_more_than_there_is(written):
    source = FilesSource(root=written[0])
    whole = list(source.open(select("cityscapes")).listing())
    assert list(source.open(select("cityscapes", first=1, images=2)).listing()) == whole[1:]
    for settings in ({"images": 4}, {"first": 3}, {"first": 2, "images": 2}):
        with pytest.raises(UserError, match="of split 'train' are requested, and it has 3"):
            source.open(select("cityscapes", **settings))


def test_fractions_are_nested_seeded_and_of_the_customary_size():
    def rows(fraction, count=2975, domain="cityscapes", **settings):
        return chosen_rows(select(domain, fraction=fraction, **settings), domain, count)

    shares = [rows(fraction) for fraction in ("1/16", "1/8", 0.25, 1)]
    assert [len(share) for share in shares] == [186, 372, 744, 2975]
    for small, large in itertools.pairwise(shares):
        assert set(small) < set(large)
        assert list(small) == sorted(small)
    assert rows("1/16") == rows(1 / 16)
    assert rows("1/16") != rows("1/16", fraction_seed=1) != rows("1/16", domain="acdc")
    assert rows("1/16") != rows("1/16", split="val")
    assert len(rows("1/16", count=3)) == 1
    for wrong in ("1/0", "x/2", 0, 1.5):
        with pytest.raises(UserError, match="fraction"):
            select("a", fraction=wrong)


def test_a_fraction_of_files_and_of_the_world_is_read(written):
    data = FilesSource(root=written[0]).open(select("cityscapes", fraction="1/3"))
    assert data.sizes == (1,)
    world = WorldSource(size=(32, 64))
    whole, part = (world.open(select("game", images=4, fraction=share)) for share in (None, 0.5))
    assert part.sizes == (2,)
    by_name = {sample.name: sample.image for sample in whole}
    assert all(np.array_equal(by_name[sample.name], sample.image) for sample in part)
    assert [f"game/{sample.name}" for sample in part] == list(part.listing())
    assert world.problems(select("game", images=4, list="x"), labelled=True)


def test_weights_share_the_epoch_among_the_domains():
    def counts(sizes, weights, epoch=0):
        order = weighted_order(sizes, tuple(map(float, weights)), generator("epoch", epoch))
        assert len(order) == sum(sizes)
        starts = np.cumsum([0, *sizes])
        return order, [sum(a <= index < b for index in order) for a, b in itertools.pairwise(starts)]

    order, shares = counts((90, 10), (1, 1))
    assert shares == [50, 50]
    assert len({index for index in order if index < 90}) == 50  # none twice
    assert [order.count(index) for index in range(90, 100)] == [5] * 10
    assert counts((1, 1, 1), (1, 1, 1))[1] == [1, 1, 1]
    assert counts((3, 3), (2, 1))[1] == [4, 2]
    assert counts((2, 2), (1000, 1))[1] == [4, 0]
    assert counts((90, 10), (1, 1))[0] == order != counts((90, 10), (1, 1), epoch=1)[0]
    assert [index >= 90 for index in order] != sorted(index >= 90 for index in order)


def test_weights_reach_the_batches(written):
    def steps(source, *domains, **settings):
        return StepBatches(source.open(select(*domains, **settings)), lambda sample: {}, batch=5, seed=(0,))

    files = FilesSource(root=written[0])
    plain = steps(files, "acdc:fog", "cityscapes")
    assert sorted(plain.indices(0)) == [0, 1, 2, 3, 4]
    weighted = [steps(files, "acdc:fog", "cityscapes", weights=(4, 1)) for _ in range(2)]
    assert sorted(index < 2 for index in weighted[0].indices(0)) == [False, True, True, True, True]
    assert weighted[0].indices(3) == weighted[1].indices(3)
    order = steps(WorldSource(size=(32, 64)), "game", "fog", images=5, weights=(3, 2))
    assert sum(index < 5 for index in order.indices(0) + order.indices(1)) == 6
    with pytest.raises(UserError, match="weights has 1 numbers for 2 domains"):
        select("a", "b", weights=[1])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_crops_come_from_images_of_any_size(root, workers):
    image = root / "cityscapes" / IMAGE
    Image.fromarray(picture(5, (40, 50))).save(image)
    label = root / "cityscapes" / LABEL
    Image.fromarray(np.full((40, 50), 7, np.uint8)).save(label)
    data = FilesSource(root=root).open(select("cityscapes"))
    steps = StepBatches(data, TaskTransform(TaskAugment(), (16, 32)), batch=3, seed=(0,))
    (batch,) = list(loaded(steps, [0], workers))
    assert batch["image"].shape == (3, 3, 16, 32)
    assert set(batch["label"].unique().tolist()) <= {*range(19), 255}
    assert torch.equal(batch["image"], steps[0]["image"])


PROBLEMS = [
    ("citiscapes", {}, "unknown data set 'citiscapes': did you mean 'cityscapes'"),
    ("acdc:nite", {}, "unknown data set 'acdc:nite': did you mean 'night'? allowed: acdc:night"),
    ("cityscapes:fog", {}, "unknown data set 'cityscapes:fog': allowed: cityscapes"),
    ("cityscapes", {"split": "pretrain"}, "cityscapes has no split 'pretrain'; it has train, val, test"),
    ("cityscapes", {"split": "test"}, "labels of cityscapes's split 'test' are not public; use split: val"),
    ("imagenet", {}, "domain 'imagenet' has no labels; take it out of 'domains'"),
    ("voc2012", {}, "no Pascal VOC 2012 segmentation at "),
    ("cityscapes", {"images": 9}, "it has 3; choose fewer, or images: null for all"),
]


@pytest.mark.parametrize(("domain", "settings", "message"), PROBLEMS)
def test_a_selection_that_cannot_be_read_is_one_line(written, domain, settings, message):
    (line,) = FilesSource(root=written[0]).problems(select(domain, **settings), labelled=True)
    assert message in line
    assert "\n" not in line


def test_what_can_be_read_has_no_problems(written):
    source = FilesSource(root=written[0])
    assert source.problems(select("cityscapes", "acdc:night"), labelled=True) == []
    assert source.problems(select("cityscapes", "imagenet", "acdc", split="train"), labelled=False) == []
    assert source.open(select("imagenet"))[0].label is None
    mixed = source.open(select("imagenet", "cityscapes"))
    assert len(mixed.names) == 19
    (line,) = source.problems(select("cityscapes", "potsdam_rgb"), labelled=True)
    assert "different label spaces cannot be read together: cityscapes (19 classes), potsdam_rgb (6 classes)" in line
    with pytest.raises(UserError, match="different label spaces"):
        source.open(select("cityscapes", "potsdam_rgb"))


def test_a_missing_data_set_says_all_that_is_needed(written):
    (line,) = FilesSource(root=written[0]).problems(select("bdd100k"), labelled=False)
    for part in (str(written[0] / "bdd100k"), "images/10k/train/{stem}.jpg", "bdd100k_images_10k.zip", "seg/images",
                 "bdd-data.berkeley.edu", "not-for-profit"):  # fmt: skip
        assert part in line


def test_an_empty_folder_is_a_missing_data_set(tmp_path):
    (tmp_path / "cityscapes").mkdir()
    (line,) = FilesSource(root=tmp_path).problems(select("cityscapes"), labelled=False)
    assert "split 'train': no Cityscapes (fine) at" in line


def test_images_whose_labels_were_not_obtained_can_be_distilled_on(root):
    shutil.rmtree(root / "cityscapes/gtFine")
    source = FilesSource(root=root)
    assert source.problems(select("cityscapes"), labelled=False) == []
    assert source.open(select("cityscapes"))[0].label is None
    (line,) = source.problems(select("cityscapes"), labelled=True)
    assert "domain 'cityscapes' has images but no labels at" in line


FAULTS = [
    (lambda folder: truncate(folder / IMAGE), f"{IMAGE}: is damaged"),
    (lambda folder: truncate(folder / LABEL), f"{LABEL}: is damaged"),
    (lambda folder: (folder / LABEL).write_bytes(b""), "is not a readable image"),
    (lambda folder: Image.fromarray(np.full((32, 64), 99, np.uint8)).save(folder / LABEL), "unknown id 99 at 2048"),
    (lambda folder: Image.fromarray(picture(0)).save(folder / LABEL), "is a picture with 3 channels"),
    (lambda folder: Image.new("L", (32, 32)).save(folder / LABEL), "sizes: 32 x 32 and 32 x 64"),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_a_bad_sample_is_an_error_or_makes_room_for_another(root, caplog, damage, message):
    damage(root / "cityscapes")
    with pytest.raises(BadSample, match="a0_") as caught:
        list(FilesSource(root=root).open(select("cityscapes")))
    assert message in str(caught.value)
    data = FilesSource(root=root, on_bad_sample="skip").open(select("cityscapes"))
    with caplog.at_level(logging.WARNING, "segdistill.data"):
        samples, again = list(data), list(data)
    assert len(samples) == 3
    assert samples[0].name in {samples[1].name, samples[2].name}
    assert [sample.name for sample in samples] == [sample.name for sample in again]
    assert len(caplog.records) == 1
    assert "skipped (1 so far)" in caplog.text
    assert message in caplog.text


def test_scores_never_depend_on_a_replacement(root):
    truncate(root / "cityscapes" / IMAGE.replace("train", "val").replace("a0", "a10"))
    data = FilesSource(root=root, on_bad_sample="skip").open(select("cityscapes", split="val"))
    with pytest.raises(BadSample):
        list(data)


def test_where_nothing_can_be_read_skipping_ends(root):
    for path in (root / "cityscapes/leftImg8bit/train").rglob("*.png"):
        truncate(path)
    data = FilesSource(root=root, on_bad_sample="skip").open(select("cityscapes"))
    with pytest.raises(UserError, match="no image of cityscapes can be read"):
        data[0]


def test_a_missing_label_is_an_error_or_left_out(root, caplog):
    (root / "cityscapes" / LABEL).unlink()
    with pytest.raises(UserError, match=f"1 images .* lack a label, such as {IMAGE}; `segdistill data check`"):
        FilesSource(root=root).open(select("cityscapes"))
    with caplog.at_level(logging.WARNING, "segdistill.data"):
        assert len(FilesSource(root=root, on_bad_sample="skip").open(select("cityscapes"))) == 2
    assert "cityscapes: 1 images are missing or lack a label and are left out" in caplog.text


def test_of_two_layouts_the_complete_one_is_read(root):
    folder = root / "cityscapes"
    half = folder / LABEL.replace("labelIds", "labelTrainIds")
    Image.new("L", (64, 32)).save(half)  # an interrupted conversion
    whole = FilesSource(root=root).open(select("cityscapes"))
    assert len(whole) == 3
    assert len(np.unique(whole[0].label)) > 10


def test_facts_are_the_same_elsewhere_and_change_with_the_images(root, written):
    here, there = FilesSource(root=root), FilesSource(roots={"cityscapes": written[0] / "cityscapes"})
    base = here.facts(select("cityscapes"))
    assert base == there.facts(select("cityscapes"))
    assert str(root) not in str(base)
    for other in (select("cityscapes", fraction="1/3"), select("cityscapes", split="val"), select("acdc:fog")):
        assert here.facts(other) != base
    for path in (root / "cityscapes" / IMAGE, root / "cityscapes" / LABEL):
        path.rename(path.with_name(path.name.replace("a0", "b0")))
    assert FilesSource(root=root).facts(select("cityscapes")) != base
    assert FilesSource(root=root, size=(8, 8)).facts() != FilesSource(root=root).facts()


def test_facts_know_how_labels_are_read(root):
    path = root / "dataset.yaml"
    (root / "imagenet").rename(root / "images")
    shutil.copytree(root / "images", root / "labels")
    seen = []
    for settings in ("classes: [a, b]", "classes: [a, b]\nids: {0: 1}", "classes: [a, c]", "labels: null"):
        path.write_text(f"{settings}\nsplits: {{train: train}}\n")
        seen.append(FilesSource(sets={"own": path}).facts(select("own")))
    assert len({str(facts) for facts in seen}) == 4


def test_places_of_unknown_data_sets_are_faults(tmp_path):
    (line,) = FilesSource(roots={"citiscapes": tmp_path, "acdc": tmp_path}).faults()
    assert "roots: unknown data set 'citiscapes': did you mean 'cityscapes'" in line
    with pytest.raises(UserError, match="'a:b' has a colon"):
        parse(FilesSource, {"sets": {"a:b": str(tmp_path)}})


def test_a_selections_fingerprint_holds_what_differs_from_the_defaults():
    assert select("a", images=3).model_dump(mode="json", exclude_defaults=True) == {"domains": ["a"], "images": 3}


def test_a_selection_is_read_back_as_it_was_written():
    full = select("a", fraction="1/4", fraction_seed=2, list="x.txt", weights=[2])
    assert parse(DataSelection, full.model_dump(mode="json")) == full
