"""The commands that ship trained models: pack, verify, push, export."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdistill.cli.show import print_table
from segdistill.config import UserError, expanded

if TYPE_CHECKING:  # torch is imported when a command needs it
    from segdistill.sharing.licences import Link

Force = Annotated[bool, typer.Option("--force", help="overwrite existing files")]
Role = Annotated[str | None, typer.Option(help="student or teacher; default: the student if there is one")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to ``app``."""
    for command in (pack, verify, push, export):
        app.command()(command)


def _there(what: str | Path) -> None:
    """Report a wrong path before torch is imported."""
    if not str(what).startswith("hf:") and not expanded(what).exists():
        raise UserError(f"nothing at {what}; give a run folder, a packed file, or hf:<owner>/<name>")


def pack(
    folder: Annotated[Path, typer.Argument(help="a finished run folder")],
    out: Annotated[Path, typer.Argument(help="NAME.safetensors, or a folder for model.safetensors and README.md")],
    *,
    role: Role = None,
    half: Annotated[bool, typer.Option("--half", help="store weights as float16")] = False,
    encoder: Annotated[
        bool, typer.Option("--encoder", help="only the student's encoder, as float16, with a JSON manifest")
    ] = False,
    force: Force = False,
) -> None:
    """Write a run's model as one safetensors file with its provenance, and a model card beside it."""
    _there(folder)
    from segdistill.files import sha256
    from segdistill.sharing.licences import read_chain
    from segdistill.sharing.pack import card_path, pack_encoder
    from segdistill.sharing.pack import pack as pack_run

    if encoder:
        if role is not None or half:
            raise UserError("--encoder packs the student's encoder as float16; omit --role and --half")
        manifest = pack_encoder(folder, out, force=force)
        typer.echo(f"{out.with_suffix('.safetensors')}: {manifest['encoder']}, sha256 {manifest['sha256'][:16]}")
        return
    path, header = pack_run(folder, out, role=role, half=half, force=force)
    size = path.stat().st_size / 2**20
    typer.echo(f"{path}: {header['title']}, {len(header['classes'])} classes, {size:.1f} MiB, {sha256(path)[:16]}")
    typer.echo(f"{card_path(path)}: model card")
    warn(read_chain(header["licences"]))


def warn(licences: Iterable[Link]) -> None:
    """Print one ``warning:`` line on stderr for each restricted link of a licence chain."""
    from segdistill.sharing.licences import warnings

    for line in warnings(licences):
        typer.echo(f"warning: {line}", err=True)


def verify(
    file: Annotated[str, typer.Argument(help="a packed or exported file, or hf:<owner>/<name>")],
    run: Annotated[Path | None, typer.Option(help="the run folder that it was packed from")] = None,
) -> None:
    """Recompute the digests of a shipped file and of its sources. Exit status 1: something differs."""
    _there(file)
    from segdistill.sharing.verify import verify as verify_file

    checks = verify_file(file, run)
    print_table([["what", "name", "outcome"], *([check.what, check.name, check.outcome] for check in checks)])
    bad = [check for check in checks if check.ok is False]
    left = [check for check in checks if check.ok is None]
    typer.echo(f"{len(checks) - len(bad) - len(left)} as recorded, {len(bad)} differ, {len(left)} not checked")
    if bad:
        raise typer.Exit(1)


def push(
    file: Annotated[Path, typer.Argument(help="a packed file")],
    name: Annotated[str, typer.Argument(help="<owner>/<name> on the Hugging Face hub")],
    *,
    public: Annotated[bool, typer.Option("--public", help="make a new repository public; default: private")] = False,
    revision: Annotated[str | None, typer.Option(help="branch to write to")] = None,
) -> None:
    """Upload a packed model and its card; `hf:<owner>/<name>` loads it again."""
    _there(file)
    from segdistill.sharing.hub import push as push_file

    typer.echo(push_file(file, name, private=not public, revision=revision))


def export(
    what: Annotated[str, typer.Argument(help="a run folder, a packed file, or hf:<owner>/<name>")],
    out: Annotated[Path, typer.Argument(help="the file to write: model.onnx, or model.pt2 for torch.export")],
    *,
    role: Role = None,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="height and width that the graph resizes images to; default: their own, or as evaluated"),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="also model.fp16.onnx, in half precision")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="also model.int8.onnx, calibrated on source images")] = False,
    images: Annotated[int, typer.Option(min=1, help="images per domain for the comparison")] = 16,
    calibration: Annotated[int, typer.Option(min=1, help="source images that calibrate int8")] = 32,
    root: Annotated[Path | None, typer.Option(help="folder of the datasets")] = None,
    force: Force = False,
) -> None:
    """Export a finished model as an ONNX or torch.export file, and compare it with the network on every domain."""
    _there(what)
    from segdistill.export import export as export_file
    from segdistill.export import report_path, summary_rows
    from segdistill.progress import Bars

    with Bars("export", 0) as bars:
        report = export_file(
            what,
            out,
            role=role,
            size=size,
            fp16=fp16,
            int8=int8,
            images=images,
            calibration=calibration,
            root=root,
            force=force,
            watcher=bars,
        )
    rows, files = summary_rows(report)
    print_table(rows)
    typer.echo("")
    print_table(files)
    network = report["network_size"]
    size_line = network if isinstance(network, str) else f"{network[0]} x {network[1]}, fixed: {report['note']}"
    typer.echo(f"equal: {report['equal']}")
    typer.echo(f"images: uint8 (batch, height, width, 3), RGB; network input size: {size_line}")
    height, width = report["latency_image"]
    typer.echo(f"ms per image: {height} x {width} pixels, {report['latency_threads']} threads, median, engines in turn")
    typer.echo(f"report: {report_path(out)}")
