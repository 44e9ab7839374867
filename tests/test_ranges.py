"""Every number in every settings class has a lowest and a highest value, and what means nothing is refused by name."""

from __future__ import annotations

from typing import Annotated, get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from segdistill.config import Config, UserError
from segdistill.environment import within_memory
from segdistill.grid import table
from segdistill.recipe import load
from tiny_runs import tiny_file

OTHERWISE = {"ids", "ignore", "colors"}  # of dataset.yaml: checked against the labels' and the classes' numbers


def classes(base=Config):
    """All settings classes of the package."""
    assert table  # imports all others
    for cls in base.__subclasses__():
        if cls.__module__.startswith("segdistill."):
            yield cls
        yield from classes(cls)


def kinds(annotation):
    return {annotation, *(kind for argument in get_args(annotation) for kind in kinds(argument))}


FIELDS = [
    pytest.param(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation,
                 id=f"{cls.__qualname__}.{name}")
    for cls in classes() for name, field in cls.model_fields.items()
    if {int, float} & kinds(field.annotation) and name not in OTHERWISE
]  # fmt: skip


def test_the_settings_with_numbers_are_found():
    assert len(FIELDS) > 80


@pytest.mark.parametrize("annotation", FIELDS)
def test_a_number_has_a_lowest_and_a_highest_value(annotation):
    reader = TypeAdapter(annotation)
    for huge in (10**30, -(10**30), 1e300, -1e300):
        for value in (huge, [huge], [huge, huge]):
            with pytest.raises(ValidationError):
                reader.validate_python(value)


NONSENSE = [
    ("stages.agnostic.optimizer.lr_reference_batch=0", "greater than or equal to 1, got 0"),
    ("stages.agnostic.optimizer.weight_decay=.inf", "a finite number, got inf"),
    ("stages.agnostic.optimizer.weight_decay=-1", "greater than or equal to 0, got -1"),
    ("stages.agnostic.optimizer.lr=.nan", "a finite number, got nan"),
    ("stages.agnostic.optimizer.algorithm.betas=[0.9, 1]", "less than 1, got 1"),
    ("stages.task.optimizer.power=-1", "greater than or equal to 0"),
    ("stages.agnostic.method.patch_weight=.inf", "a finite number, got inf"),
    ("stages.task.augment.flip=5", "less than or equal to 1, got 5"),
    ("stages.agnostic.augment.erase=-0.1", "greater than or equal to 0"),
    ("stages.task.augment.max_share=2", "less than or equal to 1"),
    ("stages.task.augment.scale=[2, 0.5]", "the first bound is above the second"),
    ("stages.agnostic.augment.crop_scale=[0.5, 0.1]", "the first bound is above the second"),
    ("stages.agnostic.augment.crop_scale=[0.5, 2]", "less than or equal to 1"),
    ("stages.agnostic.augment.crop_ratio=[0, 1]", "greater than or equal to 0.01"),
    ("stages.agnostic.augment.rand_augment=rand-m9-x3", "'x3' is unknown or"),
    ("stages.agnostic.augment.rand_augment=rand-m9-m3", "'m3' is unknown or a repetition"),
    ("stages.agnostic.augment.rand_augment=rand-m9-inc", "'inc' is unknown or"),
    ("stages.agnostic.augment.rand_augment=rand-m99", "'m99' is unknown or"),
    ("stages.agnostic.augment.rand_augment=rand-n1.5", "'n1.5' is unknown or"),
    ("stages.agnostic.augment.rand_augment=augmix-m9", "must begin with 'rand'"),
    ("stages.task.augment.tries=0", "greater than or equal to 1"),
    ("stages.task.data.domains=[game, game]", "game appears twice"),
    ("evaluate.domains=[game, fog, fog, rain]", "fog appears twice"),
    ("evaluate.unseen=[fog, fog]", "fog appears twice"),
    ("data.size=[0, 64]", "greater than or equal to 1, got 0"),
    ("data.size=[true, 64]", "expected a number, not true or false"),
    ("data.size=[32.5, 64]", "a valid integer"),
    ("seed=true", "expected a number, not true or false"),
    ("seed=3.7", "a valid integer"),
    ("workers=-1", "greater than or equal to 0"),
    ("workers=100000", "less than or equal to 128"),
    ("stages.task.steps=1000000000000", "less than or equal to 100000000"),
    ("name=../x", "String should match pattern"),
    ("stages.task.name=Task", "String should match pattern"),
    ("student.head.width=17", "not divisible into groups of the group norm; choose a multiple of 4, got 17"),
    ("student.head={type: mask2former, heads: 5}", "width 256 must be a multiple of heads 5"),
    ("student.head.strides=[4, 8]", "student.head.strides: 2 levels for the 4 taps of world_student; give 4"),
    ("student.encoder.image_size=[8192, 8192]", None),
    ("student.encoder={name: dinov2_s, image_size: [8192, 8192], patch: 4}", "4,194,304 cells of patch 4, allowed: 1"),
    ("data={source: files, sets: {../../x: a}}", "'../../x' is not a valid name"),
    ("evaluate.window={size: [8, 0]}", "greater than or equal to 1, got 0"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), NONSENSE)
def test_what_means_nothing_is_refused_with_its_name_and_range(tmp_path, override, message):
    if message is None:
        load(tiny_file(tmp_path), [override])
        return
    with pytest.raises(UserError) as caught:
        load(tiny_file(tmp_path), [override])
    line = str(caught.value)
    assert message in line
    assert override.partition("=")[0].rpartition(".")[2].split("[")[0] in line


def test_a_step_that_no_memory_holds_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        load(tiny_file(tmp_path), ["data.size=[4096, 4096]", "stages.task.batch=64", "stages.task.proxy.batch=1"])
    assert "stage task: a step of 65 images of 4096 x 4096 does not fit into memory; choose a batch of at most 64" in (
        str(caught.value)
    )


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**50), lambda: bytearray(2**60)])
def test_memory_that_is_not_there_is_one_line(allocate):
    with pytest.raises(UserError, match=r"^not enough memory: .*; choose a smaller batch, size, window or network$"):
        within_memory()(allocate)()


def test_other_errors_are_not_taken_for_missing_memory():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        within_memory()(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))()
