"""The commands that run, score and compare recipes, and the entry point."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdistill.api import reusable
from segdistill.cli import own, ship
from segdistill.cli.data import data_app
from segdistill.cli.labels import pseudo_label
from segdistill.cli.show import WIDTH, print_table, show_doubts
from segdistill.cli.use import predict
from segdistill.config import UserError, choose
from segdistill.interrupts import Stopped, asked, end_now, handled

if TYPE_CHECKING:  # torch is imported when a command needs it
    from segdistill.recipe import Recipe
    from segdistill.results import Comparison
    from segdistill.runs.plan import Plan

app = typer.Typer(
    help="Distil vision foundation models into small segmentation models that keep working in unseen domains.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.command()(own.init)
app.command()(own.serve)
app.command()(own.settings)
app.command()(own.estimate)
app.command()(own.probe)
app.command()(predict)
app.command()(pseudo_label)
ship.register(app)

INTERRUPTED = 130
Overrides = Annotated[list[str] | None, typer.Argument(help="settings as key=value, such as stages.task.steps=100")]


def _version(wanted: bool | None) -> None:
    if wanted:
        import segdistill

        typer.echo(f"segdistill {segdistill.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = None,
) -> None:
    pass


@app.command()
def demo(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[semantic|instance] [KEY=VALUE]...", help="which demo, and settings")
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option(help="folder of the runs and the page; default: runs/demo, or runs/demo_instance")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed of the runs")] = 0,
    jobs: Annotated[int, typer.Option(min=0, help="runs in parallel; 0: one per core or GPU")] = 0,
    smoke: Annotated[bool, typer.Option(help="train two steps per stage, only to see that everything works")] = False,
) -> None:
    """Compare methods on the built-in world: a table and a page. Resumes if interrupted.

    Semantic: no distillation, vanilla KD, GKD and Heir. Instance: a teacher before and after its adaptation, a student
    from few labels, and the student with pseudo-labels and after its refinement.
    """
    from segdistill.precheck import check_recipe
    from segdistill.shipped import DEMOS, recipe_path

    tasks = [word for word in words or [] if "=" not in word] or ["semantic"]
    overrides = [word for word in words or [] if "=" in word]
    names = choose("demo", " ".join(tasks), DEMOS)
    folder = out or Path("runs") / ("demo" if tasks == ["semantic"] else f"demo_{tasks[0]}")
    _announce("demo", check_recipe(recipe_path(Path(names[-1])), overrides), runs=len(names))
    from segdistill import grid
    from segdistill.environment import cores
    from segdistill.grid.demo import load_arms, run_demo
    from segdistill.progress import Bars
    from segdistill.runs.folder import settled

    began = time.perf_counter()
    arms = load_arms(overrides, task=tasks[0], smoke=smoke, seed=seed)
    recipes = [settled(recipe, folder / recipe.name) for recipe in arms]
    _tell_precision(recipes)
    total, gpus = sum(stage.steps for recipe in recipes for stage in recipe.stages), grid.visible_gpus()
    jobs = 1 if "RANK" in os.environ else min(jobs or gpus or cores(), len(recipes))  # torchrun: all share each run
    with Bars("demo", total if jobs == 1 else 0) as bars:
        run_demo(folder, recipes, bars, jobs=jobs, gpus=gpus)
    _show([folder / recipe.name for recipe in recipes], folder / "report.html")
    typer.echo(f"{time.perf_counter() - began:.0f} s")


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="a recipe file, or the name of a shipped recipe")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default: runs/<recipe name>")] = None,
    reuse: Annotated[list[Path] | None, typer.Option(help="another run folder to copy identical stages from")] = None,
    dry_run: Annotated[bool, typer.Option(help="check data and weights, estimate the cost, do not train")] = False,
) -> None:
    """Run a recipe's stages; skips finished ones and resumes an interrupted one."""
    from segdistill.precheck import check_recipe
    from segdistill.shipped import recipe_path

    path = recipe_path(recipe)
    checked = check_recipe(path, overrides or [])  # before torch is imported
    others = reusable(reuse or [])
    _announce(str(checked["name"]), checked)
    from segdistill import recipe as recipes
    from segdistill.progress import Bars
    from segdistill.runs.execute import run as run_recipe
    from segdistill.runs.folder import settled
    from segdistill.sharing.licences import chain

    settings = recipes.load(path, overrides)
    ship.warn(chain(settings))
    folder = out or Path("runs") / settings.name
    settings = settled(settings, folder)
    _tell_precision([settings])
    if dry_run:
        from segdistill.runs.plan import make_plan

        _show_plan(make_plan(settings))
        return
    with Bars(settings.name, sum(stage.steps for stage in settings.stages)) as bars:
        results = run_recipe(settings, folder, reuse=others, watcher=bars)
    if results.get("models"):
        _show([folder], folder / "report.html")
    else:
        typer.echo(f"finished: {folder}")


@app.command()
def evaluate(
    what: Annotated[Path, typer.Argument(help="a run folder, a stage folder, or a checkpoint file with --recipe")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="evaluate.* and data.* settings, such as evaluate.images=200")
    ] = None,
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:SUBSET][:SPLIT]...", help="other data, such as cityscapes:val acdc:night"),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="folder of the datasets")] = None,
    recipe: Annotated[Path | None, typer.Option(help="for a checkpoint file: the recipe of its network")] = None,
    role: Annotated[
        str | None, typer.Option(help="score only student or teacher; default: both, for a file the student")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="folder for the scores; default: the run folder, beside a file; with --data a subfolder"),
    ] = None,
    corrupt: Annotated[
        str | None,
        typer.Option(metavar="all|common|NAME,...", help="also score corrupted images: names or groups, see the docs"),
    ] = None,
    severity: Annotated[
        str | None, typer.Option(metavar="1,3,5", help="severities of --corrupt; default: 1 to 5")
    ] = None,
    images: Annotated[int | None, typer.Option(min=1, help="images per domain of --corrupt; default: all")] = None,
) -> None:
    """Score trained models on the same or other domains, datasets, images or windows, also under corruption."""
    from segdistill.progress import Bars

    if not what.exists():
        raise UserError(
            f"no recipe at {what}; give a run folder, the folder of one of its stages, or a checkpoint file"
        )
    from segdistill.runs.rescore import Wanted, rescore

    words = overrides or []  # typer parses the names after the first one as arguments
    names = data + [word for word in words if "=" not in word] if data else []
    settings = [word for word in words if "=" in word] if data else words
    if corrupt is not None:
        settings = [Wanted.corrupted(corrupt, severity, images), *settings]
    elif severity is not None or images is not None:
        raise UserError("--severity and --images belong to --corrupt; for all images: evaluate.images=N")
    wanted = Wanted(names, root, settings)
    with Bars(what.resolve().name, 0) as bars:
        scores = rescore(what, wanted, recipe=recipe, role=role, out=out, watcher=bars)
    _show([scores], scores / "report.html")


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="run folders; seeds of the same recipe share a row")],
    out: Annotated[Path, typer.Option(help="the HTML page to write")] = Path("report.html"),
) -> None:
    """Compare run folders: print a table and write one self-contained HTML page."""
    _show(folders, out)


@app.command()
def bench(
    table: Annotated[Path, typer.Argument(help="a table file, or the name of a shipped table such as table1_world")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="folder for the runs and the tables")] = Path("runs/bench"),
    jobs: Annotated[int, typer.Option(min=0, help="runs in parallel; 0: one per core or GPU")] = 0,
    dry_run: Annotated[bool, typer.Option(help="check data and weights, estimate the cost, do not train")] = False,
    collect: Annotated[bool, typer.Option(help="print the table of the finished runs; run nothing")] = False,
) -> None:
    """Run a table of recipes, each computation once, and print it in the paper's layout. Resumes if interrupted.

    Settings apply to every run; table.KEY=VALUE changes the table file itself, such as table.seeds=[0].
    """
    if "RANK" in os.environ:
        raise UserError("bench starts processes of its own: run it without torchrun, with --jobs N for N at a time")
    from segdistill.precheck import check_table
    from segdistill.progress import Bars
    from segdistill.shipped import recipes_folder, table_path

    changes, path = tuple(overrides or ()), table_path(table)
    checked = check_table(path, changes)  # before torch is imported
    _tell(f"{checked['name']}: {len(checked['rows'])} rows; reading the recipes")
    from segdistill import grid
    from segdistill.environment import cores
    from segdistill.report import write_tables
    from segdistill.sharing.licences import chain

    config = grid.load_table(path, changes)
    grid.check_paper(config)
    cells = grid.cells_of(config, recipes_folder(), changes, out / "cells")
    if not collect:
        ship.warn(dict.fromkeys(link for cell in cells for link in chain(cell.recipe)))
        _tell_precision(cell.recipe for cell in cells)
    if dry_run:
        _show_plan(grid.plan_cells(cells))
        return
    if collect:
        outcomes = grid.finished_cells(cells, out / "cells")
        if all(outcome.error for outcome in outcomes):
            raise UserError(f"none of the table's {len(cells)} runs in {out} has finished; omit --collect to run them")
    else:
        gpus = grid.visible_gpus()
        show_doubts(dict.fromkeys(line for cell in cells for line in cell.doubts))
        with Bars(config.name, 0) as bars:
            outcomes = grid.run_cells(cells, out / "cells", jobs=jobs or gpus or cores(), gpus=gpus, watch=bars.work)
    found = grid.collect_table(config, outcomes)
    for path in write_tables(found, out / config.name):
        typer.echo(str(path))
    _print_comparison(found)
    for error in found.errors:
        typer.echo(f"not finished: {error}", err=True)
    if found.errors and not collect:
        raise typer.Exit(1)


def _show_plan(plan: Plan) -> None:
    """Print the stages and the estimated cost of a recipe or a table."""
    print_table(plan.rows())
    for line in (*plan.weights, *plan.notes(), plan.summary()):
        typer.echo(line)
    show_doubts(plan.doubts)


def _announce(name: str, values: dict[str, Any], runs: int = 1) -> None:
    """Print what is going to run, before torch is imported."""
    stages = values["stages"]
    steps = sum(int(float(stage.get("steps", 0))) for stage in stages)
    several = f"{runs} runs, the last of " if runs > 1 else ""
    _tell(f"{name}: {several}{len(stages)} stage{'s' * (len(stages) != 1)}, {steps:,} steps")


def _tell_precision(recipes: Iterable[Recipe]) -> None:
    """Print what the recipes compute in, and what this machine makes of it."""
    from segdistill.environment import computes_bf16

    for precision, accelerator in sorted({(recipe.precision, recipe.accelerator) for recipe in recipes}):
        remark = ""
        if not computes_bf16(accelerator):
            remark = {"bf16-mixed": "; slow: this machine emulates bf16; 32-true is several times faster",
                      "32-true": "; this machine has no fast bf16"}.get(precision, "")  # fmt: skip
        _tell(f"precision {precision}{remark}")


def _tell(line: str) -> None:
    """Print a line to stderr, from the first process only."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(line, err=True)


@app.command(name="list")
def list_(
    what: Annotated[
        str | None, typer.Argument(help="encoders, heads, methods, generalizers, domains, recipes, tables or weights")
    ] = None,
) -> None:
    """List the available choices; without an argument, the lists themselves."""
    from segdistill import listing

    print_table(listing.overview() if what is None else choose("list", what, listing.LISTS)())


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit status 2; Ctrl-C and SIGTERM say how to resume."""
    with handled():
        try:
            app()
        except UserError as error:
            _end_if_asked()  # the same signal may have killed a data-loading process
            _end(2, f"segdistill: {error}")
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _end(2, f"segdistill: {where}{error.strerror or error}; fix that and run the command again")
        except Stopped as stopped:
            end_now(stopped.status, "" if _rank() else f"segdistill: {stopped.line}")
        except SystemExit as end:  # the normal exit, or how typer handles a KeyboardInterrupt from a library
            _end_if_asked()
            if end.code == INTERRUPTED:
                typer.echo(f"segdistill: {Stopped(signal.SIGINT).line}", err=True)
            raise


def _end_if_asked() -> None:
    """Exit if a signal arrived whose exception got lost."""
    if (stopped := asked()) is not None:
        end_now(stopped.status, "" if _rank() else f"segdistill: {stopped.line}")


def _end(status: int, line: str) -> None:
    """Print a line and exit; one of several processes exits at once, since the others may no longer respond."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        end_now(status, line)
    typer.echo(line, err=True)
    sys.exit(status)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _show(folders: Sequence[Path], page: Path) -> None:
    """Print the table of the runs and write their report page."""
    from segdistill.files import write_bytes
    from segdistill.report import render
    from segdistill.results import collect

    if _rank():  # only the first process prints
        return
    found = collect(folders)
    _print_comparison(found)
    page_text = render(found).encode()
    write_bytes(page, page_text)
    typer.echo(f"page: {page}")


def _print_comparison(found: Comparison) -> None:
    """Print a table and the notes below it."""
    from segdistill.report import corruptions_to_terminal, to_terminal

    rows, below = to_terminal(found, WIDTH)
    print_table(rows)
    if corruptions := corruptions_to_terminal(found):
        print_table(corruptions)
    for line in below:
        typer.echo(line)
