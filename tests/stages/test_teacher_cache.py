"""The teacher's tokens on disk: the losses of the same views, what is shared, what is damaged, and exact resume."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric

from segdistill.config import UserError, parse
from segdistill.data.loader import StepBatches
from segdistill.data.transforms import DistillAugment, DistillTransform
from segdistill.encoders import EncoderConfig, build_encoder
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.runs.plan import make_plan
from segdistill.stages import teacher_cache
from segdistill.stages.distill import Distillation, DistillConfig, DistillObjective
from segdistill.stages.teacher_cache import CacheConfig, Numbers, open_cache
from tiny_runs import only, tiny, tiny_file

SIZE = (32, 64)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "cache_folder", lambda: tmp_path / "cache")


def encoders():
    teacher = build_encoder(EncoderConfig(name="world_teacher", image_size=SIZE), seed=1).eval().requires_grad_(False)
    return teacher, build_encoder(EncoderConfig(name="world_student", image_size=SIZE), seed=2)


def made(tmp_path, teacher, dtype="fp32", views=2, taps=(-1,), **changes):
    """A cache of four images, and the data set."""
    source = tiny(tmp_path).data
    dataset = source.open(tiny(tmp_path).stages[1].data)
    values = {"facts": "x", "size": SIZE, "batch": 3, "workers": 0, "fabric": Fabric(accelerator="cpu"),
              "progress": lambda *_: None} | changes  # fmt: skip
    transform = values.pop("transform", None) or DistillTransform(DistillAugment(), SIZE)
    return open_cache(CacheConfig(views=views, dtype=dtype), teacher, taps, dataset, transform, **values), dataset


@pytest.mark.parametrize(("method", "taps"), [("gkd", (-1,)), ("mse", (-1,)), ("vitkd", None)])
@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-5), ("fp16", 2e-3), ("int8", 0.05)])
def test_the_losses_are_those_of_a_teacher_that_sees_the_same_views(tmp_path, method, taps, dtype, error):
    teacher, student = encoders()
    part = parse(
        DistillConfig, {"name": "x", "data": {"domains": ["a"]}, "steps": 1, "method": {"type": method}}
    ).method
    distillation = Distillation(student, teacher, part, (0,))
    cache, dataset = made(tmp_path, teacher, dtype, taps=distillation.needs.taps)
    batch = StepBatches(Numbers(dataset), cache, batch=4, seed=(0,))[0]
    assert batch["image"].dtype == torch.uint8
    student.eval()
    found = []
    for each in (None, cache):
        torch.manual_seed(0)  # ViTKD draws its mask
        found.append(DistillObjective(student, distillation, each)(batch, 0, 10))
    live, kept = found
    assert live.keys() == kept.keys()
    for name, value in live.items():
        assert kept[name].item() == pytest.approx(value.item(), rel=error), name


def test_views_differ_and_are_those_of_their_number_whatever_made_them(tmp_path):
    teacher, _ = encoders()
    cache, dataset = made(tmp_path, teacher, views=3)
    views = [cache.view(image, view)["image"] for image in range(4) for view in range(3)]
    assert len({each.numpy().tobytes() for each in views}) == 12
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(teacher_cache, "SHARD", 1)  # a shard of one view
        again, _ = made(tmp_path, teacher, views=3)
    assert again.shards == 12
    for number, image in enumerate(views):
        assert torch.equal(again.view(*divmod(number, 3))["image"], image)
    drawn = [again(Numbers(dataset)[1])["image"].numpy().tobytes() for _ in range(40)]
    assert set(drawn) == {view.numpy().tobytes() for view in views[3:6]}


def test_methods_students_and_seeds_share_one_cache_and_other_teachers_or_views_do_not(tmp_path):
    text = only("agnostic", evaluate=None, teacher={"encoder": {"name": "world_teacher", "weights": "shipped"}})
    stage, folders = "stages.agnostic", tmp_path / "cache" / "teacher"

    def places(name, *changes):
        run(load(tiny_file(tmp_path, text), [f"{stage}.cache={{views: 2}}", *changes]), tmp_path / name)
        return len(list(folders.iterdir()))

    assert places("a") == 1
    assert places("b", f"{stage}.method={{type: mse}}", "seed=5", f"{stage}.optimizer.lr=1e-3") == 1
    assert places("c", f"{stage}.cache.views=3") == 2
    assert places("d", f"{stage}.augment.flip=0") == 3
    assert places("e", "teacher.encoder.weights=random", "data.seed=4") == 4


def test_a_killed_making_continues_and_a_damaged_shard_is_named_and_made_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(teacher_cache, "SHARD", 60_000)
    teacher, _ = encoders()
    cache, _ = made(tmp_path, teacher)
    assert cache.shards > 2
    whole = {path.name: path.read_bytes() for path in cache.folder.iterdir()}
    for path in cache.folder.glob("00001.*"):
        path.unlink()
    damaged = cache.path(2, "tokens0")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    made_again = []
    with caplog.at_level(logging.WARNING):
        made(tmp_path, teacher, progress=lambda what, done, total: made_again.append((done, total)))
    assert made_again == [(1, 2), (2, 2)]
    assert "damaged teacher cache" in caplog.text
    assert str(damaged) in caplog.text
    assert {path.name: path.read_bytes() for path in cache.folder.iterdir()} == whole


def test_a_run_with_a_cache_continues_exactly_and_two_workers_change_nothing(tmp_path):
    text = only("agnostic", evaluate=None)
    path = tiny_file(tmp_path, text)
    changes = ["stages.agnostic.cache={views: 2, dtype: int8}"]

    def weights(folder):
        return (folder / "stages/00-agnostic/encoder.safetensors").read_bytes()

    run(load(path, changes), tmp_path / "whole")
    run(load(path, [*changes, "workers=2"]), tmp_path / "workers")
    assert weights(tmp_path / "workers") == weights(tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)
    run(load(path), tmp_path / "without")
    assert weights(tmp_path / "without") != weights(tmp_path / "whole")


def test_the_plan_tells_time_and_disk_before_anything_is_made(tmp_path):
    text = only("agnostic", evaluate=None)
    plain, cached = (make_plan(load(tiny_file(tmp_path, text), changes), speed=1e9)
                     for changes in ([], ["stages.agnostic.cache={views: 25, dtype: fp16}"]))  # fmt: skip
    assert plain.notes() == []
    (note,) = cached.notes()
    teacher, _ = encoders()
    per_view = 3 * 32 * 64 + 2 * 32 * 256 + 4 * 256
    assert teacher_cache.shape_of(teacher, (-1,), SIZE).nbytes("fp16") == per_view
    assert note.startswith(f"00-agnostic: a teacher cache of 100 views, {100 * per_view / 2**30:.2f} GiB, takes about ")
    assert cached.stages[0].flops < plain.stages[0].flops
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_is_full_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_cache, "write_sealed", full)
    with pytest.raises(
        UserError, match=r"cannot write the teacher cache .*: No space left on device; free space, set SEG"
    ):
        made(tmp_path, encoders()[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_line_whoever_makes_the_views(tmp_path, workers):
    teacher, _ = encoders()
    with pytest.raises(UserError, match="no such image") as error:
        made(tmp_path, teacher, workers=workers, transform=Unreadable())
    assert "\n" not in str(error.value)


class Unreadable:
    """A transform in which reading fails; at the top of the module, so that it can be sent to a worker."""

    def __call__(self, sample):
        raise UserError("no such image")


def test_the_plan_runs_the_teacher_at_its_own_taps(tmp_path):
    """A block of the student that the teacher has no counterpart of."""
    changes = [
        "teacher.encoder={name: world_resnet, weights: random}",
        "stages.agnostic.method={type: mse, taps: [5], teacher_taps: [3]}",
    ]
    assert make_plan(load(tiny_file(tmp_path, only("agnostic", evaluate=None)), changes), speed=1e9).stages[0].flops > 0
