"""docs/settings.md is what the classes say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segdistill.data.files import FilesSource
from segdistill.data.own import OwnConfig
from segdistill.data.rendered import WorldSource
from segdistill.encoders import EncoderConfig
from segdistill.generalize import GENERALIZERS
from segdistill.heads import HEADS
from segdistill.methods import METHODS
from segdistill.recipe import EvaluateConfig, Recipe
from segdistill.reference import settings_page
from segdistill.stages.distill import DistillConfig
from segdistill.stages.task import TaskConfig

PAGE = Path(__file__).parents[1] / "docs/settings.md"
CLASSES = {
    **{cls.__name__: cls for cls in (Recipe, OwnConfig, WorldSource, FilesSource, EncoderConfig, EvaluateConfig,
                                     DistillConfig, TaskConfig)},
    **{f"{kind}: {name}": cls.Config
       for kind, table in (("method", METHODS), ("generalizer", GENERALIZERS), ("head", HEADS))
       for name, cls in table.items()},
}  # fmt: skip


def sections(text: str) -> dict[str, list[str]]:
    """Heading -> the first column of its table."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return {part.partition("\n")[0]: re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) for part in parts}


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == settings_page(), "run: segdistill settings"


@pytest.mark.parametrize("title", CLASSES)
def test_every_setting_has_a_row(title):
    own = [name for name, field in CLASSES[title].model_fields.items() if not field.exclude]  # the rest is no setting
    assert sections(settings_page())[title] == own


def test_links_lead_to_headings_and_no_heading_comes_twice():
    page = settings_page()
    heads = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert len(set(heads)) == len(heads)
    assert set(re.findall(r"\(#([^)]+)\)", page)) <= {head.lower() for head in heads}
