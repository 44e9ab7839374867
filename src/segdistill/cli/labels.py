"""The command that writes pseudo-labels of objects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from segdistill.config import UserError, expanded


def pseudo_label(
    what: Annotated[
        str,
        typer.Argument(help="a run folder or a packed file of an instance model, or a YAML file: a teacher's settings"),
    ],
    inputs: Annotated[list[str], typer.Argument(help="images, folders, patterns, archives or videos")],
    *,
    out: Annotated[Path, typer.Option(help="the COCO file with scores to write, NAME.json")],
    score: Annotated[float, typer.Option(min=0, max=1, help="least score of a pseudo-label")] = 0.3,
    least: Annotated[int, typer.Option(min=1, help="least pixels of a pseudo-label")] = 5,
    instance_ids: Annotated[Path | None, typer.Option(help="folder for Cityscapes' instanceIds as PNG")] = None,
    sheet: Annotated[Path | None, typer.Option(help="picture of some images with their pseudo-labels")] = None,
    shown: Annotated[int, typer.Option(min=1, max=200, help="images in that picture")] = 12,
    role: Annotated[str | None, typer.Option(help="student (default) or teacher of a run")] = None,
    every: Annotated[int, typer.Option(min=1, help="take every n-th frame of a video")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="skip images that cannot be read")] = False,
) -> None:
    """Label images with objects, by a model of yours or by words. Resumes."""
    from segdistill.inference.inputs import find_inputs, output_names
    from segdistill.progress import Bars

    if not expanded(what).exists():
        raise UserError(f"no model at {what}; give a run folder, a packed file, or a YAML file of a teacher")
    if out.suffix != ".json":
        raise UserError(f"pseudo-labels are written to a .json file, not to {out.name}: rename it")
    output_names(find_inputs(inputs, every=every))  # before torch is imported
    from segdistill.inference.labels import Wanted, label_images

    wanted = Wanted(score, least, instance_ids, sheet, shown, every, skip_bad)
    with Bars("pseudo-label", 0) as bars:
        outcome = label_images(what, inputs, out, wanted, role=role, device=device, watcher=bars)
    for line in [*(f"skipped: {each}" for each in outcome.bad), *(f"warning: {each}" for each in outcome.warnings)]:
        typer.echo(line, err=True)
    labels = outcome.labels
    objects = sum(len(labels.detections(image)) for image in labels)
    counts = [f"{outcome.made} images labelled", f"{outcome.kept} already finished", f"{len(outcome.bad)} skipped"]
    typer.echo(f"{out}: {objects:,} objects; {', '.join(counts)}")
