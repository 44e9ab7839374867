"""How far `segdistill estimate` is off, and how often its interval covers the score, on the built-in world.

    OMP_NUM_THREADS=1 uv run python benchmarks/estimate.py RUN --raw docs/raw/estimate_world.json

RUN is a finished run of a world recipe of any task, such as the demo's. The line is fitted as the command fits it, on
the run's source and validation domains. It is judged on the unseen domains, on domains whose parameters are drawn anew,
and on corruptions that are none of the fitted shifts, of all domains. Writes a Markdown table to stdout.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from segdistill.data.rendered import WorldSource
from segdistill.environment import commit, hardware
from segdistill.estimation.estimate import IMAGES, choose_line, measure, points_of
from segdistill.estimation.measures import measures_of
from segdistill.recipe import EvaluateConfig
from segdistill.runs.rescore import trained

Pixels = np.ndarray


def motion(image: Pixels, number: int) -> Pixels:
    """The camera moves by five pixels."""
    return np.mean([np.roll(image, step - 2, axis=1) for step in range(5)], axis=0).astype(np.uint8)


def coarse(image: Pixels, number: int) -> Pixels:
    """A third of the pixels in each direction."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((width // 3, height // 3), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.NEAREST))


def specks(image: Pixels, number: int) -> Pixels:
    """Black and white pixels, 4 % each."""
    drawn, result = np.random.default_rng(number).random(image.shape[:2]), image.copy()
    result[drawn < 0.04], result[drawn > 0.96] = 0, 255
    return result


def glare(image: Pixels, number: int) -> Pixels:
    """Too bright."""
    return np.clip(image * 1.3 + 50, 0, 255).astype(np.uint8)


def hue(image: Pixels, number: int) -> Pixels:
    """Other colours."""
    values = np.array(Image.fromarray(image).convert("HSV"))
    values[..., 0] += 60
    return np.asarray(Image.fromarray(values, "HSV").convert("RGB"))


def grey(image: Pixels, number: int) -> Pixels:
    """No colours."""
    return np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)


HELD_OUT: dict[str, Callable[[Pixels, int], Pixels]] = {
    "motion": motion, "coarse": coarse, "specks": specks, "glare": glare, "hue": hue, "grey": grey,
}  # fmt: skip
KINDS = ["unseen", "drawn anew", *HELD_OUT]
REDRAWS = (1, 2)
Test = tuple[str, str, WorldSource, Callable[[Pixels, int], Pixels] | None]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="what it is judged on")
    arguments = parser.parse_args()
    model, teacher, points = points_of(arguments.run, device="cpu")
    recipe = trained(arguments.run)[0].recipe
    config, source = recipe.evaluate, recipe.scored_source
    assert config is not None
    assert isinstance(source, WorldSource)
    name, line = choose_line(points)
    rows = []
    for kind, domain, where, change in tests(config, source):
        if kind not in arguments.kinds:
            continue
        dataset = where.open(config.selection(where, domain))
        confidence, agreement, score = measure(model, teacher, dataset, change, IMAGES)
        x = agreement if name == "agreement" else confidence
        assert x is not None
        rows.append({"kind": kind, "domain": domain, "x": x, "score": score, "estimate": line.at(x),
                     "interval": line.interval(x), "refused": line.outside(x)})  # fmt: skip
    facts = {"run": recipe.name, "metric": measures_of(model).label, "measure": name,
             "line": asdict(line), "commit": commit(), "hardware": hardware(),
             "command": f"benchmarks/estimate.py {recipe.name}", "points": [asdict(each) for each in points],
             "tests": rows}  # fmt: skip
    arguments.raw.write_text(json.dumps(facts, indent=1) + "\n")
    constant = float(np.mean([each.score for each in points if each.shift == "as they are"]))
    print(f"{hardware()}, commit {commit()}, {recipe.name}, line over {name}, {len(points)} points, "
          f"left-out error {100 * line.error:.1f}, margin {100 * line.margin:.1f}")  # fmt: skip
    print("\n| judged on | sets | refused | mean error | bias | covered | error of a constant |\n|" + "---|" * 7)
    for kind in (*arguments.kinds, "all"):
        print(row_of(kind, [each for each in rows if kind in ("all", each["kind"])], constant))


def tests(config: EvaluateConfig, source: WorldSource) -> Iterator[Test]:
    """(kind, domain, where its images come from, what is done to them)."""
    for domain in config.unseen:
        yield "unseen", domain, source, None
    for redraw in REDRAWS:
        for domain in config.unseen:
            yield "drawn anew", domain, source.model_copy(update={"redraw": redraw}), None
    for name, change in HELD_OUT.items():
        for domain in config.domains:
            yield name, domain, source, change


def row_of(kind: str, rows: list[dict], constant: float) -> str:
    """A line of the table, in points of the score."""
    kept = [each for each in rows if not each["refused"]]
    errors = np.array([each["estimate"] - each["score"] for each in kept])
    covered = np.mean([low <= each["score"] <= high for each in kept for low, high in [each["interval"]]])
    plain = np.mean([abs(constant - each["score"]) for each in kept])
    error, bias = f"{100 * np.abs(errors).mean():.1f}", f"{100 * errors.mean():+.1f}"
    cells = [kind, len(rows), len(rows) - len(kept), error, bias, f"{100 * covered:.0f} %", f"{100 * plain:.1f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
