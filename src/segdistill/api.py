"""The Python API. Importing this module does not import torch; the first call does.

The functions have the names and meanings of the commands::

    import segdistill

    segdistill.run("recipes/world_gkd.yaml", ["seed=1"], out="runs/mine")
    model = segdistill.load("runs/mine")
    result = model.predict("street.jpg")

A mistake of the caller raises :class:`segdistill.UserError` with a one-line message.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdistill.config import UserError

if TYPE_CHECKING:
    from segdistill.inference.folder import Outcome
    from segdistill.inference.model import Model, ObjectModel
    from segdistill.recipe import Recipe
    from segdistill.runlog import Watcher

PathLike = str | os.PathLike[str]

__all__ = ["UserError", "estimate", "evaluate", "export", "load", "predict", "report", "run"]


def load(what: PathLike, *, role: str | None = None, device: str = "auto") -> Model | ObjectModel:
    """Load the finished model of a run folder, a stage folder, a packed file, or ``"hf:owner/name"``.

    ``role`` is ``"student"`` (default) or ``"teacher"`` of a run folder, ``device`` is ``"auto"``, ``"cpu"`` or
    ``"cuda"``. Only ``hf:`` needs a network connection; training images are never needed.
    """
    from segdistill.inference.model import load as load_model

    return load_model(what if isinstance(what, str) else Path(what), role=role, device=device)


def predict(
    what: PathLike | Model | ObjectModel,
    inputs: PathLike | Sequence[PathLike],
    out: PathLike,
    *,
    overlay: bool = True,
    confidence: bool = False,
    side_by_side: bool = False,
    batch: int = 8,
    every: int = 1,
    skip_bad: bool = False,
    score: float | None = None,
    keep: float | None = None,
    watcher: Watcher | None = None,
) -> Outcome:
    """Write predictions for images, folders, patterns, archives and videos below the folder ``out``; resumes.

    Models of objects write ``out/ids``, overlays, ``out/objects`` and ``out/objects.json`` instead: ``score`` is the
    least score of the objects in maps and overlays (default 0.5), ``keep`` of those in JSON (default 0.05).

    Class maps go to ``out/classes``; ``overlay``, ``confidence`` and ``side_by_side`` (with the teacher, if any) go to
    folders beside it. ``every`` takes every n-th frame of a video. With ``skip_bad``, unreadable images are skipped and
    listed in the outcome. ``watcher`` receives the progress.
    """
    from segdistill.inference.folder import Wanted, predict_to_folder
    from segdistill.inference.model import Model, ObjectModel

    model = what if isinstance(what, Model | ObjectModel) else load(what)
    words = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    wanted = Wanted(overlay, confidence, side_by_side, batch, every, skip_bad, score, keep)
    return predict_to_folder(model, [Path(word) for word in words], Path(out), wanted, watcher)


def run(
    recipe: PathLike | Recipe,
    overrides: Sequence[str] = (),
    *,
    out: PathLike | None = None,
    reuse: Sequence[PathLike] = (),
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Run a recipe (a file, a shipped name, or a loaded one); returns the content of ``results.json``. Resumes.

    ``overrides`` have the form ``"key=value"``, ``out`` is the run folder (default: ``runs/<recipe name>``), ``reuse``
    names other run folders to copy identical stages from.
    """
    if not isinstance(recipe, str | os.PathLike):
        from segdistill.recipe import change

        settings = change(recipe, list(overrides)) if overrides else recipe
    else:
        from segdistill.precheck import check_recipe
        from segdistill.shipped import recipe_path

        path = recipe_path(Path(recipe))
        check_recipe(path, list(overrides))  # before torch is imported
        from segdistill.recipe import load as load_recipe

        settings = load_recipe(path, list(overrides))
    from segdistill.runs.execute import run as run_recipe

    folder = Path("runs") / settings.name if out is None else Path(out)
    others = reusable(reuse)
    return run_recipe(settings, folder, reuse=others, watcher=watcher)


def evaluate(
    what: PathLike,
    overrides: Sequence[str] = (),
    *,
    data: Sequence[str] = (),
    root: PathLike | None = None,
    recipe: PathLike | None = None,
    role: str | None = None,
    out: PathLike | None = None,
    corrupt: Sequence[str] = (),
    severities: Sequence[int] | None = None,
    images: int | None = None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Score a run folder, a stage folder, or (with ``recipe``) a checkpoint file.

    ``corrupt`` names corruptions or groups of them to score too, such as ``["common"]`` or ``["fog", "noise"]``, at
    ``severities`` (default: 1 to 5) and on so many ``images`` per domain (default: all).

    ``data`` names other data, such as ``["cityscapes:val", "acdc:night"]``, below ``root``. The scores are written to
    ``out``; the default is the run folder, or a folder below it with ``data``. Returns the content of ``results.json``.
    """
    from segdistill.runs.rescore import Wanted, rescore

    settings = list(overrides)
    if corrupt:
        strengths = None if severities is None else ",".join(map(str, severities))
        settings.insert(0, Wanted.corrupted(",".join(corrupt), strengths, images))
    elif severities is not None or images is not None:
        raise UserError("severities and images belong to corrupt; name the corruptions, or omit them")
    wanted = Wanted(list(data), None if root is None else Path(root), settings)
    scores = rescore(
        Path(what),
        wanted,
        recipe=None if recipe is None else Path(recipe),
        role=role,
        out=None if out is None else Path(out),
        watcher=watcher,
    )
    return json.loads((scores / "results.json").read_text(encoding="utf-8"))


def report(folders: PathLike | Sequence[PathLike], out: PathLike = "report.html") -> Path:
    """Compare run folders on one self-contained HTML page; returns its path. Needs no torch."""
    from segdistill.report import write_report

    several = [folders] if isinstance(folders, str | os.PathLike) else folders
    write_report([Path(folder) for folder in several], Path(out))
    return Path(out)


def export(what: PathLike, out: PathLike, **options: Any) -> Any:
    """Export a finished model to ONNX and check it; see :func:`segdistill.export.export` for the options."""
    from segdistill.export import export as export_model

    return export_model(Path(what), Path(out), **options)


def estimate(what: PathLike, folder: PathLike, **options: Any) -> Any:
    """Estimate mIoU or AP on unlabelled images; see :func:`segdistill.estimation.estimate.estimate` for the options."""
    from segdistill.estimation.estimate import estimate as estimate_score

    return estimate_score(Path(what), Path(folder), **options)


def reusable(folders: Sequence[PathLike]) -> list[Path]:
    """The folders as paths; a :class:`UserError` if one has no stages."""
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not (path / "stages").is_dir():
            raise UserError(f"{path}: not a run folder with stages to reuse; name an existing one or omit it")
    return paths
