"""The commands for a user's own images: a folder becomes a recipe; a model meets images without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(help="images with label maps, in any usual order, or with COCO files")],
    *,
    out: Annotated[Path | None, typer.Option(help="the recipe; default: NAME.yaml here")] = None,
    teacher: Annotated[str, typer.Option(help="encoder of the teacher, see segdistill list encoders")] = "dinov2_b",
    student: Annotated[
        str, typer.Option(help="encoder of the student, any of timm as timm:NAME")
    ] = "timm:mobilenetv3_large_100.ra_in1k",
    validation: Annotated[list[str] | None, typer.Option(help="a labelled domain to choose settings on")] = None,
    unseen: Annotated[list[str] | None, typer.Option(help="a labelled domain that only reports")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace files that exist")] = False,
) -> None:
    """Look at a folder of images and write its dataset.yaml and a complete commented recipe."""
    from segdistill.starter import start

    started = start(
        folder, out, teacher=teacher, student=student, validation=validation or [], unseen=unseen or [], force=force
    )
    for line in started.lines():
        typer.echo(line)
    typer.echo(f"next: segdistill run {started.recipe} --dry-run")
