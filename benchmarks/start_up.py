"""How long a command takes to its first words: processor and wall-clock seconds of whole processes.

``uv run python benchmarks/start_up.py [SOURCE]``, where SOURCE is the ``src`` folder of another commit to compare with.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from segdistill import environment

COMMANDS = (
    ["--help"], ["--version"], ["list"], ["list", "heads"], ["list", "methods"], ["list", "encoders"],
    ["list", "recipes"], ["run", "nope.yaml"], ["run", "recipes/world_gkd.yaml", "stages.task.stepz=3"],
    ["run", "recipes/world_gkd.yaml", "student.encoder.name=world_studnet"], ["evaluate", "nope"],
)  # fmt: skip
REPEATS = 3


def measure(code: list[str], source: str | None) -> tuple[float, float]:
    """Processor and wall-clock seconds of the fastest of some processes."""
    env = os.environ | ({"PYTHONPATH": source} if source else {})
    times = []
    for _ in range(REPEATS):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, *code], env=env, capture_output=True, check=False)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        times.append((spent, wall))
    return min(cpu for cpu, _ in times), min(wall for _, wall in times)


def main() -> None:
    """Print a table of this tree, beside the other one where it is given."""
    sources = [Path(__file__).parents[1] / "src", *map(Path, sys.argv[1:2])]
    print(f"{environment.hardware()}, commit {environment.commit()}, load {os.getloadavg()[0]:.0f}\n")
    print("| command | " + " | ".join(f"{what}, {source.parent.name}" for source in sources for what in ("CPU s", "s")))
    codes = [(" ".join(command), ["-m", "segdistill", *command]) for command in COMMANDS]
    modules = ("segdistill", "segdistill.inference.model", "segdistill.runs.execute")  # the package, load, run
    codes += [(f"python -c 'import {module}'", ["-c", f"import {module}"]) for module in modules]
    for title, code in codes:
        cells = [f"{seconds:.2f}" for source in sources for seconds in measure(code, str(source))]
        print(f"| `{title}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
