"""Numbers printed in the papers, for comparison with ours."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from segdistill.config import Config, UserError, choose, nearest


class PaperPlace(Config):
    """Where a paper prints the same comparison; its numbers are shown beside ours, never mixed with them."""

    paper: Literal["gkd", "sskd"] = Field("gkd", description="gkd: arXiv 2603.02554; sskd: arXiv 2604.03841")
    table: str = Field(description="number of the paper's table, such as '1'")
    block: str = Field(description="group of its rows, such as 'DINOv2-B to ViT-S'")
    source: str = Field("", description="show only columns of this source, such as 'GTAV'; empty: all")

    def block_of(self) -> PaperBlock:
        """The numbers; a :class:`UserError` if the paper has no such table, block or source."""
        return paper_block(self.table, self.block, self.source, paper=self.paper)

    @property
    def caption(self) -> str:
        """Where the numbers are from, and their unit."""
        arxiv, unit = PAPERS[self.paper]
        unit = _tables(self.paper)[self.table].get("unit", unit)
        return f"arXiv {arxiv}, Table {self.table}, {self.block}: {unit} in percent, as printed"


PAPERS = {"gkd": ("2603.02554", "mIoU"), "sskd": ("2604.03841", "mask AP")}
"""By key: arXiv number, and the score that its tables print."""


class PaperRow(BaseModel):
    """One row of a paper's table; ``scores`` in percent, one per column of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    block: str
    role: str
    name: str
    arch: str
    scores: tuple[float | None, ...]


class PaperBlock(BaseModel):
    """The rows of one group of a table, and the columns, such as ``GTAV/Citys``."""

    model_config = ConfigDict(frozen=True)

    columns: tuple[str, ...]
    rows: tuple[PaperRow, ...]

    def row(self, name: str) -> PaperRow:
        """The row of a method, or of the student without distillation, by name."""
        for row in self.rows:
            if row.name == name and row.role != "teacher":
                return row
        names = [row.name for row in self.rows]
        raise UserError(f"the paper's table has no row '{name}': {nearest(name, names)}allowed: {', '.join(names)}")


def paper_block(table: str, block: str, source: str = "", *, paper: str = "gkd") -> PaperBlock:
    """The group ``block`` of the table with this number, with the columns of ``source`` (empty: all)."""
    content = choose("table of the paper", table, _tables(paper))
    blocks = list(dict.fromkeys(row["block"] for row in content["rows"]))
    if block not in blocks:
        raise UserError(f"table {table} of the paper has no '{block}': {nearest(block, blocks)}allowed: {blocks}")
    picked = [i for i, name in enumerate(content["columns"]) if not source or name.split("/")[0] == source]
    if not picked:
        sources = ", ".join(dict.fromkeys(name.split("/")[0] for name in content["columns"]))
        raise UserError(f"table {table} of the paper has no source '{source}': allowed: {sources}")
    rows = [
        PaperRow.model_validate({**row, "scores": [row["scores"][i] for i in picked]})
        for row in content["rows"]
        if row["block"] == block
    ]
    return PaperBlock(columns=tuple(content["columns"][i] for i in picked), rows=tuple(rows))


@cache
def _tables(paper: str) -> dict[str, Any]:
    text = resources.files("segdistill").joinpath("papers.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)[paper]
