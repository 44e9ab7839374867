"""The table of sources, and their form in recipes: ``data: {source: world, ...}``."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from segdistill.config import choose, parse
from segdistill.data.dataset import DataSource
from segdistill.data.files import FilesSource
from segdistill.data.rendered import WorldSource

SOURCES: dict[str, type[DataSource]] = {"world": WorldSource, "files": FilesSource}


def _read(value: object) -> object:
    if isinstance(value, DataSource):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"expected settings with a source of {', '.join(SOURCES)}")
    return parse(choose("source", value.get("source", "world"), SOURCES), value, "data")


AnySource = Annotated[SerializeAsAny[DataSource], BeforeValidator(_read)]
"""The annotation of a settings field that holds any kind of source."""
