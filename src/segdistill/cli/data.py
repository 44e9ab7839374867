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
