"""Files that the device decodes: the same images, crops and flips as loader processes give; here on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from odd_files import encoded
from segdistill.config import UserError
from segdistill.data.dataset import DataSelection
from segdistill.data.files import FilesSource
from segdistill.data.gpu_decode import EncodedBatches, on_device
from segdistill.data.loader import StepBatches, loaded
from segdistill.data.transforms import DistillAugment, DistillTransform
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.runs.plan import make_plan
from tiny_runs import only, tiny_file

CUT = {"rand_augment": None, "erase": 0.0}


def picture(seed, size=(40, 56)):
    """A smooth image, which JPEG keeps well."""
    coarse = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 8, 0), 8, 1)


@pytest.fixture
def dataset(tmp_path):
    """Two plain JPEG files, and a PNG, a rotated and a grey one, which the loader process decodes."""
    kinds = {"a.jpg": ("JPEG", 1), "b.jpg": ("JPEG", 1), "c.png": ("PNG", 1), "d.jpg": ("JPEG", 6)}
    (tmp_path / "images" / "train").mkdir(parents=True)
    for number, (name, (kind, orientation)) in enumerate(kinds.items()):
        (tmp_path / "images" / "train" / name).write_bytes(encoded(picture(number), kind, orientation))
    (tmp_path / "images" / "train" / "e.jpg").write_bytes(encoded(picture(9)[..., 0], "JPEG"))
    (tmp_path / "dataset.yaml").write_text("images: images\n")
    source = FilesSource(sets={"own": tmp_path / "dataset.yaml"})
    return source.open(DataSelection(domains=("own",)))


def test_plain_jpeg_files_alone_are_left_to_the_device(dataset):
    contents = [dataset.encoded(index) for index in range(len(dataset))]
    assert [each.content.ndim for each in contents] == [1, 1, 3, 3, 3]
    assert [each.size for each in contents] == [dataset[index].image.shape[:2] for index in range(len(dataset))]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_equal_those_of_loader_processes_up_to_rounding(dataset, workers):
    settings = {"batch": 4, "seed": ("seed", 3), "repeats": 2}
    transform = DistillTransform(DistillAugment(**CUT), (32, 32))
    usual = StepBatches(dataset, transform, **settings)
    own = EncodedBatches(dataset, transform, **settings)
    found = list(on_device(loaded(own, range(6), workers, ahead=2), own, torch.device("cpu")))
    for step, batch in enumerate(found):
        assert batch["image"].shape == (4, 3, 32, 32)
        difference = (batch["image"].int() - usual[step]["image"].int()).abs()
        assert difference.max() <= 3
        assert difference.float().mean() < 0.1
    assert len(own[0]["contents"]) < len(own[0]["rows"])  # an image is sent once for its repeats


@pytest.mark.parametrize("skip", [False, True])
def test_a_file_that_is_damaged_behind_its_header_is_named_or_replaced_as_on_the_cpu(tmp_path, caplog, skip):
    (tmp_path / "images" / "train").mkdir(parents=True)
    for number, name in enumerate("abc"):
        (tmp_path / "images" / "train" / f"{name}.jpg").write_bytes(encoded(picture(number), "JPEG"))
    (tmp_path / "dataset.yaml").write_text("images: images\n")
    source = FilesSource(sets={"own": tmp_path / "dataset.yaml"}, on_bad_sample="skip" if skip else "error")
    dataset = source.open(DataSelection(domains=("own",)))
    settings = {"batch": 3, "seed": ("seed", 3)}
    transform = DistillTransform(DistillAugment(**CUT), (32, 32))
    own, usual = EncodedBatches(dataset, transform, **settings), StepBatches(dataset, transform, **settings)
    damaged = tmp_path / "images" / "train" / "b.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-60])
    assert dataset.encoded(1).content.ndim == 1  # its header is intact
    if not skip:
        with pytest.raises(UserError, match=r"b\.jpg: "):
            list(on_device([own[0]], own, torch.device("cpu")))
        return
    [batch] = on_device([own[0]], own, torch.device("cpu"))
    assert torch.equal(batch["image"], usual[0]["image"])
    assert "skipped (1 so far)" in caplog.text


def test_an_intact_file_that_the_device_cannot_decode_ends_the_run(dataset, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("/src/decode_jpeg.cpp:9, no decoder")

    own = EncodedBatches(dataset, DistillTransform(DistillAugment(**CUT), (32, 32)), batch=4, seed=("seed", 3))
    monkeypatch.setattr("segdistill.data.gpu_decode._decode", fail)
    with pytest.raises(UserError, match=r"cannot decode .* \(decode_jpeg.cpp:9, no decoder\); use decode=cpu"):
        list(on_device([own[0]], own, torch.device("cpu")))


def test_a_stage_refuses_what_the_device_does_not_do_and_a_cpu(tmp_path):
    path = tiny_file(tmp_path, only("agnostic", evaluate=None))
    with pytest.raises(UserError, match="decode=gpu only crops and flips: set"):
        load(path, ["stages.agnostic.decode=gpu"])
    settings = ["stages.agnostic.decode=gpu", "stages.agnostic.augment={rand_augment: null, erase: 0}"]
    assert "stage agnostic: decode=gpu needs a GPU; there is none here" in make_plan(load(path, settings)).doubts
    with pytest.raises(UserError, match="stage agnostic: decode=gpu, but this run is on the CPU; use decode=cpu"):
        run(load(path, settings), tmp_path / "run")
