"""The commands for a user's own images: init, serve, settings, estimate and probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from segdistill.cli.show import need_model, print_table


def init(
    folder: Annotated[Path, typer.Argument(help="images with label maps, outlines or boxes in any common form")],
    *,
    out: Annotated[Path | None, typer.Option(help="the recipe to write; default: NAME.yaml here")] = None,
    task: Annotated[
        Literal["semantic", "instance", "detection"], typer.Option(help="class maps, objects with masks, or boxes")
    ] = "semantic",
    teacher: Annotated[str, typer.Option(help="encoder of the teacher, see segdistill list encoders")] = "dinov2_b",
    student: Annotated[
        str | None,
        typer.Option(
            help="encoder of the student; any timm model as timm:NAME; default: timm:mobilenetv3_large_100.ra_in1k, "
            "of instances dinov2_s"
        ),
    ] = None,
    validation: Annotated[list[str] | None, typer.Option(help="a labelled domain for choosing settings")] = None,
    unseen: Annotated[list[str] | None, typer.Option(help="a labelled domain that is only reported")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite existing files")] = False,
) -> None:
    """Inspect a folder of images and write its dataset.yaml and a complete, commented recipe."""
    from segdistill.starter import start

    started = start(
        folder,
        out,
        task=task,
        teacher=teacher,
        student=student,
        validation=validation or [],
        unseen=unseen or [],
        force=force,
    )
    for line in started.lines():
        typer.echo(line)
    typer.echo(f"next: segdistill run {started.recipe} --dry-run")


def serve(
    what: Annotated[str, typer.Argument(help="a run folder, a stage folder, a packed file, or hf:owner/name")],
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port on 127.0.0.1; 0: any free one")] = 8765,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Serve a local page to drop images on: shows model, teacher, confidence and differences."""
    from segdistill.inference.model import load
    from segdistill.inference.serve import Server

    with Server(load(what, device=device), port) as server:
        typer.echo(f"{server.url} (press Ctrl-C to stop)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("stopped")


def settings(
    out: Annotated[Path, typer.Argument(help="the Markdown file to write")] = Path("docs/settings.md"),
) -> None:
    """Write a page with every setting of recipes and dataset.yaml, its default and its meaning."""
    from segdistill.files import write_bytes
    from segdistill.reference import settings_page

    write_bytes(out, settings_page().encode())
    typer.echo(str(out))


def estimate(
    what: Annotated[str, typer.Argument(help="a run folder, a packed file, or hf:owner/name")],
    folder: Annotated[Path, typer.Argument(help="images without labels: a folder, an archive or a video")],
    *,
    out: Annotated[Path, typer.Option(help="picture of the images with the worst predictions")] = Path("estimate.png"),
    worst: Annotated[int, typer.Option(min=1, max=100, help="number of images in that picture")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    root: Annotated[Path | None, typer.Option(help="folder that holds the labelled data sets of the recipe")] = None,
) -> None:
    """Estimate the mIoU or AP on unlabelled images, with an interval. Exit status 1: too unlike the known domains."""
    need_model(what, "a run folder, a packed file, or hf:owner/name")
    from segdistill.estimation.estimate import estimate as estimate_folder
    from segdistill.progress import Bars

    with Bars("estimate", 0) as bars:
        found = estimate_folder(what, folder, out=out, worst=worst, device=device, root=root, watcher=bars)
    for line in found.lines():
        typer.echo(line)
    typer.echo(f"picture: {out}")
    if found.score is None:
        raise typer.Exit(1)


def probe(
    recipe: Annotated[Path, typer.Argument(help="a recipe file, or the name of a shipped recipe")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="changed settings, such as teacher.encoder.name=dinov2_b")
    ] = None,
    *,
    model: Annotated[Literal["teacher", "student"], typer.Option(help="which of its networks")] = "teacher",
    images: Annotated[int, typer.Option(min=5, help="labelled images of the source to fit on, at most")] = 200,
) -> None:
    """Fit a linear probe on every block of an encoder, to see which block is worth distilling and how good it is."""
    from segdistill.precheck import check_recipe
    from segdistill.shipped import recipe_path

    path = recipe_path(recipe)
    check_recipe(path, overrides or [])  # before torch is imported
    from segdistill import recipe as recipes
    from segdistill.estimation.probe import probe as probe_recipe
    from segdistill.progress import Bars

    with Bars("probe", 0) as bars:
        found = probe_recipe(recipes.load(path, overrides), model=model, images=images, watcher=bars)
    print_table(found.table())
    typer.echo(found.line())
