"""What finished models are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, model_validator

from segdistill.config import Config, Names, Size
from segdistill.data.corrupted import CorruptConfig
from segdistill.data.dataset import DataSelection, DataSource, Split
from segdistill.data.source import AnySource
from segdistill.models import Window
from segdistill.stages import StageConfig


class EvaluateConfig(Config):
    """The images that finished models are scored on, and how they are fed to the model.

    Settings that are left out follow from the data and the stages.
    """

    data: AnySource | None = Field(None, description="source of the images; None: the recipe's data")
    domains: Names = Field((), description="domains to score; empty: all benchmark domains of the source (world only)")
    unseen: Names = Field(
        (), description="domains whose mean is reported; default: all except validation domains and training domains"
    )
    validation: Names = Field(
        (), description="domains used to choose settings, never unseen; default: the source's validation domains"
    )
    split: Split | None = Field(None, description="None: the dataset's evaluation split")
    splits: dict[str, Split] = Field(default={}, description="splits of single domains, if different")
    images: int | None = Field(None, ge=1, le=10**7, description="images per domain; None: all (for the world 60)")
    batch: int = Field(16, ge=1, le=2**16, description="images per batch, if consecutive images have the same size")
    resize: Size | None = Field(
        None, description="height and width to fit images into; None: as in the dataset's protocol"
    )
    window: Window | None = Field(None, description="sliding window; None: as in the dataset's protocol")
    pictures: int = Field(
        2,
        ge=0,
        le=1000,
        description="number of first images, and of worst images, whose pictures are saved per domain",
    )
    corrupt: CorruptConfig | None = Field(None, description="also score corrupted images; None: none")

    def selection(self, source: DataSource, domain: str) -> DataSelection:
        """The images of one domain in ``source``."""
        split = self.splits.get(domain) or self.split or source.evaluation_split(domain)
        return DataSelection(domains=(domain,), split=split, images=self.images)

    def completed(self, data: DataSource, stages: Sequence[StageConfig]) -> EvaluateConfig:
        """A copy with defaults for ``domains``, ``unseen``, ``validation`` and ``images`` where they are left out.

        ``data`` is the stages' source. Opens no file.
        """
        source = self.data or data
        given, names = self.model_fields_set, self.domains or source.benchmark()
        if not names:
            raise ValueError("domains: is missing; name the domains to score")
        validation, unseen = self.validation, self.unseen
        if "validation" not in given:
            validation = tuple(name for name in names if source.validates(name) and name not in unseen)
        values: dict[str, Any] = {"domains": names, "validation": validation, "images": self.images or source.scores}
        if "unseen" not in given:
            split = {name: self.selection(source, name).split for name in names if source.splits_apart(name)}
            trained = [name for name in names if type(source) is type(data)
                       and reading_stage(data, stages, name, split.get(name))]  # fmt: skip
            values["unseen"] = tuple(name for name in names if name not in (*validation, *trained))
        if self.corrupt is not None and not self.corrupt.domains:
            apart = (*validation, *values.get("unseen", self.unseen))
            chosen = tuple(name for name in names if name not in apart) or names
            values["corrupt"] = self.corrupt.model_copy(update={"domains": chosen})
        return self.model_copy(update=values)._checked()

    def facts(self) -> dict[str, Any]:
        """The settings, for keys of stored results; those of corruptions only where there are any."""
        return self.model_dump(mode="json", exclude={"corrupt"} if self.corrupt is None else None)

    @model_validator(mode="after")
    def _known(self) -> EvaluateConfig:
        return self._checked()

    def _checked(self) -> EvaluateConfig:
        """The object itself, or a ValueError if its lists of domains contradict each other."""
        for field in ("unseen", "validation", "splits"):
            if self.domains and (strange := set(getattr(self, field)) - set(self.domains)):
                raise ValueError(f"{field} names {', '.join(sorted(strange))}, missing from 'domains'; add them there")
        corrupted = self.corrupt.domains if self.corrupt is not None else ()
        if self.domains and (strange := sorted(set(corrupted) - set(self.domains))):
            raise ValueError(f"corrupt.domains names {', '.join(strange)}, missing from 'domains'; add them there")
        if both := set(self.unseen) & set(self.validation):
            raise ValueError(f"{', '.join(sorted(both))}: validation domains cannot count as unseen")
        return self


def reading_stage(data: DataSource, stages: Sequence[StageConfig], domain: str, split: Split | None) -> str | None:
    """The first of ``stages`` that reads images of ``domain``, of a subset of it, or of a domain that contains it.

    If the splits of a domain are domains in their own right, only the same ``split`` counts.
    """
    for stage in stages:
        for _, selection, _ in stage.reads():
            for seen in selection.domains:
                related = f"{domain}:".startswith(f"{seen}:") or f"{seen}:".startswith(f"{domain}:")
                if related and not (selection.split != split and data.splits_apart(seen)):
                    return stage.name
    return None
