"""The teacher's tokens and logits on disk, in a task stage: of its labelled and of its proxy images."""

from __future__ import annotations

import gc
import json
import weakref

import pytest
import torch

from segdistill.config import UserError
from segdistill.recipe import load
from segdistill.runs.execute import run
from segdistill.runs.plan import make_plan
from segdistill.stages import task as task_stage
from segdistill.stages import teacher_cache
from segdistill.stages.base import StageContext
from tiny_runs import only, tiny_file

CACHE = ["stages.task.cache={views: 3, dtype: fp32}", "stages.task.proxy.cache={views: 2, dtype: fp32}",
         "stages.task.presence_weight=0"]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_cache, "cache_folder", lambda: tmp_path / "cache")


def recipe(folder, *changes, method="mse"):
    text = only("teacher", "task", evaluate=None)
    return load(tiny_file(folder, text), [f"stages.task.method={{type: {method}}}", *CACHE, *changes])


@pytest.mark.parametrize("method", ["mse", "logit_kd", "{type: mse, teacher_taps: [2]}", "heir"])
def test_the_terms_are_those_of_a_teacher_that_sees_the_same_views(tmp_path, monkeypatch, method):
    """Every step of a run is computed twice: from the cache, and by the teacher on the batch's own images."""
    found, part = [], method if method.startswith("{") else f"{{type: {method}}}"
    teachers = {}

    class Twice(task_stage.TaskObjective):
        def __init__(self, model, *, distillation, caches, **rest):
            super().__init__(model, distillation=distillation, caches=caches, **rest)
            if distillation is not None:
                assert isinstance(distillation.teacher, torch.nn.Identity)  # the run goes on without it

        def forward(self, batch, step, steps):
            terms = super().forward(batch, step, steps)
            if self.caches is not None:
                assert batch["image"].shape[0] == batch["proxy"].shape[0] == 2
                caches, self.caches = self.caches, None
                kept = self.distillation.teacher
                self.distillation.teacher, self.distillation.teacher_head = teachers["both"]
                self.model.eval()
                live = super().forward(batch, step, steps)
                self.caches = caches
                again = super().forward(batch, step, steps)
                self.distillation.teacher, self.distillation.teacher_head = kept, None
                self.model.train()
                found.append((live, again))
            return terms

    original = task_stage.open_task_caches

    def opened(config, context, dataset, distillation):
        teachers["both"] = (distillation.teacher, distillation.teacher_head)
        return original(config, context, dataset, distillation)

    monkeypatch.setattr(task_stage, "TaskObjective", Twice)
    monkeypatch.setattr(task_stage, "open_task_caches", opened)
    run(recipe(tmp_path, f"stages.task.method={part}"), tmp_path / "run")
    assert len(found) == 8
    for live, cached in found:
        assert live.keys() == cached.keys()
        for name, value in live.items():
            assert cached[name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize("kind", ["task", "distill"])
def test_the_teacher_is_gone_when_training_with_its_cache_starts(tmp_path, monkeypatch, kind):
    settings = recipe(tmp_path, method="heir") if kind == "task" else load(
        tiny_file(tmp_path, only("agnostic", evaluate=None)), ["stages.agnostic.cache={views: 2}"])  # fmt: skip
    built, train, teachers = StageContext.build_teacher, StageContext.train, []

    def watched(context, *fit):
        teacher = built(context, *fit)
        teachers.append(weakref.ref(teacher))
        return teacher

    def started(context, config, *rest):
        gc.collect()
        assert config.cache is None or [each() for each in teachers] == [None]
        return train(context, config, *rest)

    monkeypatch.setattr(StageContext, "build_teacher", watched)
    monkeypatch.setattr(StageContext, "train", started)
    run(settings, tmp_path / "run")
    assert len(teachers) == 1


def test_labels_are_those_of_their_views(tmp_path, monkeypatch):
    """A cached crop's label is the crop of its label: the transform makes both from one number."""
    seen = []
    original = teacher_cache.TeacherCache.write

    def write(self, shard, batch, views):
        seen.append((self, batch))
        original(self, shard, batch, views)

    monkeypatch.setattr(teacher_cache.TeacherCache, "write", write)
    run(recipe(tmp_path), tmp_path / "run")
    labelled, proxy = sorted(seen, key=lambda each: not each[0].shape.labelled)
    cache, batch = labelled
    assert batch["label"].shape == (12, 32, 64)  # three views of four images
    for image in range(4):
        for view in range(3):
            kept = cache.view(image, view)
            assert torch.equal(kept["label"], batch["label"][3 * image + view])
            assert torch.equal(kept["image"], batch["image"][3 * image + view])
            assert kept["label"].dtype == torch.int64
    assert "label" not in proxy[0].view(0, 0)


def test_students_share_the_caches_and_another_head_makes_new_logits(tmp_path, monkeypatch):
    made = []
    original = teacher_cache.TeacherCache.write
    monkeypatch.setattr(
        teacher_cache.TeacherCache, "write", lambda *args: (made.append(args[0].folder.name), original(*args))
    )
    run(recipe(tmp_path), tmp_path / "one")
    assert len(set(made)) == 2
    run(recipe(tmp_path, "stages.task.steps=3", "stages.task.method.weight=2"), tmp_path / "two")
    assert len(made) == 2  # nothing new
    run(recipe(tmp_path, method="logit_kd"), tmp_path / "three")
    assert len(set(made)) == 4
    run(recipe(tmp_path, "stages.teacher.steps=3", method="logit_kd"), tmp_path / "four")
    assert len(set(made)) == 6


def test_a_run_with_caches_continues_exactly_and_workers_change_nothing(tmp_path):
    def weights(folder):
        return (folder / "stages/01-task/encoder.safetensors").read_bytes()

    run(recipe(tmp_path), tmp_path / "whole")
    run(recipe(tmp_path, "workers=2"), tmp_path / "workers")
    assert weights(tmp_path / "workers") == weights(tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert {"feature"} <= set(lines[-1]["terms"])


def test_the_plan_counts_both_caches(tmp_path):
    plain = make_plan(load(tiny_file(tmp_path, only("teacher", "task", evaluate=None))), speed=1e9)
    cached = make_plan(recipe(tmp_path, method="logit_kd"), speed=1e9)
    (note,) = cached.notes()
    assert note.startswith("01-task: a teacher cache of 20 views")
    assert cached.stages[1].flops < plain.stages[1].flops


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["stages.task.proxy.cache=null"], "cache and proxy.cache: set both"),
        (["stages.task.cache=null"], "cache and proxy.cache: set both"),
        (["stages.task.proxy=null", "stages.task.method=null"], "add a method or remove cache"),
        (["stages.task.rare_class={}"], "rare_class draws a new crop at every step"),
    ],
)
def test_what_a_cache_cannot_do_is_one_line(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        recipe(tmp_path, *changes)
