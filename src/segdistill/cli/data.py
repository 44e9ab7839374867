"""The commands under `segdistill data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(help="Look at the data.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command()
def preview(
    *,
    out: Annotated[Path, typer.Option(help="the picture")] = Path("world.png"),
    domains: Annotated[str, typer.Option(help="comma-separated domains; default: all")] = "",
    split: Annotated[str, typer.Option(help="train, val, test or pretrain")] = "train",
    count: Annotated[int, typer.Option(min=1, max=50, help="images per domain")] = 4,
    height: Annotated[int, typer.Option(min=32, help="pixels; the width is twice that")] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    labels: Annotated[bool, typer.Option(help="show the labels beside the images")] = True,
) -> None:
    """Write a contact sheet of the built-in world's domains."""
    from segdistill.data.world import DOMAINS
    from segdistill.data.world.preview import contact_sheet
    from segdistill.files import write_atomic

    names = [name.strip() for name in domains.split(",") if name.strip()] or list(DOMAINS)
    sheet = contact_sheet(names, split=split, count=count, size=(height, 2 * height), seed=seed, labels=labels)
    write_atomic(out, lambda file: sheet.save(file, "PNG"))
    typer.echo(f"{out}: {sheet.width} x {sheet.height} pixels, {len(names)} domains")


@data_app.command()
def sample(
    name: Annotated[str, typer.Argument(help="a data set; a wrong name shows all")],
    out: Annotated[Path, typer.Option(help="folder in which the data set's own folder is made")],
    *,
    layout: Annotated[str | None, typer.Option(help="one of its forms; a wrong name shows all")] = None,
    images: Annotated[int, typer.Option(min=1, max=1000, help="images per split")] = 2,
    size: Annotated[tuple[int, int] | None, typer.Option(min=16, help="height and width in pixels")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    zipped: Annotated[bool, typer.Option("--zip", help="the official archives instead of folders")] = False,
) -> None:
    """Write a small instance of a data set in its official form, made from the built-in world."""
    from segdistill.data.sample import write_sample

    folder, count = write_sample(name, out, layout=layout, images=images, size=size, seed=seed, zipped=zipped)
    typer.echo(f"{folder}: {count} {'archives' if zipped else 'files'}")


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="a data set that must be converted; a wrong name shows all")],
    out: Annotated[Path, typer.Option(help="folder in which the data set's own folder is made; not the root")],
    *,
    root: Annotated[Path | None, typer.Option(help="folder of the data sets; default: SEGDISTILL_DATA")] = None,
    processes: Annotated[int, typer.Option(min=1, max=256, help="that convert at the same time")] = 1,
) -> None:
    """Convert a data set into a layout that is read: trainId labels, clips of tiles, halved images. Continues."""
    from segdistill.data.index import place
    from segdistill.data.prepare import prepare as convert
    from segdistill.progress import Bars

    source = place(name, root, {}, {}).where
    with Bars(name, 0) as bars:
        folder, counts = convert(name, source, out, processes=processes, progress=bars.work)
    typer.echo(f"{folder}: {counts.made} files made, {counts.kept} kept, {counts.unlabelled} images without label")
