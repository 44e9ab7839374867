"""The semantic demo on a CPU: its time by part, and its steps against those of an older commit, as ratios in one run.

    OMP_NUM_THREADS=1 uv run python benchmarks/demo_parts.py                       # time by part
    git worktree add ../old a2cabf
    OMP_NUM_THREADS=1 uv run python benchmarks/demo_parts.py --old ../old/src      # and the paired measurement

By part: a few steps of the demo's two stages of the student with GKD; clocks around making batches, frozen encoders,
the student, the backward pass and the optimiser. ``everything else`` includes the start of the stage.

Paired: a child process imports the package of each commit; the parent asks them in turns for a few steps of a stage and
compares medians, so that other load meets both. The older package must work in this environment. Losses are printed for
both: the ratio counts only where they agree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

RECIPE = "world_gkd.yaml"
STAGES = ("domain_agnostic", "task")


class Stopwatch:
    """The time at the end of each step of a run, and its losses."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.losses: list[float] = []

    def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
        """Called by the run at every step."""
        del label, step, steps
        if loss is not None:
            self.losses.append(loss)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each step but the first."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def recipe_values(stage: str, steps: int, images: int) -> list[str]:
    """Overrides: one stage of the demo's student, a few steps, no scores."""
    return [
        f"stages.{stage}.steps={steps}",
        f"stages.{stage}.data.images={images}",
        "evaluate=null",
        "log_every=1000000",
        "checkpoint_every=1000000",
        "accelerator=cpu",
        "precision=32-true",  # some processors compute bf16 slowly
    ]


def child() -> None:
    """Serve requests ``{"stage", "steps", "seed"}``, one JSON object per line, with seconds per step and the loss."""
    import yaml

    import segdistill.recipe as recipes

    try:
        from segdistill.runs.execute import run
    except ImportError:  # older layouts
        from segdistill.run import run
    from segdistill.runlog import Quiet

    class Watch(Quiet):
        """Forwards steps to the stopwatch."""

        def __init__(self, watch: Stopwatch) -> None:
            self.watch = watch

        def step(self, label: str, step: int, steps: int, loss: float | None) -> None:
            """See :meth:`Stopwatch.step`."""
            self.watch.step(label, step, steps, loss)

    folder = Path(recipes.__file__).parent
    shipped = next(path for path in (folder / "recipes", folder.parents[1] / "recipes") if path.is_dir())
    for line in sys.stdin:
        request = json.loads(line)
        values = yaml.safe_load((shipped / RECIPE).read_text())
        values["stages"] = [stage for stage in values["stages"] if stage["name"] == request["stage"]]
        watch = Stopwatch()
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / RECIPE
            path.write_text(yaml.safe_dump(values))
            changes = recipe_values(request["stage"], request["steps"], request["images"])
            if request["stage"] == "task":
                changes.append("stages.task.augment.photometric=false")  # a2cabf distorts otherwise
            run(recipes.load(path, changes), Path(place) / "run", watcher=Watch(watch))
        answer = {"seconds": watch.seconds(), "loss": watch.losses[-1]}
        sys.stdout.write(f"answer {json.dumps(answer)}\n")
        sys.stdout.flush()


class Side:
    """A child process that imports one version of the package."""

    def __init__(self, source: Path, stack: ExitStack) -> None:
        environment = os.environ | {"PYTHONPATH": str(source)}
        self.process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, __file__, "--child"],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Its answer to one request."""
        lines: Any = self.process.stdout
        where: IO[str] = self.process.stdin  # type: ignore[assignment]
        where.write(json.dumps(request) + "\n")
        where.flush()
        for line in lines:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"the process of {self.process.args} ended without an answer")


def paired(old: Path, rounds: int, steps: int, images: int) -> Iterator[str]:
    """Rows: median seconds per step of both versions, their ratio, and the losses."""
    new = Path(__file__).resolve().parents[1] / "src"
    with ExitStack() as stack:
        sides = [Side(old.resolve(), stack), Side(new, stack)]
        for stage in STAGES:
            found: list[list[float]] = [[], []]
            losses = [0.0, 0.0]
            for number in range(rounds + 1):  # the first round warms up and renders the images
                for place, side in enumerate(sides):
                    answer = side.ask(stage=stage, steps=steps, images=images)
                    losses[place] = answer["loss"]
                    if number:
                        found[place] += answer["seconds"]
            before, after = map(statistics.median, found)
            yield f"| {stage} | {before:.3f} | {after:.3f} | {before / after:.2f} | {losses[0]:.4f} | {losses[1]:.4f} |"
        for side in sides:
            side.process.stdin.close()  # type: ignore[union-attr]


def by_part(steps: int, images: int) -> Iterator[str]:
    """Rows: milliseconds per step of each part of each stage, and its share."""
    from unittest import mock

    import torch
    import yaml

    from segdistill.data.loader import StepBatches
    from segdistill.encoders import Encoder
    from segdistill.recipe import load
    from segdistill.runlog import Quiet
    from segdistill.runs.execute import run
    from segdistill.shipped import recipes_folder

    seconds: dict[str, float] = {}

    def clocked(name: Callable[[Any], str], call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                key = name(given[0])
                seconds[key] = seconds.get(key, 0.0) + time.perf_counter() - began

        return timed

    def role(encoder: Encoder) -> str:
        return "student" if torch.is_grad_enabled() and encoder.mask_token.requires_grad else "frozen encoder"

    places = [
        (StepBatches, "__getitem__", lambda _: "making batches"),
        (Encoder, "forward", role),
        (torch.Tensor, "backward", lambda _: "backward pass"),
        (torch.optim.AdamW, "step", lambda _: "optimiser"),
    ]
    for stage in STAGES:
        seconds.clear()
        values = yaml.safe_load((recipes_folder() / RECIPE).read_text())
        values["stages"] = [each for each in values["stages"] if each["name"] == stage]
        with ExitStack() as stack:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            (place / RECIPE).write_text(yaml.safe_dump(values))
            recipe = load(place / RECIPE, recipe_values(stage, steps, images))
            recipe.data.open(recipe.stages[0].data)  # renders the images
            for kind, method, name in places:
                stack.enter_context(mock.patch.object(kind, method, clocked(name, getattr(kind, method))))
            began = time.perf_counter()
            run(recipe, place / "run", watcher=Quiet())
            whole = time.perf_counter() - began
        rest = {"everything else: heads, losses, start": whole - sum(seconds.values())}
        for part, value in sorted((seconds | rest).items(), key=lambda item: -item[1]):
            yield f"| {stage} | {part} | {1000 * value / steps:.0f} | {value / whole:.0%} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="the src folder of a checkout of the older commit")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child()
        return
    from segdistill.environment import commit, hardware

    out = [f"{hardware()}, commit {commit()}, {options.steps} steps", ""]
    out += ["| stage | part | ms per step | share |", "|---|---|---|---|", *by_part(options.steps, options.images)]
    if options.old is not None:
        out += [
            "",
            "| stage | old, s per step | new, s per step | old / new | old loss | new loss |",
            "|---|---|---|---|---|---|",
        ]
        out += paired(options.old, options.rounds, options.steps, options.images)
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
