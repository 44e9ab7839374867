"""The base of the records that run folders hold, and their numbers."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _finite(value: Any) -> Any:
    """Map NaN and infinity, which the JSON writer allows, to None (not measured)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class Record(BaseModel):
    """A JSON object of a run folder. Unknown keys, such as those of later versions, are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
