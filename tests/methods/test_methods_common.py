"""Every distillation method passes the common checks."""

from __future__ import annotations

import pytest

import checks
from segdistill.methods import METHODS
from segdistill.types import Needs

CHECKS = [
    checks.check_terms,
    checks.check_gradients,
    checks.check_batch_order,
    checks.check_finite_differences,
    checks.check_half_precision,
    checks.check_state,
]


@pytest.mark.parametrize("name", checks.ENTRIES)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_common(name, check):
    check(name)


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name in METHODS for field in METHODS[name].Config.model_fields]
)
def test_every_setting_changes_the_outcome(name, field):
    checks.check_setting(name, field)


@pytest.mark.parametrize("name", METHODS)
def test_needs_of_the_default_settings_are_the_class_attribute(name):
    cls = METHODS[name]
    assert isinstance(cls.needs, Needs)
    assert cls.needs_for(cls.Config()) == cls.needs
    assert checks.MethodCase(name).method.needs == cls.needs
