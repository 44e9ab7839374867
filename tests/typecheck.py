"""The checker that tests/conftest.py puts on every function and dataclass of the package."""

from __future__ import annotations

import sys
import typing
from typing import Any

from beartype import beartype
from lightning.fabric import Fabric


def check(decorated: Any) -> Any:
    """``beartype``, for which the protocols of the module become checkable first; the package need not say so.

    Modules that import ``Fabric`` for their annotations alone get it here.
    """
    if "TYPE_CHECKING" in vars(sys.modules[decorated.__module__]):
        vars(sys.modules[decorated.__module__]).setdefault("Fabric", Fabric)
    for value in list(vars(sys.modules[decorated.__module__]).values()):
        if (
            isinstance(value, type)
            and getattr(value, "_is_protocol", False)
            and value.__module__.startswith("segdistill")
        ):
            typing.runtime_checkable(value)
    return beartype(decorated)
