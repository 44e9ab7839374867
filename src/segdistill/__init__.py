"""segdistill: small segmentation models that keep a foundation model's robustness.

``load`` gives a finished model; ``run``, ``evaluate``, ``predict``, ``export``, ``estimate`` and ``report`` are the
commands of the same names as functions (:mod:`segdistill.api`). Importing this package imports no torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segdistill.api import UserError, estimate, evaluate, export, load, predict, report, run
    from segdistill.inference.model import Model, ObjectModel
    from segdistill.inference.objects import ObjectResult
    from segdistill.inference.result import Result

__version__ = "0.1.0"

FUNCTIONS = ("estimate", "evaluate", "export", "load", "predict", "report", "run")
CLASSES = {
    "Model": "segdistill.inference.model",
    "ObjectModel": "segdistill.inference.model",
    "ObjectResult": "segdistill.inference.objects",
    "Result": "segdistill.inference.result",
    "UserError": "segdistill.config",
}

__all__ = [
    "Model", "ObjectModel", "ObjectResult", "Result", "UserError", "__version__", "estimate", "evaluate", "export",
    "load", "predict", "report", "run",
]  # fmt: skip


class _CallableModule(ModuleType):
    """A module such as ``segdistill.export`` that is also the function of that name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from segdistill import api

        return getattr(api, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """This package: a function and the module of the same name, once that is imported, are both there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FUNCTIONS and type(value) is ModuleType:
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """The functions and classes above, imported when they are asked for."""
    from importlib import import_module

    if name in FUNCTIONS:
        return getattr(import_module("segdistill.api"), name)
    if name in CLASSES:
        return getattr(import_module(CLASSES[name]), name)
    raise AttributeError(f"module 'segdistill' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
