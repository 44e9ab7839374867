"""The command that applies a finished model to images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segdistill.cli.show import need_model


def predict(
    what: Annotated[str, typer.Argument(help="a run folder, a stage folder, a packed file, or hf:owner/name")],
    inputs: Annotated[list[str], typer.Argument(help="images, folders, patterns, archives or videos")],
    *,
    out: Annotated[Path, typer.Option(help="folder for the predictions")],
    overlay: Annotated[bool, typer.Option(help="write class colours over the images")] = True,
    confidence: Annotated[bool, typer.Option("--confidence", help="confidence as grey PNG, 255 = certain")] = False,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="write image, teacher (if any) and model in one picture")
    ] = False,
    role: Annotated[str | None, typer.Option(help="student (default) or teacher of a run")] = None,
    resize: Annotated[
        tuple[int, int] | None, typer.Option(help="height and width to fit images into; default: as evaluated")
    ] = None,
    window: Annotated[
        tuple[int, int] | None,
        typer.Option(help="height and width of sliding windows, at the images' own size without --resize"),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="images of the same size per batch")] = 8,
    every: Annotated[int, typer.Option(min=1, help="take every n-th frame of a video")] = 1,
    score: Annotated[
        float | None, typer.Option(help="objects: least score in id maps and overlays; default: 0.5")
    ] = None,
    keep: Annotated[float | None, typer.Option(help="objects: least score in objects.json; default: 0.05")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="skip images that cannot be read")] = False,
) -> None:
    """Predict on images: class maps in OUT/classes or objects in OUT/objects.json, and overlays. Resumes."""
    from segdistill.inference.inputs import find_inputs, output_names
    from segdistill.progress import Bars

    need_model(what, "a run folder, a stage folder, a packed file, or hf:owner/name")
    output_names(find_inputs(inputs, every=every))  # before torch is imported
    from segdistill.inference.folder import Wanted, predict_to_folder
    from segdistill.inference.model import load

    model = load(what, role=role, device=device).seen(resize=resize, window=window)
    wanted = Wanted(overlay, confidence, side_by_side, batch, every, skip_bad, score, keep)
    with Bars("predict", 0) as bars:
        outcome = predict_to_folder(model, inputs, out, wanted, bars)
    if side_by_side and model.teacher is None:
        typer.echo("side by side without a teacher: the model's folder or file has none", err=True)
    for line in outcome.bad:
        typer.echo(f"skipped: {line}", err=True)
    counts = [f"{outcome.made} predicted", f"{outcome.kept} already finished", f"{len(outcome.bad)} skipped"]
    typer.echo(f"{out}: {', '.join(counts)}")
