"""The commands under `segdistill data`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdistill.cli.show import print_table, show_doubts

if TYPE_CHECKING:
    from segdistill.data.check import Check, SplitCheck

data_app = typer.Typer(help="Inspect, check and convert datasets.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command()
def preview(
    *,
    out: Annotated[Path, typer.Option(help="the picture to write")] = Path("world.png"),
    domains: Annotated[str, typer.Option(help="comma-separated domains; default: all")] = "",
    split: Annotated[str, typer.Option(help="train, val, test or pretrain")] = "train",
    count: Annotated[int, typer.Option(min=1, max=50, help="images per domain")] = 4,
    height: Annotated[int, typer.Option(min=32, help="pixels; the width is twice that")] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    labels: Annotated[bool, typer.Option(help="show the labels beside the images")] = True,
) -> None:
    """Write a contact sheet of the built-in world's domains."""
    from PIL import Image

    from segdistill.files import write_atomic
    from segdistill.pictures import colorize, contact_sheet
    from segdistill.world import COLORS, DOMAINS, render

    chosen = [name.strip() for name in domains.split(",") if name.strip()] or list(DOMAINS)
    rows, names = [], []
    for name in chosen:
        drawn = [render(name, split, index, size=(height, 2 * height), seed=seed) for index in range(count)]
        rows.append([each.image for each in drawn])
        if labels:
            rows.append([colorize(each.label, COLORS.tolist()) for each in drawn])
        names += [name, ""] if labels else [name]
    sheet = Image.fromarray(contact_sheet(rows, [f"{split} {index}" for index in range(count)], names))
    write_atomic(out, lambda file: sheet.save(file, "PNG"))
    typer.echo(f"{out}: {sheet.width} x {sheet.height} pixels, {len(chosen)} domains")


@data_app.command()
def check(
    name: Annotated[str, typer.Argument(help="a dataset such as cityscapes or acdc:night, or your dataset.yaml")],
    root: Annotated[
        Path | None, typer.Option(help="folder of the datasets, or an archive; default: SEGDISTILL_DATA")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="number of reading processes")] = os.cpu_count() or 1,
    show: Annotated[int, typer.Option(min=0, help="faults to print per kind and split")] = 5,
) -> None:
    """Read every image and label once. Exit status 1: the dataset has faults and cannot be used yet."""
    from segdistill.data.check import check as check_data
    from segdistill.data.own import named_place
    from segdistill.progress import Bars

    with Bars("check", 0) as bars:
        outcome = check_data(named_place(name, root), processes=processes, progress=bars.work)
    _print_check(outcome, show)
    if not outcome.ok:
        raise typer.Exit(1)


@data_app.command(name="list")
def list_() -> None:
    """List the datasets that can be read by name."""
    from segdistill.data.catalog import DATASETS

    rows = [["name", "dataset", "classes", "subsets", "size", "licence"]]
    for name, record in DATASETS.items():
        size = "varies" if record.size is None else " x ".join(map(str, record.size))
        classes, subsets = str(len(record.classes) or "-"), " ".join(record.subsets)
        rows.append([name, record.title, classes, subsets, size, record.licence])
    print_table(rows)


@data_app.command()
def sample(
    name: Annotated[str, typer.Argument(help="a dataset; a wrong name lists all")],
    out: Annotated[Path, typer.Option(help="folder in which the dataset folder is created")],
    *,
    layout: Annotated[str | None, typer.Option(help="one of its layouts; a wrong name lists all")] = None,
    images: Annotated[int, typer.Option(min=1, max=1000, help="images per split")] = 2,
    size: Annotated[tuple[int, int] | None, typer.Option(help="height and width in pixels")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    zipped: Annotated[bool, typer.Option("--zip", help="write the official archives instead of folders")] = False,
) -> None:
    """Write a small sample of a dataset in its official layout, made from the built-in world."""
    from segdistill.data.sample import write_sample

    folder, count = write_sample(name, out, layout=layout, images=images, size=size, seed=seed, zipped=zipped)
    typer.echo(f"{folder}: {count} {'archive' if zipped else 'file'}{'s' * (count != 1)}")


@data_app.command()
def split(
    name: Annotated[str, typer.Argument(help="a dataset such as cityscapes_instances, or your dataset.yaml")],
    out: Annotated[Path, typer.Option(help="folder in which the two lists are written")],
    *,
    fraction: Annotated[str | None, typer.Option(help="labelled share, such as 1/10")] = None,
    seed: Annotated[int, typer.Option(min=0, help="draws other images for the same share")] = 0,
    listed: Annotated[
        Path | None, typer.Option("--list", help="file of the labelled images, instead of a share")
    ] = None,
    part: Annotated[str, typer.Option("--split", help="split of the dataset")] = "train",
    root: Annotated[Path | None, typer.Option(help="folder of the datasets; default: SEGDISTILL_DATA")] = None,
) -> None:
    """Divide the images of a split into labelled and unlabelled ones; writes a list of each for `list:`."""
    from segdistill.data.split import write_split

    for path, count in write_split(name, out, fraction=fraction, seed=seed, listed=listed, split=part, root=root):
        typer.echo(f"{path}: {count} image{'s' * (count != 1)}")


@data_app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="a dataset that needs conversion; a wrong name lists all")],
    out: Annotated[Path, typer.Option(help="folder in which the dataset folder is created; not the root")],
    *,
    root: Annotated[Path | None, typer.Option(help="folder of the datasets; default: SEGDISTILL_DATA")] = None,
    processes: Annotated[int, typer.Option(min=1, help="number of converting processes")] = os.cpu_count() or 1,
) -> None:
    """Convert a dataset into a readable layout: trainId labels, cropped tiles, halved images. Resumes."""
    from segdistill.data.index import place
    from segdistill.data.prepare import prepare as convert
    from segdistill.progress import Bars

    source = place(name, root, {}).where
    with Bars(name, 0) as bars:
        folder, counts = convert(name, source, out, processes=processes, progress=bars.work)
    typer.echo(f"{folder}: {counts.made} files made, {counts.kept} kept, {counts.unlabelled} images without label")


@data_app.command()
def shard(
    name: Annotated[str, typer.Argument(help="a dataset such as imagenet, or your dataset.yaml")],
    out: Annotated[Path, typer.Option(help="folder of the shards and their dataset.yaml")],
    *,
    part: Annotated[str, typer.Option("--split", help="split of the dataset")] = "train",
    size: Annotated[int, typer.Option(min=1, max=10**6, help="images per shard")] = 1000,
    root: Annotated[Path | None, typer.Option(help="folder of the datasets; default: SEGDISTILL_DATA")] = None,
) -> None:
    """Write a split as tar shards in WebDataset's form, each with a digest."""
    from segdistill.data.shard_writing import write_shards
    from segdistill.progress import Bars

    with Bars(name, 0) as bars:
        shards, images = write_shards(name, out, split=part, size=size, root=root, progress=bars.work)
    typer.echo(f"{out / 'dataset.yaml'}: {images:,} images in {shards} shard{'s' * (shards != 1)}")


def _print_check(outcome: Check, show: int) -> None:
    """Print the splits, their faults, and how often each class occurs."""
    rows = [["split", "images", "official", "labelled", "sizes", "layout", "where"]]
    for split in outcome.splits:
        sizes = [f"{h} x {w}" for (h, w), _ in split.sizes.most_common(2)] + ["..."] * (len(split.sizes) > 2)
        official = "?" if split.official is None else str(split.official)
        counts = [str(split.images), official, str(split.labelled)]
        rows.append([split.split, *counts, ", ".join(sizes), split.layout, split.where])
    print_table(rows)
    for split in outcome.splits:
        for what, lines in (
            ("faults", split.faults),
            ("images without a label", split.lone_images),
            ("labels without an image (harmless)", split.lone_labels),
            ("listed but missing", split.missing),
        ):
            for line in lines[:show]:
                typer.echo(f"{split.split}, {what}: {line}")
            if len(lines) > show:
                typer.echo(f"{split.split}, {what}: {len(lines) - show} more")
        if split.official not in (None, split.images):
            typer.echo(f"{split.split}: {split.images} images, officially {split.official}")
    labelled = [split for split in outcome.splits if split.labelled]
    if labelled:
        _print_classes(outcome, labelled)
        _print_objects(labelled)
    for split in outcome.splits:
        show_doubts(split.doubts)
    if outcome.absent:
        typer.echo(f"not here: split {', '.join(outcome.absent)}")
    typer.echo(outcome.verdict())


def _print_objects(splits: list[SplitCheck]) -> None:
    """Print the number of objects, their sizes, and what is rare or odd about them."""
    found = {split.split: split.census for split in splits if split.census is not None}
    if not found:
        return
    rows = [["objects", *found]]
    for title, value in (
        ("objects", lambda each: f"{each.objects}"),
        ("per image", lambda each: f"{each.objects / max(1, each.images):.1f}"),
        ("most in an image", lambda each: f"{each.most}"),
        ("images without any", lambda each: f"{each.per_image[0]}"),
        ("small (below 32 x 32 pixels)", lambda each: f"{each.small}"),
        ("medium", lambda each: f"{each.medium}"),
        ("large (from 96 x 96 pixels)", lambda each: f"{each.large}"),
        ("of one pixel", lambda each: f"{each.one_pixel}"),
        ("without a pixel", lambda each: f"{each.pixelless}"),
        ("crowds (not counted above)", lambda each: f"{each.crowds}"),
        ("images with overlaps", lambda each: f"{each.overlapping}"),
    ):
        rows.append([title, *(value(census) for census in found.values())])
    print_table(rows)


def _print_classes(outcome: Check, splits: list[SplitCheck]) -> None:
    """Print the share of pixels of each class."""
    counted = {split.split: split.census.classes for split in splits if split.census is not None}
    rows = [["class", *(f"{split.split} %" for split in splits), *(f"{name} objects" for name in counted)]]
    totals = [max(1, int(split.pixels.sum()) + split.ignored) for split in splits]
    for number, name in enumerate(outcome.record.classes):
        shares = (100 * split.pixels[number] / total for split, total in zip(splits, totals, strict=True))
        rows.append([name, *(f"{share:.2f}" for share in shares), *(str(each[number]) for each in counted.values())])
    ignored = (100 * split.ignored / total for split, total in zip(splits, totals, strict=True))
    last = "(ignored or no object)" if counted else "(ignored)"
    print_table([*rows, [last, *(f"{share:.2f}" for share in ignored), *[""] * len(counted)]])
